"""Just One Byte: training by scalars, along directions that everybody can draw."""

import functools
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import keys, tree
from tasks.models import Network
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.algorithms.server_optimizers import SGD, ServerOptimizer
from tasks.train.work import Batches, ClientState, Exchange, Links, Setting, Uploads
from tasks.tree import Tree


class OneByte(FedAvg):
    """Every machine measures the slope of its loss along random directions and tells the others one number each.

    client i, j = 1..n:  z = N(0, I) drawn from hash(seed, t, i, j)
                         p_ij = (l(w + eps z; batch) - l(w - eps z; batch)) / (2 eps)
    everybody:           w <- w - lr / N * sum of p_ij z_ij,     N numbers in all, or their root with scaling: sqrt

    No model and no gradient travels: all machines hold the same w and take the same step from the numbers that a relay
    passes on, so a machine downloads what the others sent since it was last there. With the codec `log_byte` a number
    is one byte. E[p z] is the gradient up to O(eps^2), with a variance of about (d + 1) |gradient|^2 in d dimensions.

    Source: Zelikman et al., "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model
    Finetuning Using Shared Randomness", arXiv:2306.10015, 2023; the estimate is MeZO's (Malladi et al., NeurIPS 2023).
    """

    single_uploads: ClassVar[bool] = True
    one_round_uploads: ClassVar[bool] = True
    name: Literal["one_byte"] = "one_byte"
    lr: float = Field(0.02, gt=0, description="step along the mean of the estimates (eta)")
    eps: float = Field(1e-3, gt=0, description="distance to each side at which the loss is measured")
    directions: int = Field(1, ge=1, description="numbers a machine sends a round, each from a batch of its own (n)")
    batch_size: int = Field(64, ge=1, description="samples a direction is measured on")
    scaling: Literal["mean", "sqrt"] = Field("mean", description="the sum is divided by its N terms, or by their root")
    epochs: int = Field(1, ge=1, le=1, description="of no effect: `directions` says how many batches there are")
    steps: None = Field(None, description="of no effect: `directions` says how many batches there are")
    momentum: float = Field(0.0, ge=0, le=0, description="none")
    keep_momentum: Literal[False] = Field(False, description="no")
    weight_decay: float = Field(0.0, ge=0, le=0, description="none")
    clip_norm: None = Field(None, description="none: a machine sees no gradient that it could clip")
    weighting: Literal["uniform"] = Field("uniform", description="every number counts alike")
    server: ServerOptimizer = Field(SGD(), description="of no effect: there is no server, only a relay")

    @property
    def batches(self) -> Batches:
        return Batches(1, self.batch_size, self.directions)

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState:
        state = super().client_init(shared, own, memory)
        return state._replace(optimizer={"slopes": torch.zeros(self.directions)})

    def client_step(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[ClientState, Tree]:
        j = state.steps.to(keys.KEY)
        z = direction(keys.fold(state.own["seed"], j), state.params)
        above, below = (
            self.loss(network, state._replace(params=tree.add(state.params, z, side)), batch, key)
            for side in (self.eps, -self.eps)
        )
        slope = (above - below) / (2 * self.eps)
        here = torch.arange(self.directions, device=j.device) == j
        slopes = torch.where(here, slope, state.optimizer["slopes"])
        return state._replace(optimizer={"slopes": slopes}, steps=state.steps + 1), {"loss": (above + below) / 2}

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        return {"slopes": state.optimizer["slopes"]}, state.memory

    def change(self, upload: Tree, shared: Tree) -> Tree:
        places = torch.arange(self.directions)
        z = [direction(keys.fold(shared["seed"], j), tree.part(shared, "model")) for j in places]
        steps = (tree.scale(along, -shared["lr"] * slope) for along, slope in zip(z, upload["slopes"], strict=True))
        return functools.reduce(tree.add, steps)

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        seed = torch.tensor(keys.derive(setting.seed, "directions"))
        counts = {"sent": torch.tensor(0), "had": torch.zeros(setting.clients, dtype=torch.int64)}
        return super().server_init(params, setting) | {"seed": seed} | tree.join(messages=counts)

    def seeds(self, server: Tree, clients: Tensor) -> Tensor:
        """The key of each client's directions in this round, ``[clients]``; everybody can compute it."""
        return keys.fold(keys.fold(server["seed"], server["run/round"]), clients)

    def request(self, server: Tree, clients: Tensor) -> Exchange:
        shared, _ = self.broadcast(server, clients)
        missed = server["messages/sent"] - server["messages/had"][clients]
        links = Links(torch.ones_like(clients), missed + len(clients) - 1)
        seeds = {"seed": self.seeds(server, clients)}
        return Exchange(self, {}, known=shared, kept=seeds, each=True, links=links)

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        model, run = tree.part(server, "model"), tree.part(server, "run")
        slopes = uploads.each["slopes"][uploads.weights > 0]
        seeds = self.seeds(server, uploads.clients)[uploads.weights > 0]
        terms = slopes.numel()
        factor = self.lr_schedule.factor(int(run["round"]), int(run["rounds"]))
        rate = self.lr * factor / (terms if self.scaling == "mean" else terms**0.5)
        for seed, slope, j in ordered(seeds, slopes):
            model = tree.add(model, direction(keys.fold(seed, j), model), -rate * slope)
        sent = server["messages/sent"] + len(uploads.clients)
        counts = {"sent": sent, "had": server["messages/had"].index_fill(0, uploads.clients, int(sent))}
        return server | tree.join(model=model, run=run | {"round": run["round"] + 1}, messages=counts)


def direction(key: Tensor, like: Tree) -> Tree:
    """The random direction N(0, I) of a key: each tensor from a key of its own, by the place of its name among all."""
    place = {name: i for i, name in enumerate(sorted(like))}
    return {
        name: keys.normal(keys.fold(key, place[name]), tuple(value.shape)).to(value.dtype)
        for name, value in like.items()
    }


def ordered(seeds: Tensor, slopes: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Each number with the seed of its machine and its place, in an order that does not depend on who came first."""
    for row in torch.argsort(seeds):
        for j, slope in enumerate(slopes[row]):
            yield seeds[row], slope, j
