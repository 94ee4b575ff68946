"""Another protocol: more local work, larger batches, and nobody with too few samples."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.attack.defences.defence import Defence, Offer
from tasks.train.work import Work

WORK = ("epochs", "steps", "batch_size")


class Protocol(Defence):
    """Clients take more local steps or larger batches before they send, or stay out if they have too few samples.

    The client's message is played once more by these rules, from the broadcast that was recorded.

    Source: "Exploring the Vulnerabilities of Federated Learning: A Deep Dive into Gradient Inversion Attacks", IEEE
    TPAMI 2026, the second stage of its defence.
    """

    name: Literal["protocol"] = "protocol"
    epochs: int | None = Field(None, ge=1, description="passes of a client over its data; null for the run's")
    steps: int | None = Field(None, ge=1, description="local steps in place of passes; null for the run's")
    batch_size: int | None = Field(
        None, ge=0, description="samples a local step, 0 for all of the client's at once; null for the run's"
    )
    min_samples: int = Field(1, ge=1, description="clients with fewer samples stay out")

    def protocol(self, work: Work) -> Work:
        changes = {name: value for name in WORK if (value := getattr(self, name)) is not None}
        if self.epochs and not self.steps and work.steps:
            changes["steps"] = None
        return type(work)(**(dict(work) | changes)) if changes else work

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.epochs and self.steps:
            raise ValueError("steps take the place of epochs: give one of them")
        return self

    def objection(self, offer: Offer) -> str | None:
        held = len(offer.y)
        return f"it has {held} samples, fewer than {self.min_samples}" if held < self.min_samples else None

    @property
    def says(self) -> str:
        parts = [
            f"{self.epochs} passes over the data" if self.epochs else "",
            f"{self.steps} local steps" if self.steps else "",
            {None: "", 0: "all samples in one batch"}.get(self.batch_size, f"batches of {self.batch_size}"),
            f"no client under {self.min_samples} samples" if self.min_samples > 1 else "",
        ]
        return f"had the protocol been {', '.join(filter(None, parts)) or 'as it was'}"
