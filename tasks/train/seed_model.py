"""What the server does with samples of its own before it asks any client."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch.func import grad

from tasks import keys, tree
from tasks.config import Config, one_of
from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree


class NoSeedModel(Config):
    """Nothing: the first round starts from the network as it is built."""

    name: Literal["none"] = "none"

    def parameters(self, network: Network, data: Federation, seed: int) -> Tree:
        """The model that the first round starts from."""
        return network.parameters

    def conflicts(self, public: int) -> Iterator[str]:
        """What is wrong where the server owns ``public`` samples."""
        yield from ()


class PublicSeedModel(NoSeedModel):
    """Some steps of SGD on the public samples, which the server owns.

    w <- w - lr * mean of the gradients of ``batch_size`` public samples,   ``steps`` times

    No client is asked, so it costs neither bytes nor privacy. With no steps this is ``none``.

    Source: "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025, whose seed models
    are trained on another, public corpus.
    """

    name: Literal["public"] = "public"
    steps: int = Field(40, ge=0, description="steps of SGD")
    lr: float = Field(0.1, gt=0, description="learning rate")
    batch_size: int = Field(16, ge=1, description="public samples a step, drawn anew in each")

    def parameters(self, network: Network, data: Federation, seed: int) -> Tree:
        x, y = (torch.from_numpy(np.array(values)) for values in (data.public_x, data.public_y))
        rng, params = keys.generator(seed, "seed model"), network.parameters
        slope = grad(lambda params, x, y: network.losses(params, x, y).mean())
        for _ in range(self.steps):
            rows = rng.choice(len(y), min(self.batch_size, len(y)), replace=False)
            params = tree.add(params, slope(params, x[rows], y[rows]), -self.lr)
        return params

    def conflicts(self, public: int) -> Iterator[str]:
        if not public:
            problem = "needs samples that the server owns; set partition.public above 0"
            yield f"train.seed_model.name = {self.name!r}: {problem}"


SeedModel = one_of(NoSeedModel, PublicSeedModel)
