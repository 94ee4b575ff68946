"""How much of each neighbour goes into a node's next model.

x_i <- w_ii x_i + sum over the neighbours j of w_ij x_j,    with w_ii = 1 - sum of w_ij
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tasks.config import Config, one_of


class Uniform(Config):
    """The plain mean of a node's own model and those that it hears: w_ij = 1 / (k + 1) with k neighbours."""

    name: Literal["uniform"] = "uniform"
    needs_symmetry: ClassVar[bool] = False

    def weights(self, links: Tensor) -> Tensor:
        """w_ij, float64 ``[nodes, nodes]`` with a diagonal of 0, from who hears whom."""
        return links.double() / (links.sum(1, keepdim=True) + 1)


class Conservative(Config):
    """A fixed share of a node's own model: w_ii = beta, and the mean of those that it hears for the rest.

    With beta = 1 nothing is mixed.

    Source: Tian et al., "Vanishing Variance Problem in Fully Decentralized Neural-Network Systems", arXiv:2404.04616,
    2024, with beta = 1/2.
    """

    name: Literal["conservative"] = "conservative"
    needs_symmetry: ClassVar[bool] = False
    beta: float = Field(0.5, ge=0, le=1, description="share of a node's own model")

    def weights(self, links: Tensor) -> Tensor:
        """w_ij, float64 ``[nodes, nodes]`` with a diagonal of 0, from who hears whom."""
        return (1 - self.beta) * links.double() / links.sum(1, keepdim=True).clamp(min=1)


class Metropolis(Config):
    """w_ij = 1 / (1 + the larger number of neighbours of i and j), so that mixing keeps the mean of all models.

    On a graph in which all have as many neighbours these are the uniform weights.

    Source: Xiao, Boyd and Lall, "A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus", IPSN 2005,
    section 4.
    """

    name: Literal["metropolis"] = "metropolis"
    needs_symmetry: ClassVar[bool] = True

    def weights(self, links: Tensor) -> Tensor:
        """w_ij, float64 ``[nodes, nodes]`` with a diagonal of 0, from who hears whom."""
        degrees = links.sum(1)
        return links.double() / (1 + degrees[:, None].maximum(degrees[None]))


Mixing = one_of(Uniform, Conservative, Metropolis)
