"""FedAvg with local demographic parity: each client is asked to treat two groups of its own alike."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from tasks.config import Refused
from tasks.models import Network
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import ClientState, weighted_mean
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.partition.federation import Meta


class Parity(FedAvg):
    """FedAvg whose local loss also pulls together how often each of two groups is given a class.

    loss(w) = L(w; batch) + lam * (mean of p over the batch's samples in the group - mean of p over its others)^2

    with p the probability of the class. It removes what disparity there is within clients, but not what comes of groups
    being at different clients. A batch without one of the two has no penalty; with lam = 0 this is FedAvg, to the last
    bit. An attacker who plays a client does not know its groups, and leaves the penalty out.

    Source: Hamman and Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
    Information Decomposition", ICLR 2024 (local debiasing of the experiments).
    """

    name: Literal["parity"] = "parity"
    lam: float = Field(2.0, ge=0, description="weight of the penalty (lambda)")
    group: int = Field(1, ge=0, description="number of the group, in order of names, that is compared with the others")
    outcome: int = Field(1, ge=0, description="number of the class that all should be given alike")

    def check(self, data: "Meta") -> None:
        where = "params.yaml: train.algorithm"
        if not data.groups:
            mend = "Set partition.dataset.group, or use fedavg"
            raise Refused(f"{where}.name", self.name, "the dataset has no groups", mend)
        for field, number, names in (
            ("group", self.group, data.groups.values),
            ("outcome", self.outcome, data.class_names),
        ):
            if number >= len(names):
                known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
                raise Refused(f"{where}.{field}", number, f"must be below {len(names)}: the data have {known}")

    def loss(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> Tensor:
        outputs = network.apply(state.params, batch["x"])
        fit = weighted_mean(cross_entropy(outputs, batch["y"], reduction="none"), batch["weight"])
        if "group" not in batch:
            return fit
        inside = batch["weight"] * (batch["group"] == self.group)
        outside, p = batch["weight"] - inside, outputs.softmax(-1)[:, self.outcome]
        gap = (p @ inside) / inside.sum().clamp(min=1) - (p @ outside) / outside.sum().clamp(min=1)
        both = (inside.sum() > 0) & (outside.sum() > 0)
        return fit + self.lam * both * gap**2
