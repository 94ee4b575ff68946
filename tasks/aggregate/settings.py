"""The ``aggregate`` section of `params.yaml`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.aggregate.merges import AnyMerge
from tasks.aggregate.merges.final import Final
from tasks.aggregate.personalise import AnyPersonalisation, NoPersonalisation
from tasks.config import Config
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.algorithms.private import Private
from tasks.train.privacy.central import Central
from tasks.train.topologies import Server

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Evaluate(Config):
    """How the released model is evaluated client by client; on the global test set it always is."""

    clients: int = Field(
        10_000, ge=1, description="most clients to evaluate one by one; of more, as many are drawn at random"
    )
    part: Literal["auto", "validation", "all"] = Field(
        "auto",
        description="samples of a client that count: those held out from training, or all; auto takes those held out "
        "if at least half of the clients have enough of them",
    )
    min_samples: int = Field(5, ge=1, description="clients with fewer samples to evaluate on are left out, and counted")
    frontier: int = Field(
        6,
        ge=0,
        description="limits of the global and of the local disparity at which to find the best accuracy that is "
        "possible, where the data have groups and two classes; 0 for none",
    )


class Registry(Config):
    """How the released model enters MLflow's model registry: as the version with the alias `candidate`.

    Whether it becomes the `champion` too is for `promote` in pipelines.yaml to say.
    """

    model: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][\w.-]*$", description="registered name; null for fedloom-<dataset>-<model>"
    )


class AggregateSettings(Config):
    """Stage 3: what is released, and how good it is."""

    merge: AnyMerge = Field(Final(), description="how the released model is made")
    personalise: AnyPersonalisation = Field(NoPersonalisation(), description="how each client fits it to itself")
    evaluate: Evaluate = Evaluate()
    registry: Registry | None = Field(Registry(), description="entry in MLflow's model registry; null for none")

    def conflicts(self, train: "TrainSettings") -> Iterator[str]:
        """What rules the merge out after a training with these settings."""
        yield from self.merge.conflicts(train.cohort)
        here, served = f"aggregate.merge.name = {self.merge.name!r}", isinstance(train.topology, Server)
        single = "uploads" if self.merge.reads_uploads else "models" if self.merge.reads_models else None
        if single and isinstance(train.privacy, Central):
            yield (
                f"{here}: reads single {single}, which the noise of train.privacy = {train.privacy.name} does not "
                "cover, so its epsilon would not hold for the released model; use final"
            )
        if self.merge.reads_uploads and not served:
            yield (
                f"{here}: adds up changes of one model, and with train.topology.name = {train.topology.name!r} every "
                "client changes its own; use single, or final"
            )
        method = f"train.algorithm.name = {train.algorithm.name!r}"
        if self.merge.reads_models and isinstance(train.algorithm, Private):
            yield f"{here}: {method} keeps parameters at home, which such a merge would make travel; use final"
        elif self.merge.reads_models and served and type(train.algorithm).personal is FedAvg.personal:
            yield f"{here}: {method} leaves clients no models of their own; use final"
