"""The server's optimisers: the mean of the clients' changes is their pseudo-gradient.

With D the mean of the deltas (uploaded model minus broadcast model), m and v moments and x the model:

    m = beta_1 m + (1 - beta_1) D          (SGD: m = beta_1 m + D)
    Adagrad  v = v + D^2
    Adam     v = beta_2 v + (1 - beta_2) D^2
    Yogi     v = v - (1 - beta_2) D^2 sign(v - D^2)
    x = x + lr m / (sqrt(v) + tau)         (SGD: x = x + lr m)

There is no bias correction, and v starts at tau^2, as in the source.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2; SGD with momentum is FedAvgM of Hsu et
al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.config import Config, one_of
from tasks.train.algorithms.learning_rates import Hold
from tasks.tree import Tree


class SGD(Config):
    """Gradient descent on the pseudo-gradient. With lr = 1 and no momentum the server takes the mean model: FedAvg.

    Source: Hsu et al. 2019, section 4.3 (momentum).
    """

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1.0, gt=0, description="server learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="beta_1")

    def init(self, params: Tree) -> Tree:
        return tree.join(m=tree.zeros_like(params)) if self.momentum else {}

    def apply(self, params: Tree, delta: Tree, moments: Tree) -> tuple[Tree, Tree]:
        """``(params, moments)`` after a step along ``delta``."""
        if not self.momentum:
            return tree.add(params, delta, self.lr), {}
        m = tree.add(delta, tree.part(moments, "m"), self.momentum)
        return tree.add(params, m, self.lr), tree.join(m=m)


class Adaptive(Config):
    """What Adagrad, Adam and Yogi share: a step of the first moment, scaled by the root of the second."""

    lr: float = Field(0.1, gt=0, description="server learning rate")
    beta_1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    tau: float = Field(1e-3, gt=0, description="degree of adaptivity: added to the root of the second moment")

    @property
    def momentum(self) -> float:
        """Momentum of the pseudo-gradient."""
        return self.beta_1

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment after a pseudo-gradient with this ``square``."""
        raise NotImplementedError

    def init(self, params: Tree) -> Tree:
        start = tree.map(lambda value: torch.full_like(value, self.tau**2), params)
        return tree.join(m=tree.zeros_like(params), v=start)

    def apply(self, params: Tree, delta: Tree, moments: Tree) -> tuple[Tree, Tree]:
        """``(params, moments)`` after a step along ``delta``."""
        m = tree.map(lambda m, d: self.beta_1 * m + (1 - self.beta_1) * d, tree.part(moments, "m"), delta)
        v = tree.map(lambda v, d: self.second(v, d.square()), tree.part(moments, "v"), delta)
        stepped = tree.map(lambda x, m, v: x + self.lr * m / (v.sqrt() + self.tau), params, m, v)
        return stepped, tree.join(m=m, v=v)


class Adagrad(Adaptive):
    """v = v + D^2. Source: Reddi et al. 2021, algorithm 2, FedAdagrad."""

    name: Literal["adagrad"] = "adagrad"
    beta_1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


class Adam(Adaptive):
    """v = beta_2 v + (1 - beta_2) D^2. Source: Reddi et al. 2021, algorithm 2, FedAdam."""

    name: Literal["adam"] = "adam"
    beta_2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta_2 * v + (1 - self.beta_2) * square


class Yogi(Adaptive):
    """v = v - (1 - beta_2) D^2 sign(v - D^2). Source: Reddi et al. 2021, algorithm 2, FedYogi."""

    name: Literal["yogi"] = "yogi"
    beta_2: float = Field(0.99, ge=0, lt=1, description="speed of the second moment")

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta_2) * square * torch.sign(v - square)


class LAMB(Config):
    """Adam whose step in each tensor is as long as ``lr`` of the tensor itself, however long its pseudo-gradient.

    m = beta_1 m + (1 - beta_1) D,   v = beta_2 v + (1 - beta_2) D^2,   both corrected for their start at 0
    u = m / (sqrt(v) + epsilon) - weight_decay x
    x = x + lr (||x|| / ||u||) u,   tensor by tensor, with ratio 1 where either norm is 0

    D may be scaled at will, but for ``epsilon``. Without the trust ratio this is Adam as its authors wrote it, with the
    correction that the other optimisers here leave out.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020, algorithm
    2; the defaults are those of "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS
    2025.
    """

    name: Literal["lamb"] = "lamb"
    lr: float = Field(0.002, gt=0, description="server learning rate, a share of each tensor's length")
    lr_schedule: Hold = Field(Hold(), description="how the server's rate changes over its steps")
    beta_1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta_2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-6, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="pull towards 0, before the trust ratio")
    trust_ratio: bool = Field(True, description="scale each tensor's step by its length over the step's")

    @property
    def momentum(self) -> float:
        """Momentum of the pseudo-gradient."""
        return self.beta_1

    def init(self, params: Tree) -> Tree:
        return tree.join(m=tree.zeros_like(params), v=tree.zeros_like(params)) | {"steps": torch.tensor(0)}

    def apply(self, params: Tree, delta: Tree, moments: Tree) -> tuple[Tree, Tree]:
        """``(params, moments)`` after a step along ``delta``."""
        done = int(moments["steps"])
        m = tree.map(lambda m, d: self.beta_1 * m + (1 - self.beta_1) * d, tree.part(moments, "m"), delta)
        v = tree.map(lambda v, d: self.beta_2 * v + (1 - self.beta_2) * d.square(), tree.part(moments, "v"), delta)
        missing_m, missing_v = 1 - self.beta_1 ** (done + 1), 1 - self.beta_2 ** (done + 1)
        lr = self.lr * self.lr_schedule.factor(done, 0)

        def step(x: Tensor, m: Tensor, v: Tensor) -> Tensor:
            u = m / missing_m / ((v / missing_v).sqrt() + self.epsilon) - self.weight_decay * x
            return x + lr * self._trust(x, u) * u

        stepped = tree.map(step, params, m, v)
        return stepped, tree.join(m=m, v=v) | {"steps": moments["steps"] + 1}

    def _trust(self, x: Tensor, u: Tensor) -> Tensor | float:
        """The trust ratio of a step ``u`` from ``x``."""
        if not self.trust_ratio:
            return 1.0
        ratio = x.norm() / u.norm()
        return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)


ServerOptimizer = one_of(SGD, Adagrad, Adam, Yogi, LAMB)
