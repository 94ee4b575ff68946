"""Fedloom: its coordinator and its workers, as the train stage runs them; evaluation and checkpoints left out."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.contenders.contract import Job, Session
from tasks import models
from tasks.partition.federation import Federation
from tasks.train.coordinator import Coordinator
from tasks.train.engine.plan import Plan, resolve, workload
from tasks.train.engine.program import Blueprint
from tasks.train.engine.workers import Workers, hire
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Recorder

LONG_RUN = 10_000
"""Rounds that the plan is made for: what is measured is the steady state of a long run."""


class Fedloom:
    """The job under Fedloom's engine.

    ``changes`` are fields of the section ``train`` of `params.yaml` that differ from the job's FedAvg; within
    ``algorithm`` and ``engine`` they are merged field by field.
    """

    def __init__(self, job: Job, changes: dict | None = None):
        self.job, self.data = job, Federation.open(job.folder)
        self.train = settings(job, changes or {})
        self.model = TypeAdapter(models.Model).validate_python(job.model)
        self.network = models.build(self.model, self.data.meta.shape, self.data.meta.classes, job.seed)
        self.plan = self.ruled(self.train.rounds)
        self.blueprint = Blueprint(job.folder.resolve(), self.model, self.train, self.plan, job.seed)

    def ruled(self, rounds: int) -> Plan:
        """The plan for a run of so many rounds."""
        train, shape = self.train.model_copy(update={"rounds": rounds}), self.data.meta.shape
        return resolve(train.engine, workload(train, self.network, shape, self.data.x.dtype, self.data.sizes))

    def coordinator(self, workers: Workers, folder: Path) -> Coordinator:
        start = {name: torch.from_numpy(value) for name, value in self.job.initial.items()}
        recorder = Recorder(folder / "transcript")
        return Coordinator(
            self.train, self.plan, self.job.seed, self.data, start, workers, recorder, folder / "memories"
        )


def settings(job: Job, changes: dict) -> TrainSettings:
    """The section ``train`` of the job, with ``changes``."""
    algorithm = {"name": "fedavg", "lr": job.lr, "batch_size": job.batch} | changes.get("algorithm", {})
    engine = {"workers": 0} | changes.get("engine", {})
    fields = {"rounds": LONG_RUN, "cohort": job.cohort} | changes | {"algorithm": algorithm, "engine": engine}
    return TrainSettings.model_validate_json(json.dumps(fields), strict=True)


def parameters(coordinator: Coordinator) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in coordinator.model.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--train", type=json.loads, default={}, help="changes of the section `train`, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the train stage does
    fedloom = Fedloom(Job(options.job), options.train)
    plan = ", ".join(f"{name} {value}" for name, value in fedloom.plan._asdict().items())
    session = Session({"torch": torch.__version__, "plan": plan})
    with tempfile.TemporaryDirectory() as folder, hire(fedloom.blueprint) as workers:
        coordinator = fedloom.coordinator(workers, Path(folder))
        steps = fedloom.train.schedule.run(coordinator)
        for _ in session.rounds(fedloom.job.cohorts, lambda: parameters(coordinator)):
            next(steps)


if __name__ == "__main__":
    main()
