"""What every feature skew is."""

from typing import ClassVar

import numpy as np

from tasks.config import Config, Refused

Range = tuple[float, float] | None


class Distortion(Config):
    """The base of all feature skews. Only the clients' samples change; the global test set stays as it is."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "table")
    """What it can be applied to."""

    def check(self, kind: str) -> None:
        """Raises ``Refused`` where samples of this kind cannot be changed so."""
        if kind not in self.kinds:
            allowed = f"works on {' and '.join(self.kinds)} data, but the dataset is {kind} data"
            raise Refused(
                "params.yaml: partition.skew.name",
                self.name,
                allowed,
                "Use none",
            )

    def draw(self, clients: int, channels: int, rng: np.random.Generator) -> np.ndarray:
        """What sets each client apart: an array [clients, ...], whose rows :meth:`apply` is given."""
        raise NotImplementedError

    def apply(self, x: np.ndarray, mark: np.ndarray, bounds: Range, rng: np.random.Generator) -> np.ndarray:
        """The samples ``x`` float32 [n, *shape] as their owners see them; ``mark`` [n, ...] are the owners' rows."""
        raise NotImplementedError
