"""Reading samples out of a linear first layer, in closed form."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.attack import layers
from tasks.attack.attacks.attack import Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction


class ReadOut(Inversion):
    """Divides the rows of a linear first layer's gradient by those of its bias.

    x = dW_j / db_j  for every unit j that is active for one sample alone

    No search and no restarts: exact, for any loss, any number of local steps of SGD and any size of sample. A unit that
    several samples share gives a mixture of them; two units that agree give a sample, for mixtures differ. So rows that
    agree are taken as one candidate, and those are kept that most rows stand behind and that lie in the data's range.

    Source: Phong et al., "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", IEEE TIFS 2018,
    section 3; Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023, section 4.
    """

    name: Literal["read_out"] = "read_out"
    assumes: ClassVar[str] = "the number of samples"
    tolerance: float = Field(1e-3, gt=0, description="largest difference between rows that agree, in units of the data")

    def obstacle(self, case: Case) -> str | None:
        layer = layers.first(case, case.gradient)
        return super().obstacle(case) or (layer if isinstance(layer, str) else None)

    def guess(self, case: Case) -> Reconstruction:
        layer = layers.first(case, case.gradient)
        rows, told = candidates(layer, self.tolerance)
        low, high = case.data.range or (-torch.inf, torch.inf)
        inside = ((rows >= low - self.tolerance) & (rows <= high + self.tolerance)).all(1)
        # Stable sorts, the weightiest reason last; candidates come with the clearest signal first.
        ranked = torch.argsort(told, descending=True, stable=True)
        ranked = ranked[torch.argsort(inside[ranked].int(), descending=True, stable=True)]
        kept = rows[ranked[: case.context.samples]].clamp(low, high)
        return Reconstruction(case, kept.reshape(-1, *case.data.shape).float(), None, 0)


def candidates(layer: layers.Linear, tolerance: float) -> tuple[Tensor, Tensor]:
    """What the rows of a gradient say, those that agree taken together, the largest bias gradient first.

    Returns: candidates ``[found, features]`` in float64, and how many rows stand behind each ``[found]``.
    """
    weight, bias = layer.weight.double(), layer.bias.double()
    order = torch.argsort(bias.abs(), descending=True)
    order = order[bias[order].abs() > 1e-6 * bias.abs().max()]
    left = weight[order] / bias[order, None]
    rows, told = [], []
    while len(left):
        agree = (left - left[0]).abs().amax(1) <= tolerance
        rows.append(left[0])
        told.append(int(agree.sum()))
        left = left[~agree]
    return torch.stack(rows) if rows else left, torch.tensor(told, dtype=torch.int64)
