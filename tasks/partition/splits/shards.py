"""The pathological split."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.index import equal_parts
from tasks.partition.splits.division import FIELD, Division, by_label


class Shards(Division):
    """The samples are sorted by label and cut into equal shards, and every client is dealt a few of them at random.

    With two shards a client most clients see two classes. With very many it approaches ``iid``.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    section 3.
    """

    name: Literal["shards"] = "shards"
    shards_per_client: int = Field(2, ge=1, le=1_000_000, description="shards that every client is dealt")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        shards = clients * self.shards_per_client
        if shards > len(y):
            problem = f"makes {shards} shards for {clients} clients, but there are {len(y)} training samples"
            mend = f"At most {len(y) // clients} here; or lower partition.clients"
            raise Refused(f"{FIELD}.shards_per_client", self.shards_per_client, problem, mend)
        holder = rng.permutation(equal_parts(shards, clients))
        owner = np.empty(len(y), np.int64)
        owner[by_label(y, rng)] = holder[equal_parts(len(y), shards)]
        return owner
