"""Mechanisms of differential privacy. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.privacy.adaptive import Adaptive
from tasks.train.privacy.gaussian import Gaussian
from tasks.train.privacy.local import Local
from tasks.train.privacy.mechanism import Mechanism, Participation, Sums
from tasks.train.privacy.none import NoPrivacy

Privacy = one_of(NoPrivacy, Gaussian, Adaptive, Local)

__all__ = ["Mechanism", "Participation", "Privacy", "Sums"]
