"""Fedloom: its coordinator and its workers, as the train stage runs them; evaluation and checkpoints left out."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.contenders.contract import Job, Session
from tasks import models
from tasks.partition.federation import Federation
from tasks.train.algorithms import FedAvg
from tasks.train.coordinator import Coordinator
from tasks.train.engine.plan import resolve, workload
from tasks.train.engine.program import Blueprint
from tasks.train.engine.workers import Workers, hire
from tasks.train.sampling import UniformSampling
from tasks.train.settings import Engine, TrainSettings
from tasks.train.transcript import Recorder

LONG_RUN = 10_000
"""Rounds that the plan is made for: what is measured is the steady state of a long run."""


class Fedloom:
    """The job under Fedloom's engine."""

    def __init__(self, job: Job, engine: Engine):
        self.job, self.data = job, Federation.open(job.folder)
        self.train = TrainSettings(
            rounds=LONG_RUN,
            cohort=job.cohort,
            sampling=UniformSampling(),
            algorithm=FedAvg(lr=job.lr, batch_size=job.batch),
            engine=engine,
        )
        model = TypeAdapter(models.Model).validate_python(job.model)
        network = models.build(model, self.data.meta.shape, self.data.meta.classes, job.seed)
        work = workload(self.train, network, self.data.meta.shape, self.data.x.dtype, self.data.sizes)
        self.plan = resolve(engine, work)
        self.blueprint = Blueprint(job.folder.resolve(), model, self.train, self.plan, job.seed)

    def coordinator(self, workers: Workers, folder: Path) -> Coordinator:
        start = {name: torch.from_numpy(value) for name, value in self.job.initial.items()}
        recorder = Recorder(folder / "transcript")
        return Coordinator(
            self.train, self.plan, self.job.seed, self.data, start, workers, recorder, folder / "memories"
        )


def parameters(coordinator: Coordinator) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in coordinator.model.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the train stage does
    fedloom = Fedloom(Job(options.job), Engine(workers=options.workers, compile=options.compile))
    plan = ", ".join(f"{name} {value}" for name, value in fedloom.plan._asdict().items())
    session = Session({"torch": torch.__version__, "plan": plan})
    with tempfile.TemporaryDirectory() as folder, hire(fedloom.blueprint) as workers:
        coordinator = fedloom.coordinator(workers, Path(folder))
        steps = fedloom.train.schedule.run(coordinator)
        for _ in session.rounds(fedloom.job.cohorts, lambda: parameters(coordinator)):
            next(steps)


if __name__ == "__main__":
    main()
