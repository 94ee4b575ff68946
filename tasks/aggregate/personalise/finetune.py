"""Local fine-tuning of the released model."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, vmap

from tasks import tree
from tasks.aggregate.personalise.personalisation import Personalisation
from tasks.keys import generator
from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree

STACK = 64
"""Clients that are fine-tuned as one stacked model."""


class FineTune(Personalisation):
    """Each client goes on from the released model for a few epochs of SGD on its own training samples.

    With lr = 0, and for a client without training samples, this is the released model.

    Source: Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local Adaptation", arXiv:2002.04758, 2020,
    section 4.1.
    """

    name: Literal["finetune"] = "finetune"
    lr: float = Field(0.05, ge=0, description="learning rate")
    epochs: int = Field(1, ge=1, description="passes over a client's training samples")
    batch_size: int = Field(16, ge=1, description="samples a step; the last batch of a pass may have fewer")

    def adapt(
        self, network: Network, released: Tree, federation: Federation, clients: np.ndarray, seed: int
    ) -> Iterator[tuple[np.ndarray, Tree]]:
        steps = -(-federation.sizes[clients] // self.batch_size)
        for count in np.unique(steps):
            alike = clients[steps == count]
            for start in range(0, len(alike), STACK):
                group = alike[start : start + STACK]
                order = np.stack([self.order(federation.train(int(c)), seed, int(c)) for c in group])
                yield group, self.train(network, tree.repeat(released, len(group)), federation, order)

    def order(self, samples: np.ndarray, seed: int, client: int) -> np.ndarray:
        """The positions that each step uses, int64 ``[steps, batch]``, with -1 as padding."""
        random, padding = generator(seed, "personalise", client), -len(samples) % self.batch_size
        passes = (np.pad(random.permutation(samples), (0, padding), constant_values=-1) for _ in range(self.epochs))
        return np.concatenate(list(passes)).reshape(-1, self.batch_size)

    def train(self, network: Network, models: Tree, federation: Federation, order: np.ndarray) -> Tree:
        """``models`` ``[clients, ...]`` after the steps of ``order`` ``[clients, steps, batch]``."""

        def loss(params: Tree, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            return torch.dot(network.losses(params, x, y), weight) / weight.sum()

        gradients = vmap(grad(loss))
        for step in range(order.shape[1]):
            batch = order[:, step]
            at = np.maximum(batch, 0)
            x, y = torch.from_numpy(federation.x[at]), torch.from_numpy(federation.y[at])
            weight = torch.from_numpy((batch >= 0).astype(np.float32))
            models = tree.add(models, gradients(models, x, y, weight), -self.lr)
        return models
