"""Data drawn on purpose to differ between clients."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.keys import generator
from tasks.partition.federation import Kind
from tasks.partition.samples import Rows, Samples, Source, hold_out


class Synthetic(Source):
    """Synthetic(alpha, beta): every client has a linear model and an input distribution of its own.

    Client k: u ~ N(0, alpha), B ~ N(0, beta); W, b ~ N(u, 1); v ~ N(B, 1) per input; x ~ N(v, diag(j^-1.2));
    y = argmax(W x + b). With ``iid`` all clients share one W, b ~ N(0, 1) and v = 0. Sizes are ``smallest`` plus a
    lognormal draw. The clients are in the column ``client``: give them to the clients of the federation with
    ``split: {name: column, by: client}``.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1; alpha and beta are
    variances there.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    name: Literal["synthetic"] = "synthetic"
    alpha: float = Field(1.0, ge=0, le=100, description="how much the clients' models differ")
    beta: float = Field(1.0, ge=0, le=100, description="how much the clients' inputs differ")
    iid: bool = Field(False, description="one model and one input distribution for all clients")
    sources: int = Field(30, ge=1, le=100_000, description="clients that the data are drawn for")
    dimension: int = Field(60, ge=1, le=10_000, description="inputs")
    classes: int = Field(10, ge=2, le=1000, description="classes")
    smallest: int = Field(50, ge=2, le=100_000, description="samples that every client has at least")
    size_mean: float = Field(4.0, ge=0, le=8, description="mean of the logarithm of the further samples")
    size_deviation: float = Field(2.0, ge=0, le=3, description="standard deviation of that logarithm")

    def load(self, seed: int, test_fraction: float) -> Samples:
        rng = generator(seed, "synthetic")
        sizes = self.smallest + np.floor(rng.lognormal(self.size_mean, self.size_deviation, self.sources)).astype(
            np.int64
        )
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        deviation = np.arange(1, self.dimension + 1) ** -0.6
        x = np.empty((offsets[-1], self.dimension), np.float32)
        y = np.empty(offsets[-1], np.int64)
        shared = generator(seed, "synthetic", "shared").standard_normal((self.classes, self.dimension + 1))
        for k in range(self.sources):
            rng = generator(seed, "synthetic", k)
            here = slice(offsets[k], offsets[k + 1])
            if self.iid:
                model, centre = shared, 0.0
            else:
                u, b = np.sqrt([self.alpha, self.beta]) * rng.standard_normal(2)
                model = u + rng.standard_normal((self.classes, self.dimension + 1))
                centre = b + rng.standard_normal(self.dimension)
            inputs = centre + deviation * rng.standard_normal((sizes[k], self.dimension))
            x[here] = inputs
            y[here] = np.argmax(inputs @ model[:, :-1].T + model[:, -1], axis=1)
        client = np.repeat(np.arange(self.sources), sizes)
        # Held out within each client, not within each label: every client must keep samples to train on.
        train, test = hold_out(client, test_fraction, generator(seed, "test set"))
        return Samples(
            x=Rows(train, x.__getitem__),
            y=y[train],
            test_x=Rows(test, x.__getitem__),
            test_y=y[test],
            kind="table",
            shape=(self.dimension,),
            class_names=tuple(str(label) for label in range(self.classes)),
            columns={"client": client[train]},
            test_columns={"client": client[test]},
        )
