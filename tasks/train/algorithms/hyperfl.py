"""HyperFL: clients share what generates their networks, and keep what it is generated from."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import keys, tree
from tasks.config import Refused
from tasks.models import Network
from tasks.train.algorithms.private import Private
from tasks.train.work import Batches, ClientState, Setting
from tasks.tree import Tree


class HyperFL(Private):
    """Only the hypernetwork travels; the vector that it is fed with and the classifier stay with the client.

    first:   phi <- phi - head_lr * gradient                       the classifier, the extractor frozen
    then:    (varphi, v) <- (varphi, v) - lr * clipped gradient    hypernetwork and vector, the classifier frozen
    server:  varphi <- weighted mean of the clients' varphi

    A message is not the gradient of the network that saw the data. That is no guarantee: after one step on the
    hypernetwork the server can solve for the generated network and for its gradient exactly (attack `hyper_leak`);
    several steps with momentum blur that, and on some draws the image comes back all the same. Needs
    `model.name: hyper`.

    Source: Guo et al., "A New Federated Learning Framework Against Gradient Inversion Attacks", AAAI 2025, section 4,
    algorithm 1. There the phases are counted in epochs, here in steps.
    """

    name: Literal["hyperfl"] = "hyperfl"
    lr: float = Field(0.02, gt=0, description="rate of hypernetwork and vector")
    head_lr: float = Field(0.1, gt=0, description="rate of the classifier (lr_g)")
    steps: int = Field(30, ge=1, description="steps on hypernetwork and vector")
    head_steps: int = Field(6, ge=0, description="steps on the classifier before them")
    epochs: int = Field(1, ge=1, le=1, description="of no effect: work is counted in steps")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum in both phases; starts at 0 in each round")
    keep_momentum: Literal[False] = Field(False, description="no")
    weight_decay: float = Field(5e-4, ge=0, description="L2 pull towards 0 of what is trained in a phase")
    clip: float = Field(50.0, gt=0, description="greatest norm of the hypernetwork's gradient, and of the vector's")
    start: Literal["identical", "independent"] = Field(
        "identical",
        description="vectors and classifiers at first: the same for all and public, or drawn by each client",
    )

    @property
    def batches(self) -> Batches:
        return Batches(1, self.batch_size, self.head_steps + self.steps)

    @property
    def idle_steps(self) -> int:
        return self.head_steps

    def at_home(self, model: Tree) -> list[str]:
        return [name for name in model if name == "embedding" or name.startswith("classifier.")]

    def conflicts(self, model: str) -> Iterator[str]:
        if model != "hyper":
            yield f"train.algorithm.name = {self.name!r}: trains a hypernetwork; use it with model.name: hyper"

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        if "embedding" not in params:
            where, allowed = "params.yaml: train.algorithm.name", "the model has no vector that it is generated from"
            raise Refused(where, self.name, allowed, "Use it with model.name: hyper")
        return super().server_init(params, setting)

    def client_memory(self, shared: Tree) -> Tree:
        return super().client_memory(shared) | {"fresh": torch.ones_like(shared["lr"])}

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState:
        state = super().client_init(shared, own, memory)
        return state._replace(optimizer=tree.zeros_like(state.params))

    def client_step(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[ClientState, Tree]:
        if self.start == "independent":
            first = (state.memory["fresh"] > 0) & (state.steps == 0)
            own = {
                name: torch.where(first, value, state.params[name]) for name, value in self.drawn(state, key).items()
            }
            state = state._replace(params=state.params | own)
        gradient, metrics = self.gradient(network, state, batch, key)
        generator = {name: value for name, value in gradient.items() if name not in self.at_home(gradient)}
        gradient |= shortened(generator, self.clip) | shortened({"embedding": gradient["embedding"]}, self.clip)
        gradient = tree.add(gradient, state.params, self.weight_decay)
        heads_turn = state.steps < self.head_steps
        rate = state.shared["lr"]
        params, moments = {}, {}
        for name, value in state.params.items():
            own = name.startswith("classifier.")
            turn = heads_turn if own else ~heads_turn
            moment = gradient[name] + self.momentum * state.optimizer[name]
            moments[name] = torch.where(turn, moment, state.optimizer[name])
            step = rate * (self.head_lr / self.lr) if own else rate
            params[name] = torch.where(turn, value - step * moment, value)
        return state._replace(params=params, optimizer=moments, steps=state.steps + 1), metrics

    def drawn(self, state: ClientState, key: Tensor) -> Tree:
        """A vector and a classifier of the client's own, of the same spread as those of the model as it was built."""
        names = self.at_home(state.params)
        sizes = {name: state.params[name].square().mean().sqrt() for name in names}
        shapes = {name: tuple(state.params[name].shape) for name in names}
        return {name: sizes[name] * keys.normal(keys.fold(key, i), shapes[name]) for i, name in enumerate(names)}

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        upload, memory = super().client_final(shared, state)
        return upload, memory | {"fresh": torch.zeros_like(state.memory["fresh"])}


def shortened(values: Tree, norm: float) -> Tree:
    """``values``, scaled down to a Euclidean norm of ``norm`` where they are longer."""
    return tree.scale(values, (norm / tree.norm(values).clamp(min=1e-12)).clamp(max=1.0))
