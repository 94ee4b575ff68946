"""Defences that a recorded message is passed through before it is attacked. To add one: a file here, and its name in
the union."""

from tasks.attack.defences.defence import Defence
from tasks.attack.defences.noise import Noise
from tasks.attack.defences.none import NoDefence
from tasks.attack.defences.prune import Prune
from tasks.config import one_of

Protection = one_of(NoDefence, Noise, Prune)

__all__ = ["Defence", "NoDefence", "Noise", "Protection", "Prune"]
