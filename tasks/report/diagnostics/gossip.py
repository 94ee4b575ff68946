"""Nodes without a server: who hears whom, how far apart they are, and what a merge of all would be worth."""

import math
from typing import TYPE_CHECKING

from tasks.report.amounts import count, number, percent
from tasks.report.figures import COLOURS, Drawing, Line, Numbers, lines, svg
from tasks.report.page import Block, Figure, Panel, Row, Text
from tasks.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from tasks.train.topologies import Gossip

MOST_LINKS, MOST_ROUNDS = 400, 200
"""Above these the graph of the links is not drawn, or of the first rounds alone."""


def gossip(run: Run) -> Panel | None:
    """The graph, the agreement of the nodes, the variance of their weights, and the gain of a merge."""
    topology = run.params.train.topology
    # By what it has: to import the topologies would make all code of the training a dependency of the page.
    if not (hasattr(topology, "graph") and run.diagnostics and run.history):
        return None
    figures = [figure for figure in (_graph(run, topology), _merge(run), _distance(run), _variance(run)) if figure]
    blocks: list[Block] = [Text(_summary(run)), Row(figures)]
    return Panel("How the nodes agreed", blocks)


def _summary(run: Run) -> str:
    last, scored = run.diagnostics[-1], [row for row in run.history if row["personal_test_accuracy"] is not None]
    text = (
        f"The cosine of two nodes' models went from {number(run.diagnostics[0]['cosine'])} to {number(last['cosine'])} "
        "on average."
    )
    if not scored:
        return text
    own, merged = (scored[-1][name] for name in ("personal_test_accuracy", "test_accuracy"))
    half = next(row["round"] for row in scored if row["personal_test_accuracy"] >= own / 2)
    return (
        f"In the end a node gets {percent(own)} of the test set right, and the mean of all nodes' models "
        f"{percent(merged)}: one merge is worth {number(100 * (merged - own))} points. Half of a node's final accuracy "
        f"was there after {count(half, 'round')}. {text}"
    )


def _merge(run: Run) -> Figure:
    rounds = run.column("round")
    own, merged = (
        Line("mean of the nodes, each its own model", rounds, run.column("personal_test_accuracy")),
        Line("the nodes' models merged", rounds, run.column("test_accuracy")),
    )
    alt = "Test accuracy over rounds, of the nodes on average and of their merged model"
    return Figure(
        lines(alt, "round", "test accuracy", [own, merged], share=True),
        "What a merge of all models would have been worth in each round; it changes nothing in the training.",
    )


def _distance(run: Run) -> Figure:
    rounds, apart = _column(run, "round"), _column(run, "consensus_distance")
    alt = f"Squared distance of a node's model from the mean of all, ending at {number(apart[-1])}"
    drawing = lines(alt, "round", "squared distance", [Line("distance", rounds, apart)])
    return Figure(drawing, "Consensus distance: mean squared distance of a node from the mean of all.")


def _variance(run: Run) -> Figure | None:
    names = [name for name in run.diagnostics[0] if name.startswith("variance/")]
    series = []
    for name in names[:5]:
        values = _column(run, name)
        ratios = [value / values[0] if value is not None and values[0] else None for value in values]
        series.append(Line(name.removeprefix("variance/"), _column(run, "round"), ratios))
    if not series:
        return None
    alt = f"Variance of {len(series)} weight tensors of a node over rounds, as a share of that at the start"
    drawing = lines(alt, "round", "variance / variance at the start", series)
    return Figure(drawing, "Variance of weights within a tensor, mean over nodes: what averaging takes of it.")


def _graph(run: Run, topology: "Gossip") -> Figure | None:
    clients, rounds = run.params.partition.clients, run.params.train.rounds
    drawn = list(zip(range(MOST_ROUNDS), topology.drawn(clients, run.params.seed, rounds), strict=False))
    shares = sum(links.double() for _, links in drawn) / len(drawn)
    pairs = (shares + shares.T).triu(1) / 2
    if not 0 < int((pairs > 0).sum()) <= MOST_LINKS:
        return None
    each = shares.sum(1)
    heard = float(each.mean())
    alt = f"Graph of {clients} nodes, of which each hears {number(heard)} others a round"
    caption = f"Who hears whom: {number(heard)} others a round on average."
    if topology.graph.changes:
        caption += f" The darker, the more of the first {len(drawn)} rounds."
    return Figure(_circle(alt, pairs, each.tolist()), caption)


def _circle(alt: str, pairs: "Tensor", heard: list[float]) -> Drawing:
    """Nodes on a circle, and between them lines as dark as their links are usual; ``heard`` others a round by node."""
    nodes, darkest = len(pairs), float(pairs.max())
    places = [(math.cos(2 * math.pi * i / nodes), math.sin(2 * math.pi * i / nodes)) for i in range(nodes)]

    def draw(axes: "Axes") -> Numbers:
        for i, j in pairs.nonzero().tolist():
            (x, y), (u, v) = places[i], places[j]
            depth = 0.1 + 0.7 * float(pairs[i, j]) / darkest
            axes.plot([x, u], [y, v], color=COLOURS["blue"], alpha=round(depth, 2), linewidth=0.9, zorder=1)
        axes.scatter(*zip(*places, strict=True), s=26, color=COLOURS["orange"], zorder=2)
        axes.set_aspect("equal")
        axes.axis("off")
        rows = [(str(node), others) for node, others in enumerate(heard)]
        return Numbers(("node", "hears a round"), rows, [places], nearest="xy")

    return svg(draw, alt)


def _column(run: Run, name: str) -> list[float | None]:
    return [row[name] for row in run.diagnostics]
