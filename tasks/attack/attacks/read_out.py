"""Reading samples out of a linear first layer, in closed form."""

from typing import ClassVar, Literal

from pydantic import Field

from tasks.attack import layers
from tasks.attack.attacks.attack import Family, Inversion
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
    family: ClassVar[Family] = "analytics"
    assumes: ClassVar[str] = "the number of samples"
    tolerance: float = Field(1e-3, gt=0, description="largest difference between rows that agree, in units of the data")

    def obstacle(self, case: Case) -> str | None:
        layer = layers.first(case, case.gradient)
        return super().obstacle(case) or (layer if isinstance(layer, str) else None)

    def guess(self, case: Case) -> Reconstruction:
        layer = layers.first(case, case.gradient)
        rows, told = layers.candidates(layer, self.tolerance)
        return Reconstruction(case, layers.plausible(case, rows, told, self.tolerance), None, 0)
