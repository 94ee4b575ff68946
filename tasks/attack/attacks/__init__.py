"""Attacks. To add one: a file here, and its name in the union."""

from tasks.attack.attacks.attack import Attack
from tasks.attack.attacks.ci_net import CINet
from tasks.attack.attacks.dlg import DLG
from tasks.attack.attacks.fishing import Fishing
from tasks.attack.attacks.hyper_leak import HyperLeak
from tasks.attack.attacks.idlg import IDLG
from tasks.attack.attacks.imprint import Imprint
from tasks.attack.attacks.inverting_gradients import InvertingGradients
from tasks.attack.attacks.labels import LabelRecovery
from tasks.attack.attacks.learning_to_invert import LearningToInvert
from tasks.attack.attacks.membership import Membership
from tasks.attack.attacks.read_out import ReadOut
from tasks.attack.attacks.trap_weights import TrapWeights
from tasks.config import one_of

Method = one_of(
    InvertingGradients, DLG, IDLG, CINet, LearningToInvert, ReadOut, HyperLeak, Imprint, TrapWeights, Fishing,
    LabelRecovery, Membership,
)  # fmt: skip

__all__ = [
    "DLG", "IDLG", "Attack", "CINet", "Fishing", "HyperLeak", "Imprint", "InvertingGradients", "LabelRecovery",
    "LearningToInvert", "Membership", "Method", "ReadOut", "TrapWeights",
]  # fmt: skip
