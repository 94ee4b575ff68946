"""Who hears whom. A graph is a bool matrix ``[nodes, nodes]``: row i is true at every j whose models i gets."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tasks.config import Config, Refused, one_of
from tasks.train.topologies.rates import Fixed, Rate

FIELD = "train.topology.graph"
ATTEMPTS = 100
SWAPS = 10
"""Random swaps of two edges, for each edge of a regular graph: what is left of the ring that it begins as is gone."""


class Graph(Config):
    """The base of all graphs: the same links in every round.

    ``changes``: links are drawn anew in every round; ``symmetric``: i hears j where j hears i.
    """

    changes: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        """The links that there are at all."""
        raise NotImplementedError

    def at(self, base: Tensor, round_: int, rounds: int, rng: np.random.Generator) -> Tensor:
        """The links of ``round_``, counted from 1, out of ``base``."""
        return base

    def conflicts(self, nodes: int) -> Iterator[str]:
        """Why there is no such graph of ``nodes`` nodes."""
        yield from ()


class Complete(Graph):
    """Everybody hears everybody."""

    name: Literal["complete"] = "complete"

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        return ~torch.eye(nodes, dtype=torch.bool)


class Ring(Graph):
    """Everybody hears the ``reach`` next on either side."""

    name: Literal["ring"] = "ring"
    reach: int = Field(1, ge=1, description="neighbours on either side")

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        steps = range(1, self.reach + 1)
        return _circulant(nodes, [step * side for step in steps for side in (1, -1)])


class Exponential(Graph):
    """Node i hears i + 1, i + 2, i + 4, ... around the circle: few links, and no two nodes far apart.

    Source: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, section 3.
    """

    symmetric: ClassVar[bool] = False
    name: Literal["exponential"] = "exponential"

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        return _circulant(nodes, [2**i for i in range(max(nodes - 1, 1).bit_length())])


class RandomRegular(Graph):
    """A random connected graph in which everybody has ``degree`` neighbours: a ring-like one, its edges swapped at
    random."""

    name: Literal["random_regular"] = "random_regular"
    degree: int = Field(8, ge=2, description="neighbours of a node")

    def conflicts(self, nodes: int) -> Iterator[str]:
        if self.degree >= nodes:
            yield f"{FIELD}.degree = {self.degree}: must be below the number of nodes, {nodes}"
        elif self.degree * nodes % 2:
            yield f"{FIELD}.degree = {self.degree}: with {nodes} nodes an odd number of ends, and edges have two"

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        links = _circulant(nodes, [i * side for i in range(1, self.degree // 2 + 1) for side in (1, -1)])
        if self.degree % 2:
            links = links | _circulant(nodes, [nodes // 2])
        return _connected(lambda: _swapped(links.clone(), rng), f"{FIELD}.degree = {self.degree}")


class ErdosRenyi(Graph):
    """Every pair is linked with the same chance, drawn again until all hang together."""

    name: Literal["erdos_renyi"] = "erdos_renyi"
    chance: float = Field(0.2, gt=0, le=1, description="chance of a link")

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        def draw() -> Tensor:
            upper = torch.from_numpy(rng.random((nodes, nodes)) < self.chance).triu(1)
            return upper | upper.T

        return _connected(draw, f"{FIELD}.chance = {self.chance}")


class ScaleFree(Graph):
    """Nodes come one after another, each with links to some that are there, the likelier the more links they have.

    Source: Barabasi and Albert, "Emergence of Scaling in Random Networks", Science 286, 1999.
    """

    name: Literal["scale_free"] = "scale_free"
    links: int = Field(4, ge=1, description="links that a new node brings along")

    def conflicts(self, nodes: int) -> Iterator[str]:
        if self.links >= nodes:
            yield f"{FIELD}.links = {self.links}: must be below the number of nodes, {nodes}"

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        links = torch.zeros(nodes, nodes, dtype=torch.bool)
        links[: self.links + 1, : self.links + 1] = ~torch.eye(self.links + 1, dtype=torch.bool)
        for new in range(self.links + 1, nodes):
            degrees = links[:new].sum(1).double().numpy()
            chosen = torch.from_numpy(rng.choice(new, self.links, replace=False, p=degrees / degrees.sum()))
            links[new, chosen] = links[chosen, new] = True
        return links


Standing = one_of(Complete, Ring, Exponential, RandomRegular, ErdosRenyi, ScaleFree)


class RandomNeighbours(Graph):
    """In every round each node hears some of its neighbours in ``of``, drawn anew: at rate r the whole part of r of
    them, and one more with the chance of the rest.

    At a rate of 0.2 a node hears nobody in four rounds of five. That i hears j does not mean that j hears i, so mixing
    does not keep the mean of the models: ``random_pairs`` does.

    Source: Zhu et al., "A Single Merging Suffices", arXiv:2507.06542, 2025, and its authors' code.
    """

    changes: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    name: Literal["random_neighbours"] = "random_neighbours"
    rate: Rate = Field(Fixed(), description="others a node hears in a round, itself not among them (r)")
    of: Standing = Field(Complete(), description="among whom they are drawn")

    def conflicts(self, nodes: int) -> Iterator[str]:
        for problem in self.of.conflicts(nodes):
            yield problem.replace(FIELD, f"{FIELD}.of", 1)

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        return self.of.base(nodes, rng)

    def at(self, base: Tensor, round_: int, rounds: int, rng: np.random.Generator) -> Tensor:
        links = torch.zeros_like(base)
        for node, neighbours in enumerate(base):
            known = torch.nonzero(neighbours).flatten().numpy()
            rate = self.rate.at(round_ / rounds, len(known))
            count = math.floor(rate) + int(rng.random() < rate - math.floor(rate))
            links[node, torch.from_numpy(rng.choice(known, count, replace=False))] = True
        return links


class RandomPairs(Graph):
    """In every round the nodes are paired at random, and each pair talks with chance r; above 1, with r different ones.

    Both of a pair hear each other, so under uniform weights with r <= 1, or Metropolis weights with any r, mixing keeps
    the mean of the models. At a rate of all the others everybody hears everybody.

    Source: Zhu et al., "A Single Merging Suffices", arXiv:2507.06542, 2025, whose theory asks for such a mixing; pairs
    after Boyd et al., "Randomized Gossip Algorithms", IEEE Transactions on Information Theory 52, 2006.
    """

    changes: ClassVar[bool] = True
    name: Literal["random_pairs"] = "random_pairs"
    rate: Rate = Field(Fixed(), description="others a node talks to in a round, itself not among them (r)")

    def base(self, nodes: int, rng: np.random.Generator) -> Tensor:
        return Complete().base(nodes, rng)

    def at(self, base: Tensor, round_: int, rounds: int, rng: np.random.Generator) -> Tensor:
        nodes = len(base)
        # The days of a round-robin tournament: each pairs all nodes (all but one of an odd number), no pair twice.
        days = nodes - 1 + nodes % 2
        wanted = self.rate.at(round_ / rounds, nodes - 1) * days / (nodes - 1)
        links, order = torch.zeros_like(base), torch.from_numpy(rng.permutation(nodes))
        for i, day in enumerate(rng.permutation(days)[: math.ceil(wanted)]):
            for a, b in _day(int(day), days, nodes):
                if rng.random() < wanted - i:
                    links[order[a], order[b]] = links[order[b], order[a]] = True
        return links


AnyGraph = one_of(
    Complete, Ring, Exponential, RandomRegular, ErdosRenyi, ScaleFree, RandomNeighbours, RandomPairs
)  # fmt: skip


def _circulant(nodes: int, steps: list[int]) -> Tensor:
    links = torch.zeros(nodes, nodes, dtype=torch.bool)
    here = torch.arange(nodes)
    for step in steps:
        links[here, (here + step) % nodes] = True
    return links.fill_diagonal_(False)


def _day(day: int, days: int, nodes: int) -> Iterator[tuple[int, int]]:
    """The pairs of one day of a round-robin tournament, by the circle method."""
    for i in range(1, (days + 1) // 2):
        yield (day + i) % days, (day - i) % days
    if nodes > days:
        yield day, days


def _swapped(links: Tensor, rng: np.random.Generator) -> Tensor:
    """The graph after many swaps of the ends of two random edges, which leave every degree as it is."""
    edges = torch.nonzero(links.triu()).tolist()
    for _ in range(SWAPS * len(edges)):
        first, second = rng.integers(len(edges), size=2)
        (a, b), (c, d) = edges[first], edges[second][:: rng.choice((1, -1))]
        if len({a, b, c, d}) == 4 and not links[a, d] and not links[c, b]:
            links[[a, b, c, d], [b, a, d, c]] = False
            links[[a, d, c, b], [d, a, b, c]] = True
            edges[first], edges[second] = [a, d], [c, b]
    return links


def _connected(draw: Callable[[], Tensor], where: str) -> Tensor:
    """The first of some drawn graphs in which everybody can be reached from everybody."""
    for _ in range(ATTEMPTS):
        if _reached(links := draw()).all():
            return links
    raise Refused(f"params.yaml: {where}", None, f"{ATTEMPTS} such graphs fell apart", "Give the nodes more links")


def _reached(links: Tensor) -> Tensor:
    """Whom a message from node 0 reaches in the end."""
    reached = torch.zeros(len(links), dtype=torch.bool)
    reached[0] = True
    for _ in links:
        reached = reached | links[:, reached].any(1)
    return reached
