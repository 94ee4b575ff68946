"""Another network."""

from typing import Literal

from pydantic import Field

from tasks.attack.defences.defence import Defence
from tasks.models import Model
from tasks.models.convnet import ConvNet


class Design(Defence):
    """Everyone agrees on another network: deeper, or without sigmoids.

    The client's message is played once more on that network, fresh as it would be in the first round: to be compared
    with messages of a first round.

    Source: "Exploring the Vulnerabilities of Federated Learning: A Deep Dive into Gradient Inversion Attacks", IEEE
    TPAMI 2026, the first stage of its defence.
    """

    name: Literal["design"] = "design"
    model: Model = Field(
        ConvNet(channels=(8, 16, 16, 16, 16, 16, 16), strides=(1, 2, 2, 1, 1, 1, 1)),
        description="the network in place of the run's",
    )

    def design(self, model: Model | None) -> Model:
        return self.model

    @property
    def says(self) -> str:
        return f"had the network been a fresh {self.model.name}"
