"""Defences against which a recorded message is attacked once more. To add one: a file here, and its name in the union;
one that composes with others stands in the union of ``pipeline`` too."""

from tasks.attack.defences.defence import Defence, Offer
from tasks.attack.defences.design import Design
from tasks.attack.defences.noise import Noise
from tasks.attack.defences.none import NoDefence
from tasks.attack.defences.pipeline import Pipeline
from tasks.attack.defences.protocol import Protocol
from tasks.attack.defences.prune import Prune
from tasks.attack.defences.validate import Validate
from tasks.config import one_of

Protection = one_of(NoDefence, Noise, Prune, Design, Protocol, Validate, Pipeline)

__all__ = [
    "Defence", "Design", "NoDefence", "Noise", "Offer", "Pipeline", "Protection", "Protocol", "Prune", "Validate",
]  # fmt: skip
