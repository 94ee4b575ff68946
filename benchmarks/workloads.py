"""The jobs that are measured, and how one becomes a folder that every contender can read."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import keys, models
from tasks.models import Model
from tasks.models.architectures import CNN, MLP, Transformer
from tasks.params import Params
from tasks.partition.datasets import Dataset, Digits, Idx, Npz, Text
from tasks.partition.federation import Federation
from tasks.partition.settings import PartitionSettings
from tasks.partition.splits import Iid
from tasks.partition.stage import partition
from tasks.tracking import Tracker
from tasks.train.sampling import UniformSampling

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".fedloom" / "benchmarks"
SEED = 0
COHORTS = 200
"""Rounds until the cohorts repeat themselves."""


@dataclass(frozen=True)
class Workload:
    """One job.

    ``data`` gives the dataset, from a folder in which it may leave what it makes up. ``threads`` are what a single
    process is fastest with (0 for all cores); ``warmup`` rounds count as start-up; after ``judged`` rounds the models
    are compared; each of ``passes`` measures every contender in turn for about ``seconds``, at least a round.
    """

    name: str
    title: str
    data: Callable[[Path], Dataset]
    clients: int
    model: Model
    cohort: int
    batch: int
    lr: float
    threads: int
    warmup: int
    judged: int
    passes: int
    seconds: float = 1.0
    limit: int | None = None


class Silent(Tracker):
    """Keeps progress to itself."""

    def progress(self, done: int, total: int, unit: str = "step", **numbers: float | None) -> None:
        pass


def prepare(workload: Workload, cache: Path = CACHE) -> Path:
    """The job's folder (see :mod:`benchmarks.contenders.contract`), made by the partition stage."""
    home = cache / "jobs" / workload.name
    home.mkdir(parents=True, exist_ok=True)
    settings = PartitionSettings(
        dataset=workload.data(home),
        clients=workload.clients,
        split=Iid(),
        validation_fraction=0.0,
        min_size=1,
        limit=workload.limit,
    )
    partition(Params(seed=SEED, partition=settings, model=workload.model), home / "artifacts", Silent("partition"))
    return completed(workload, home / "artifacts" / "partition")


def completed(workload: Workload, folder: Path) -> Path:
    """The folder of a partition with what makes it a job: what to do, the weights to start from, and the cohorts."""
    data = Federation.open(folder)
    network = models.build(workload.model, data.meta.shape, data.meta.classes, SEED)
    np.savez(folder / "initial.npz", **{name: value.numpy() for name, value in network.parameters.items()})
    draws = (keys.generator(SEED, "cohort", round_ + 1) for round_ in range(COHORTS))
    cohorts = [UniformSampling().draw(data.sizes, workload.cohort, rng) for rng in draws]
    np.save(folder / "cohorts.npy", np.array(cohorts, np.int64))
    job = {
        "model": workload.model.model_dump(mode="json"),
        "shape": data.meta.shape,
        "classes": data.meta.classes,
        "cohort": workload.cohort,
        "batch": workload.batch,
        "lr": workload.lr,
        "seed": SEED,
        "threads": workload.threads or len(os.sched_getaffinity(0)),
    }
    (folder / "job.json").write_text(json.dumps(job, indent=2) + "\n")
    return folder


def data_root() -> Path:
    """Where the public datasets are: ``FEDLOOM_DATA``, or else beside the repository."""
    return Path(os.environ.get("FEDLOOM_DATA", ROOT.parent / "shared" / "data"))


def fashion(folder: Path) -> Dataset:
    """Fashion-MNIST, or else noise of its size: the arithmetic is the same."""
    real = data_root() / "fashion_mnist"
    if real.is_dir():
        return Idx(path=real)
    rng = np.random.default_rng(SEED)
    parts = {"": 60_000, "test_": 10_000}
    x = {f"{part}x": rng.integers(0, 256, (count, 28, 28), np.uint8) for part, count in parts.items()}
    y = {f"{part}y": np.arange(count) % 10 for part, count in parts.items()}
    np.savez(folder / "noise.npz", **x, **y)
    return Npz(path=folder / "noise.npz")


def shakespeare(folder: Path) -> Dataset:
    """Tiny Shakespeare, or else random letters: the arithmetic is the same."""
    real = data_root() / "tiny_shakespeare" / "input.txt"
    if real.is_file():
        return Text(path=real, speaker="")
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?'-\n", np.uint8)
    noise = np.random.default_rng(SEED).choice(letters, 300_000)
    (folder / "letters.txt").write_bytes(noise.tobytes())
    return Text(path=folder / "letters.txt", speaker="")


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "a", "many tiny clients: digits over 1,000 clients, MLP 64-64-10", lambda _: Digits(), 1000,
            MLP(hidden=(64,)), cohort=50, batch=16, lr=0.5, threads=1, warmup=3, judged=30, passes=5,
        ),
        Workload(
            "b", "digits over 100 clients, CNN of 16 and 32 channels, 3 x 3", lambda _: Digits(), 100,
            CNN(width=16), cohort=10, batch=16, lr=0.2, threads=1, warmup=3, judged=60, passes=5,
        ),
        Workload(
            "c", "28 x 28 images, 100 clients of 600 samples, CNN of 32 and 64 channels, 5 x 5", fashion, 100,
            CNN(width=32, kernel=5), cohort=10, batch=20, lr=0.05, threads=0, warmup=1, judged=2, passes=3,
        ),
        Workload(
            "d", "text, 100 clients of 160 windows of 40 characters, transformer of 2 blocks, 64 wide", shakespeare,
            100, Transformer(), cohort=10, batch=16, lr=0.1, threads=0, warmup=1, judged=5, passes=3, limit=16_000,
        ),
    )
}  # fmt: skip
