"""The uploads of the last round, tensor by tensor, and what the method told of its state on the way there."""

from tasks import tree
from tasks.report.amounts import count, number, percent
from tasks.report.figures import Line, bars, lines
from tasks.report.page import Block, Figure, Folded, Panel, Row, Table, Text
from tasks.report.run import Run

DRAWN = 24


def uploads(run: Run) -> Panel | None:
    """How long the change of each tensor was as the server read it, and how many of its entries changed at all."""
    deltas = tree.part(run.uploads, "delta")
    heard = run.uploads["weights"] > 0 if deltas else []
    if not len(heard) or not heard.any():
        return None
    rows, names, means = [], [], []
    for name, value in deltas.items():
        each = value[heard].flatten(1).double()
        lengths, changed = each.norm(dim=1), (each != 0).double().mean()
        names.append(name)
        means.append(float(lengths.mean()))
        spread = f"{number(means[-1])} ± {number(float(lengths.std(unbiased=False)))}"
        rows.append((name, f"{each.shape[1]:,}", spread, percent(float(changed))))
    text = (
        f"Of {count(int(heard.sum()), 'client')} in the last round, after compression and clipping. Where some tensors "
        "change by much more than others, clipping the upload as a whole leaves little of the others."
    )
    alt = f"Mean length of the change of {count(min(len(names), DRAWN), 'tensor')}, at most {number(max(means))}"
    drawing = Figure(bars(alt, "mean length of the change", names[:DRAWN], means[:DRAWN]), "Euclidean norms.")
    table = Table("Uploads by tensor", ("tensor", "entries", "length", "entries that changed"), rows)
    told = [] if hasattr(run.params.train.topology, "graph") else _told(run)
    blocks: list[Block] = [Text(text), Row([drawing, *told]), Folded("All tensors", [table])]
    return Panel("What the uploads changed", blocks)


def _told(run: Run) -> list[Figure]:
    """A curve for every number that the algorithm told of its state."""
    rounds = [row["round"] for row in run.diagnostics]
    found = []
    for name in [name for name in (run.diagnostics[0] if run.diagnostics else {}) if name != "round"]:
        values = [row[name] for row in run.diagnostics]
        label = name.replace("_", " ")
        alt = f"{label} over rounds, ending at {number(values[-1])}"
        found.append(
            Figure(lines(alt, "round", label, [Line(label, rounds, values)]), f"{label}, as the method tells.")
        )
    return found
