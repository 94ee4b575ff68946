"""Feature skews: the same thing looks different at every client. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.partition.skews.distortion import Distortion
from tasks.partition.skews.domain import Domain
from tasks.partition.skews.noise import Noise
from tasks.partition.skews.none import NoSkew
from tasks.partition.skews.rotation import Rotation

Skew = one_of(NoSkew, Rotation, Noise, Domain)

__all__ = ["Distortion", "Domain", "NoSkew", "Noise", "Rotation", "Skew"]
