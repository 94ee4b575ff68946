"""Attacks. To add one: a file here, and its name in the union."""

from tasks.attack.attacks.attack import Attack
from tasks.attack.attacks.dlg import DLG
from tasks.attack.attacks.idlg import IDLG
from tasks.attack.attacks.inverting_gradients import InvertingGradients
from tasks.attack.attacks.labels import LabelRecovery
from tasks.attack.attacks.membership import Membership
from tasks.attack.attacks.read_out import ReadOut
from tasks.config import one_of

Method = one_of(InvertingGradients, DLG, IDLG, ReadOut, LabelRecovery, Membership)

__all__ = ["DLG", "IDLG", "Attack", "InvertingGradients", "LabelRecovery", "Membership", "Method", "ReadOut"]
