"""What every personalisation is: a function from the released model and a client's data to that client's own model."""

from collections.abc import Iterator

import numpy as np

from tasks.config import Config
from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree


class Personalisation(Config):
    """Fits the released model to each client."""

    def adapt(
        self, network: Network, released: Tree, federation: Federation, clients: np.ndarray, seed: int
    ) -> Iterator[tuple[np.ndarray, Tree]]:
        """Groups of ``clients`` and their own models, stacked ``[group, ...]``: few at a time, to bound the memory.

        A client's model depends on ``released``, ``seed``, the client's number and its training samples alone.
        """
        raise NotImplementedError
