"""FedSpeed: a proximal term whose bias is corrected, and gradients that look for flat minima."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.models import Network
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.algorithms.learning_rates import Exponential, LearningRate
from tasks.train.uplink.clip import clip
from tasks.train.work import ClientState, Setting, Uploads
from tasks.tree import Tree


class FedSpeed(FedAvg):
    """Steps along a gradient taken uphill, pulled towards the broadcast model less what the pull has cost so far.

    client k:  g1 = grad at w,  g2 = grad at w + rho g1 / ||g1||, on the same batch,  q = (1 - alpha) g1 + alpha g2
               w <- w - lr (q - dual_k + prox (w - x))            K times, from w = x
               dual_k <- dual_k - prox (w - x)
    server:    x <- x + mean of (w_k - x) - mean of dual_k / prox over ALL clients, the absent ones with their last

    Client and server keep -dual_k / prox, which is the sum of the client's changes, and the server its mean: both from
    the changes as they arrived, so that neither codecs nor clipping part the two. Noise on the sum stays in the mean.

    With rho = 0 this is FedDyn. With ``dual_average: none`` no dual is kept: FedProx with rho = 0, FedSAM with prox = 0
    and alpha = 1, and with rho = prox = 0 it is FedAvg, to the last bit. prox = 0 alone is not FedAvg: the server still
    adds the mean of all changes so far. ``dual_average: sampled`` is the listing of the paper, in which the server
    averages the duals of the cohort alone: with few clients of many it can diverge.

    Source: Sun et al., "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy",
    ICLR 2023, algorithm 1; the ascent by the normalised gradient, the mean over all clients and the defaults are those
    of its authors' code.
    """

    name: Literal["fedspeed"] = "fedspeed"
    lr_schedule: LearningRate = Field(
        Exponential(decay=0.998), description="how the local rate changes over the rounds"
    )
    epochs: int = Field(5, ge=1, description="passes of a client over its data (E)")
    batch_size: int = Field(50, ge=0, description="samples a local step (B); 0 for all of the client's at once")
    weight_decay: float = Field(1e-3, ge=0, description="L2 pull of the local SGD towards 0")
    weighting: Literal["uniform"] = Field("uniform", description="weight of a client in the mean; a dual has no other")
    prox: float = Field(0.1, ge=0, description="pull towards the broadcast model (1 / lambda)")
    rho: float = Field(0.1, ge=0, description="length of the step uphill; 0 takes none, and one gradient a step")
    alpha: float = Field(1.0, ge=0, le=1, description="share of the gradient taken uphill")
    normalise: bool = Field(True, description="make the step uphill as long as rho, whatever the gradient's length")
    clip_norm: float | None = Field(10.0, gt=0, description="greatest Euclidean norm of a gradient q; null: any")
    dual_average: Literal["all", "sampled", "none"] = Field(
        "all", description="whose duals the server averages: all clients', the cohort's (unstable), or none are kept"
    )

    @property
    def accumulates(self) -> bool:
        return self.dual_average != "none"

    def gradient(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[Tree, Tree]:
        gradient, metrics = self.slope(network, state, batch, key)
        if self.rho and self.alpha:
            length = self.rho / (tree.norm(gradient) + 1e-7) if self.normalise else self.rho
            uphill = state._replace(params=tree.add(state.params, gradient, length))
            flat, _ = self.slope(network, uphill, batch, key)
            gradient = tree.map(lambda g1, g2: (1 - self.alpha) * g1 + self.alpha * g2, gradient, flat)
        if self.clip_norm:
            gradient = clip(gradient, self.clip_norm)
        pull = tree.subtract(state.params, state.start)
        if self.dual_average != "none":
            pull = tree.add(pull, tree.part(state.memory, "drift"))
        return tree.add(gradient, pull, self.prox), metrics

    def client_memory(self, shared: Tree) -> Tree:
        """``drift``: -dual_k / prox, the sum of the client's changes so far."""
        memory = super().client_memory(shared)
        if self.dual_average == "none":
            return memory
        return memory | tree.join(drift=tree.zeros_like(tree.part(shared, "model")))

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        upload, memory = super().client_final(shared, state)
        if self.dual_average != "sampled":
            return upload, memory
        delta = tree.part(upload, "delta")
        drift = tree.add(tree.part(memory, "drift"), delta)
        return tree.join(delta=tree.add(delta, drift)), memory | tree.join(drift=drift)

    def client_sent(self, shared: Tree, memory: Tree, arrived: Tree) -> Tree:
        if self.dual_average != "all":
            return memory
        return memory | tree.join(drift=tree.add(tree.part(memory, "drift"), tree.part(arrived, "delta")))

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        server = super().server_init(params, setting)
        return server | tree.join(drift=tree.zeros_like(params)) if self.dual_average == "all" else server

    def diagnostics(self, server: Tree) -> dict[str, float]:
        """The length of the mean of all clients' duals over -prox, which goes to 0 where they agree."""
        drift = tree.part(server, "drift")
        return {"length_of_the_mean_dual": float(tree.norm(drift))} if drift else {}

    @property
    def asynchronous(self) -> bool:
        return self.dual_average != "all"

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        if self.dual_average != "all":
            return super().server_update(server, uploads)
        delta = tree.part(uploads.mean(), "delta")
        drift = tree.add(tree.part(server, "drift"), delta, uploads.count / int(server["run/clients"]))
        step = tree.join(delta=tree.add(delta, drift))
        moved = super().server_update(server, uploads._replace(total=step, weight=torch.tensor(1.0)))
        return moved | tree.join(drift=drift)
