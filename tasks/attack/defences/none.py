"""No defence beyond what the run itself had."""

from typing import Literal

from tasks.attack.defences.defence import Defence


class NoDefence(Defence):
    """The message as it was recorded, with whatever protection the run itself had."""

    name: Literal["none"] = "none"

    @property
    def says(self) -> str:
        return "as it was recorded"
