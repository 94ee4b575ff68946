"""The ``train`` section of `params.yaml`."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tasks.config import Config
from tasks.train.algorithms import Algorithm, FedAvg
from tasks.train.devices import Devices, UniformDevices
from tasks.train.privacy import NoPrivacy, Privacy
from tasks.train.sampling import Sampling, UniformSampling
from tasks.train.schedules import Schedule, Sync
from tasks.train.seed_model import NoSeedModel, SeedModel
from tasks.train.topologies import Server, Topology
from tasks.train.uplink import Link


class EarlyStop(Config):
    """Ends the run when the validation loss has stopped falling."""

    patience: int = Field(0, ge=0, description="evaluations without improvement before the run stops; 0 never stops")
    min_delta: float = Field(0.0, ge=0, description="smallest fall of the validation loss that counts as one")


class Engine(Config):
    """Where and how the client work runs.

    ``stack``, ``compile`` and ``device`` touch the last bits of the result; the others do not.
    """

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="Ray actors; 0 runs in the stage's own process; auto is one a GPU, or else one a core"
    )
    stack: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="clients trained as one stacked model; 1 loops over them; auto follows the model's size"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the stacked step, which takes seconds; auto where the run is long enough"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU where there is one")
    checkpoint_every: int = Field(10, ge=1, description="rounds between two checkpoints")
    profile: bool = Field(
        False,
        description="write a trace of the second round of this process, to open in a browser (workers: 0 shows most)",
    )


class Recording(Config):
    """Which messages are recorded for the attack stage."""

    rounds: tuple[int | Literal["first", "last"], ...] = Field(
        ("first", "last"), description="rounds to record, counted from 1; an empty list records none"
    )
    clients: int = Field(4, ge=0, description="clients of each such round")
    smallest: bool = Field(
        True, description="take those of the cohort with the fewest samples, who are most exposed; else the first"
    )

    def choose(self, clients: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Those of ``clients`` ``[n]`` whose messages are recorded, from their numbers of samples ``[n]``."""
        ranked = clients[np.argsort(sizes, kind="stable")] if self.smallest else clients
        return ranked[: self.clients]


class TrainSettings(Config):
    """Stage 2: how the model is trained."""

    rounds: int = Field(30, ge=1, description="steps of the server")
    seconds: float | None = Field(
        None, gt=0, description="seconds on the virtual clock after which no further step is taken; null: no limit"
    )
    cohort: int = Field(
        10,
        ge=1,
        description="clients a round (expected number, if the sampling is Poisson); clients at work at a time, if the "
        "schedule is asynchronous",
    )
    sampling: Sampling = Field(UniformSampling(), description="who takes part in a round")
    algorithm: Algorithm = Field(FedAvg(), description="what clients and server compute")
    uplink: tuple[Link, ...] = Field((), description="codecs that an upload passes before the wire, in order")
    privacy: Privacy = Field(NoPrivacy(), description="mechanism of differential privacy")
    schedule: Schedule = Field(Sync(), description="who works when, and when the server updates")
    topology: Topology = Field(Server(), description="who talks to whom")
    seed_model: SeedModel = Field(NoSeedModel(), description="what the server trains before the first round")
    devices: Devices = Field(UniformDevices(), description="speeds and links on the virtual clock")
    evaluate_every: int = Field(1, ge=1, description="rounds between two evaluations on the test and validation data")
    early_stop: EarlyStop = EarlyStop()
    reject_above: float = Field(
        1e4, gt=0, description="an upload longer than this, or not finite, is left out and counted"
    )
    engine: Engine = Engine()
    transcript: Recording = Recording()
