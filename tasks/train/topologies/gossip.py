"""Decentralised learning: every node a model of its own, mixed with those of its neighbours."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import keys, tree
from tasks.config import Config
from tasks.train.privacy import NoPrivacy
from tasks.train.privacy.central import Central
from tasks.train.topologies.graphs import AnyGraph, RandomRegular
from tasks.train.topologies.mixing import Mixing, Uniform
from tasks.train.topologies.topology import Algorithm, missing_server
from tasks.train.topologies.variance import rescaled, spreads
from tasks.train.uplink import Codec
from tasks.train.work import Exchange, Links, Setting, Uploads
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Gossip(Config):
    """No server: every client is a node with a model of its own, which it trains and mixes with those that it hears.

    node i:  y_i = x_i after its local steps
             x_i <- w_ii y_i + sum of w_ij y_j over the j that it hears
    with a variance correction, for each weight tensor of x_i, of mean m and variance v, and its target v*:
             x_i <- m + (x_i - m) sqrt(v* / v)
    the run's model is the mean of the x_i: a merge that no node has to make before the end

    On a complete graph with uniform weights this is FedAvg with all clients, uniform weighting and a server step of 1;
    with a rate of 0 everybody trains alone. A round is synchronous: who is in the cohort trains and sends to all that
    hear it, and a node mixes as soon as it has gathered ``buffer`` models for each neighbour. A node goes on from its
    model as the others can read it, codecs, clipping and noise included, so that what it knows follows from messages.

    Source: Tian et al., "Vanishing Variance Problem in Fully Decentralized Neural-Network Systems", arXiv:2404.04616,
    2024 (``variance``, ``buffer``, independent starts); Zhu et al., "A Single Merging Suffices: Recovering Server-based
    Learning Performance in Decentralized Learning", arXiv:2507.06542, 2025 (rates over time and the merge at the end);
    Tang et al., "Communication Compression for Decentralized Training", NeurIPS 2018 (differences from copies that the
    neighbours hold).
    """

    name: Literal["gossip"] = "gossip"
    graph: AnyGraph = Field(RandomRegular(), description="who hears whom")
    mixing: Mixing = Field(Uniform(), description="how much of each model that it hears goes into a node's own")
    variance: Literal["none", "others", "self", "follow_beta"] = Field(
        "none",
        description="what the variance of a weight tensor is set to after mixing: left as it is; the mean of "
        "the models received; the node's own before mixing; or both, weighted as they were mixed",
    )
    start: Literal["shared", "own"] = Field(
        "shared", description="the nodes' first weights: the same for all, or drawn by each for itself"
    )
    buffer: int = Field(1, ge=1, description="models a node gathers for each neighbour before it mixes (R)")

    def init(self, algorithm: Algorithm, params: Tree, setting: Setting) -> Tree:
        run = tree.part(algorithm.server_init(params, setting), "run")
        key, clients = self._key(setting.seed), range(setting.clients)
        shared = self.start == "shared"
        nodes = tree.stack(params if shared else setting.draw(node) for node in clients)
        links = self._base(setting.clients, key)
        state = tree.join(nodes=nodes, run=run) | {"links": links, "key": torch.tensor(key)}
        if setting.coded:
            # What everybody knows of a node before its first message: starts follow from a seed, which is no secret.
            state |= tree.join(public=nodes)
        if not self.graph.changes and (self.buffer > 1 or setting.cohort < setting.clients):
            state |= tree.join(heard=tree.map(torch.zeros_like, self.sums(nodes, links, links.double())))
        return state

    def round(self, algorithm: Algorithm, state: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]:
        nodes, public, links = tree.part(state, "nodes"), tree.part(state, "public"), self.links(state)
        sends = torch.zeros(len(links), dtype=torch.bool).index_fill(0, clients, True)
        hears = (links & sends).sum(1)
        asked = algorithm.request(state, clients)
        uploads = yield Exchange(
            asked.work,
            {},
            known=asked.shared | asked.known,
            kept=tree.join(model=tree.take(nodes, clients), reference=tree.take(public, clients)),
            each=True,
            links=Links(links.sum(0)[clients], hears[clients], int(hears[~sends].sum())),
        )
        change = tree.part(uploads.each, "delta")
        moved = nodes | {name: nodes[name].index_add(0, clients, value) for name, value in change.items()}
        sends = sends.index_copy(0, clients, uploads.weights > 0)
        if public and not self.graph.changes:
            state = state | tree.join(public=tree.map(lambda old, new: _where(sends, new, old), public, moved))
        mixed, heard = self.mixed(moved, links, links & sends, tree.part(state, "heard"))
        return state | tree.join(nodes=mixed, heard=heard) | {"run/round": state["run/round"] + 1}

    def links(self, state: Tree) -> Tensor:
        """Who hears whom in the round that comes next."""
        return self._at(state["links"], int(state["run/round"]) + 1, int(state["run/rounds"]), int(state["key"]))

    def drawn(self, clients: int, seed: int, rounds: int) -> Iterator[Tensor]:
        """Who hears whom in each round of a run, which follows from its seed."""
        key = self._key(seed)
        base = self._base(clients, key)
        for round_ in range(1, rounds + 1):
            yield self._at(base, round_, rounds, key)

    def mixed(self, models: Tree, links: Tensor, said: Tensor, heard: Tree) -> tuple[Tree, Tree]:
        """The nodes' next models, and what is still gathered.

        Parameters
        ----------
        models : of the nodes after their local steps, stacked, as everybody reads them.
        links : who can hear whom, ``[nodes, nodes]``; ``said``: who did.
        heard : what the nodes gathered before; {} where they mix whatever they hear at once.
        """
        new = self.sums(models, said, self.mixing.weights(links if heard else said) * said)
        wanted = self.buffer * links.sum(1) if heard else new["count"]
        new = tree.add(heard, new) if heard else new
        due = (new["count"] > 0) & (new["count"] >= wanted)
        # Of more models than wanted, or gathered over several rounds, each counts for less.
        share = torch.where(due, wanted.double() / self.buffer / new["count"].clamp(min=1), 0.0)
        weight, own = share * new["weight"], 1 - share * new["weight"]
        total = tree.part(new, "total")
        mixed = {name: _times(own, value.double()) + _times(share, total[name]) for name, value in models.items()}
        before = spreads(models)
        for name, value in tree.part(new, "spread").items():
            mixed[name] = rescaled(mixed[name], self._target(before[name], share * value, weight))
        left = tree.map(lambda value: _where(due, torch.zeros_like(value), value), new) if heard else {}
        return {name: _where(due, mixed[name].to(value.dtype), value) for name, value in models.items()}, left

    def model(self, state: Tree) -> Tree:
        """The mean of the nodes' models, each counted once."""
        return tree.map(lambda value: value.double().mean(0).to(value.dtype), tree.part(state, "nodes"))

    def models(self, algorithm: Algorithm, state: Tree, clients: Tensor, memory: Tree) -> Tree:
        return tree.take(tree.part(state, "nodes"), clients)

    def diagnostics(self, algorithm: Algorithm, state: Tree) -> dict[str, float]:
        """How far apart the nodes are, mean ||x_i - x_bar||^2 and the mean cosine of two of them; and the mean variance
        of each weight tensor, of the nodes' and of their mean."""
        nodes, mean = tree.part(state, "nodes"), self.model(state)
        flat = torch.cat([value.double().flatten(1) for value in nodes.values()], 1)
        unit = flat / flat.norm(dim=1, keepdim=True)
        count = len(flat)
        merged = {name: value[None] for name, value in mean.items()}
        return {
            "consensus_distance": float((flat - flat.mean(0)).square().sum(1).mean()),
            "cosine": float((unit.sum(0).square().sum() - count) / max(count * (count - 1), 1)),
            **{f"variance/{name}": float(value.mean()) for name, value in spreads(nodes).items()},
            **{f"merged_variance/{name}": float(value) for name, value in spreads(merged).items()},
        }

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        """What in the rest of ``train`` makes no sense without a server, or on these links."""
        here = f"train.topology.name = {self.name!r}"
        yield from missing_server(train.algorithm, here)
        if isinstance(train.privacy, Central):
            yield (
                f"train.privacy.name = {train.privacy.name!r}: with {here} there is no trusted server to add noise; "
                "use 'local'"
            )
        elif self.variance != "none" and not isinstance(train.privacy, NoPrivacy):
            yield (
                f"train.topology.variance = {self.variance!r}: noise is variance too, and the correction would keep "
                f"that of train.privacy.name = {train.privacy.name!r} for ever; use none"
            )
        if clients < 2:
            yield f"partition.clients = {clients}: {here} needs two nodes at least"
        yield from self.graph.conflicts(clients)
        if self.mixing.needs_symmetry and not self.graph.symmetric:
            yield (
                f"train.topology.mixing.name = {self.mixing.name!r}: needs links that go both ways, and those of "
                f"{self.graph.name!r} do not; use uniform or conservative"
            )
        if self.graph.changes:
            yield from self._waits(train, clients)
        for i, codec in enumerate(train.uplink):
            if type(codec).recall is not Codec.recall:
                yield (
                    f"train.uplink[{i}].name = {codec.name!r}: adds up what a client sends, and with {here} that is "
                    "more than a change: it also holds the step to the neighbours' mean"
                )
            elif self.graph.changes and codec.feeds_back:
                yield (
                    f"train.uplink[{i}].error_feedback = True: on links that change a message is all that changed "
                    "since the start, so what one lost must not be added to the next; set it to false"
                )

    def _waits(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        drawn = f"the links of {self.graph.name!r} are drawn anew in every round"
        if self.buffer > 1:
            yield f"train.topology.buffer = {self.buffer}: {drawn}, so there is nothing to wait for; use 1"
        if train.cohort < clients or train.sampling.poisson:
            yield (
                f"train.cohort = {train.cohort}: {drawn}, among all nodes; set it to partition.clients = {clients}, "
                "with train.sampling.name = 'uniform'"
            )

    def _key(self, seed: int) -> int:
        return keys.derive(seed, "gossip")

    def _base(self, clients: int, key: int) -> Tensor:
        return self.graph.base(clients, keys.generator(key, "graph"))

    def _at(self, base: Tensor, round_: int, rounds: int, key: int) -> Tensor:
        return self.graph.at(base, round_, rounds, keys.generator(key, "links", round_))

    def sums(self, models: Tree, said: Tensor, weights: Tensor) -> Tree:
        """What every node gets in a round: sums with ``weights`` over the models and their variances, and how many."""
        total = tree.map(lambda value: torch.tensordot(weights, value.double(), 1), models)
        spread = spreads(models) if self.variance != "none" else {}
        counts = {"weight": weights.sum(1), "count": said.sum(1)}
        return tree.join(total=total, spread=tree.map(lambda value: weights @ value, spread)) | counts

    def _target(self, own: Tensor, received: Tensor, weight: Tensor) -> Tensor:
        """The variance that a tensor of each node gets: from its ``own`` before mixing, and the sum of those that it
        ``received``, which have ``weight`` in all."""
        if self.variance == "self":
            return own
        if self.variance == "follow_beta":
            return (1 - weight) * own + received
        return torch.where(weight > 0, received / weight.clamp(min=torch.finfo(weight.dtype).tiny), own)


def _times(factor: Tensor, value: Tensor) -> Tensor:
    """Each slice of a stacked tensor times its factor."""
    return factor.reshape(-1, *[1] * (value.dim() - 1)) * value


def _where(nodes: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Slice by slice one of two stacked tensors."""
    return torch.where(nodes.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
