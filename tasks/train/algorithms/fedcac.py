"""FedCAC: share what is insensitive with everybody, and what is sensitive with those who are alike."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tasks import tree
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.algorithms.server_optimizers import SGD, ServerOptimizer
from tasks.train.work import Exchange, Setting, Uploads
from tasks.tree import Tree

TINY, SMALLEST = 1e-10, 1e-20
"""A threshold of at most the first marks too much: then all above the second are critical."""


class FedCAC(FedAvg):
    """Every client has a model of its own: critical parameters are averaged with alike clients, the others with all.

    client i:   w_i from v_i by local training
    critical:   M_i = 1 at the tau * n largest of |(w_i - v_i) * w_i| in each tensor of n entries
    overlap:    O_ij = 1 - |M_i - M_j|_1 / (2 |M_i|_1)
    alike:      C_i = {i} and all j with O_ij >= O_mean + (t / beta) (O_max - O_mean), in round t = 1, 2, ...
    server:     v_i <- M_i * mean of w_j over C_i + (1 - M_i) * weighted mean of all w_j

    With tau = 0 every v_i is FedAvg's model, with beta = 0 critical parameters stay at home. Only clients of the round
    take part in its means. What travels down is each client's own model, as long as FedAvg's broadcast.

    Source: Wu et al., "Bold but Cautious: Unlocking the Potential of Personalized Federated Learning through Cautiously
    Aggressive Collaboration", ICCV 2023, section 3.
    """

    single_uploads: ClassVar[bool] = True
    name: Literal["fedcac"] = "fedcac"
    tau: float = Field(0.5, ge=0, le=1, description="share of each tensor that is critical")
    beta: int = Field(100, ge=0, description="round after which critical parameters are no longer shared")
    server: ServerOptimizer = Field(SGD(), description="none: the server hands out means, so it has no step to take")

    @field_validator("server")
    @classmethod
    def _no_step(cls, server: ServerOptimizer) -> ServerOptimizer:
        if server != SGD():
            raise ValueError("fedcac's server hands out means and takes no step: leave it out")
        return server

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        own = tree.map(torch.clone, tree.repeat(params, setting.clients))
        # Of two clients that were never in a round together it is not known.
        overlap = torch.full((setting.clients, setting.clients), -torch.inf).fill_diagonal_(1.0)
        return super().server_init(params, setting) | tree.join(personal=own) | {"overlap": overlap}

    def broadcast(self, server: Tree, clients: Tensor) -> tuple[Tree, Tree]:
        shared, _ = super().broadcast(server, clients)
        rest = {name: value for name, value in shared.items() if not name.startswith("model/")}
        return rest, tree.join(model=tree.take(tree.part(server, "personal"), clients))

    def request(self, server: Tree, clients: Tensor) -> Exchange:
        return super().request(server, clients)._replace(each=True)

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        arrived = uploads.weights > 0
        clients, weights = uploads.clients[arrived], uploads.weights[arrived]
        change = tree.take(tree.part(uploads.each, "delta"), arrived)
        personal, run = tree.part(server, "personal"), tree.part(server, "run")
        trained = tree.add(tree.take(personal, clients), change)
        masks = tree.map(self.critical, change, trained)
        overlap = overlaps(masks)
        alike = self.alike(overlap, int(run["round"]) + 1)
        mean = tree.map(lambda value: torch.tensordot(weights / weights.sum(), value, 1), trained)
        closer = tree.map(lambda value: torch.tensordot(alike / alike.sum(1, keepdim=True), value, 1), trained)
        own = tree.map(torch.where, masks, closer, mean)
        return server | tree.join(
            model=mean,
            personal=tree.map(lambda old, new: old.index_copy(0, clients, new), personal, own),
            run=run | {"round": run["round"] + 1},
        ) | {"overlap": server["overlap"].index_put((clients[:, None], clients[None]), overlap)}  # fmt: skip

    def critical(self, change: Tensor, trained: Tensor) -> Tensor:
        """Which entries of one tensor, stacked ``[clients, ...]``, are critical to each client: bool of that shape."""
        sensitivity = (change * trained).abs().reshape(len(change), -1)
        count = int(self.tau * sensitivity.shape[1])
        if not count:
            return torch.zeros_like(change, dtype=torch.bool)
        threshold = sensitivity.topk(count, dim=1).values[:, -1:]
        # Parameters that did not move tie at zero; they must not all become critical.
        live = torch.where(sensitivity > SMALLEST, sensitivity, torch.inf).amin(1, keepdim=True)
        return (sensitivity >= torch.where(threshold > TINY, threshold, live)).view_as(change)

    def alike(self, overlap: Tensor, round_: int) -> Tensor:
        """Whose critical parameters are averaged with whose: 1 or 0, ``[clients, clients]``; row i is C_i."""
        clients = len(overlap)
        itself = torch.eye(clients, dtype=torch.bool)
        if clients == 1 or round_ > self.beta:
            return itself.float()
        others = overlap[~itself]
        threshold = others.mean() + round_ / self.beta * (others.max() - others.mean())
        return (itself | (overlap >= threshold)).float()

    def diagnostics(self, server: Tree) -> dict[str, float]:
        """Mean and maximum of the overlap of two clients, as it was when they were last in a round together."""
        overlap = server["overlap"]
        pairs = overlap[overlap.isfinite() & ~torch.eye(len(overlap), dtype=torch.bool)]
        return {"overlap": float(pairs.mean()), "overlap_max": float(pairs.max())} if len(pairs) else {}

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree:
        return tree.take(tree.part(server, "personal"), clients)


def overlaps(masks: Tree) -> Tensor:
    """O_ij of stacked masks, ``[clients, clients]``: 1 where i's and j's critical parameters are the same."""
    flat = torch.cat([mask.reshape(len(mask), -1) for mask in masks.values()], 1).float()
    size = flat.sum(1)
    differ = size[:, None] + size[None] - 2 * flat @ flat.T
    return 1 - differ / (2 * size[:, None]).clamp(min=1)
