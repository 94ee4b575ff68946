"""The ``attack`` section of `params.yaml`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from tasks.attack.attacks import InvertingGradients, LabelRecovery, Membership, Method, ReadOut
from tasks.attack.defences import NoDefence, Noise, Protection
from tasks.config import Config
from tasks.train.topologies import Server

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class AttackSettings(Config):
    """Stage 4: what can be read back out of the messages."""

    suite: tuple[Method, ...] = Field(
        (InvertingGradients(), ReadOut(), LabelRecovery(), Membership()), description="the attacks"
    )
    defences: tuple[Protection, ...] = Field(
        (NoDefence(), Noise()),
        min_length=1,
        description="what each recorded message is passed through before it is attacked again",
    )
    messages: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        4, description="how many of the recorded messages, fewest samples first"
    )
    budget: int = Field(800, ge=1, description="gradient evaluations that an attack may spend on one message")
    candidates: int = Field(
        2000, ge=10, description="most members, and most others, that membership attacks are asked about"
    )
    public: int = Field(1000, ge=2, description="most samples that an attacker owns; at most half of the test set")

    def conflicts(self, train: "TrainSettings") -> Iterator[str]:
        """What rules an attack or a defence out after a training with these settings."""
        for i, method in enumerate(self.suite):
            if method.malicious and not isinstance(train.topology, Server):
                yield (
                    f"attack.suite[{i}].name = {method.name!r}: needs a server that sends models of its own making, "
                    f"and with train.topology.name = {train.topology.name!r} no server sends a client its model"
                )
        for i, defence in enumerate(self.defences):
            if model := defence.design(None):
                for problem in train.algorithm.conflicts(model.name):
                    yield f"attack.defences[{i}]: cannot agree on the model {model.name!r} ({problem})"
            try:
                defence.protocol(train.algorithm)
            except ValidationError as error:
                name, why = train.algorithm.name, error.errors()[0]["msg"]
                yield f"attack.defences[{i}]: train.algorithm.name = {name!r} cannot follow this protocol ({why})"

    @property
    def needs_transcript(self) -> bool:
        """Whether an attack of the suite reads recorded messages."""
        return any(method.needs_transcript for method in self.suite)
