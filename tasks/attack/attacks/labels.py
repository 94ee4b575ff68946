"""Label recovery."""

from typing import ClassVar, Literal

from tasks.attack import label_leak
from tasks.attack.attacks.attack import Family, OnMessages
from tasks.attack.case import Case
from tasks.attack.guesses import Labels


class LabelRecovery(OnMessages):
    """Reads how many samples of each class a client has off the gradient of the last layer, in closed form.

    n_c = B (q_c - db_c / a): see :func:`tasks.attack.label_leak.counts`. Exact for one sample.

    Source: Geng et al., "Towards General Deep Leakage in Federated Learning", 2021; Yin et al., "See through Gradients:
    Image Batch Recovery via GradInversion", CVPR 2021, section 3.1.
    """

    name: Literal["labels"] = "labels"
    family: ClassVar[Family] = "inference"
    assumes: ClassVar[str] = "the number of samples"

    def obstacle(self, case: Case) -> str | None:
        found = label_leak.counts(case)
        return found if isinstance(found, str) else None

    def guess(self, case: Case) -> Labels:
        return Labels(case, label_leak.labels(case))
