"""What could stand between a client's samples and an attacker, in the order in which it comes into play."""

from typing import NamedTuple

from torch import Tensor

from tasks.config import Config
from tasks.models import Model, Network
from tasks.train.work import Work
from tasks.tree import Tree


class Offer(NamedTuple):
    """What a client can look at before it does anything with what it was sent.

    ``agreed`` is the network that all had settled on, ``network`` and ``model`` are what the server sent; ``known`` the
    models that the client has seen before, the agreed start among them; ``x`` and ``y`` its own training samples.
    """

    agreed: Network
    network: Network
    model: Tree
    known: list[Tree]
    x: Tensor
    y: Tensor


class Defence(Config):
    """The base: no defence at any stage. A defence overrides what it changes.

    Before training, :meth:`design` and :meth:`protocol` say what everyone agrees on; the client then looks at what it
    is sent and may stay out (:meth:`objection`); what it sends passes :meth:`protect`.
    """

    def design(self, model: Model | None) -> Model | None:
        """The network that is agreed on, in place of ``model``; of None, the one that it always is, if there is one."""
        return model

    def protocol(self, work: Work) -> Work:
        """What clients do in a round, in place of ``work``."""
        return work

    def objection(self, offer: Offer) -> str | None:
        """Why the client stays out of the round, or None."""
        return None

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        """``delta`` as the server would have received it. ``key`` is an int64 scalar tensor that the attacker lacks."""
        return delta

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        """What an adaptive attacker, who knows the method, does to the update that it simulates, so as to compare it
        with the ``received`` one: the part of :meth:`protect` that is no secret. Differentiable."""
        return simulated

    @property
    def says(self) -> str:
        """The defence in words, to follow "the message"."""
        raise NotImplementedError
