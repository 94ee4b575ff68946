"""Several defences one after another."""

import functools
from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import keys
from tasks.attack.defences.defence import Defence, Offer
from tasks.attack.defences.design import Design
from tasks.attack.defences.noise import Noise
from tasks.attack.defences.protocol import Protocol
from tasks.attack.defences.prune import Prune
from tasks.attack.defences.validate import Validate
from tasks.config import one_of
from tasks.models import Model
from tasks.train.work import Work
from tasks.tree import Tree

Stage = one_of(Design, Protocol, Validate, Prune, Noise)


class Pipeline(Defence):
    """Several defences as one: the survey's three stages, and what is done to the update beside them.

    With one stage this is that stage.

    Source: "Exploring the Vulnerabilities of Federated Learning: A Deep Dive into Gradient Inversion Attacks", IEEE
    TPAMI 2026, the three-stage defence.
    """

    name: Literal["pipeline"] = "pipeline"
    stages: tuple[Stage, ...] = Field(
        (Design(), Protocol(epochs=5), Validate()), min_length=1, description="what comes after what"
    )

    def design(self, model: Model | None) -> Model | None:
        return functools.reduce(lambda found, stage: stage.design(found), self.stages, model)

    def protocol(self, work: Work) -> Work:
        return functools.reduce(lambda found, stage: stage.protocol(found), self.stages, work)

    def objection(self, offer: Offer) -> str | None:
        return next(filter(None, (stage.objection(offer) for stage in self.stages)), None)

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        for stage, own in zip(self.stages, self._keys(key), strict=True):
            delta = stage.protect(delta, own)
        return delta

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        return functools.reduce(lambda found, stage: stage.repeat(found, received), self.stages, simulated)

    def _keys(self, key: Tensor) -> list[Tensor]:
        """One for each stage; a single stage has the key itself."""
        return [keys.fold(key, i) for i in range(len(self.stages))] if len(self.stages) > 1 else [key]

    @property
    def says(self) -> str:
        return ", ".join(stage.says for stage in self.stages)
