"""One model for all."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from tasks.aggregate.personalise.personalisation import Personalisation
from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree


class NoPersonalisation(Personalisation):
    """Every client uses the released model as it is."""

    name: Literal["none"] = "none"

    def adapt(
        self, network: Network, released: Tree, federation: Federation, clients: np.ndarray, seed: int
    ) -> Iterator[tuple[np.ndarray, Tree]]:
        yield from ()
