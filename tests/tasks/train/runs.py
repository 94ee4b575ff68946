"""Small federations, made by hand, and runs of the coordinator on them."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from tasks import models
from tasks.models import Model
from tasks.models.architectures import MLP
from tasks.partition.federation import Federation
from tasks.train.algorithms.server_optimizers import SGD, ServerOptimizer
from tasks.train.coordinator import Coordinator
from tasks.train.engine.plan import Plan
from tasks.train.engine.program import Blueprint
from tasks.train.engine.workers import hire
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Recorder
from tasks.tree import Tree

SIZES = (1, 3, 5, 8, 13, 16, 17, 20)
MODEL = MLP(hidden=(6,))
SERVERS = [SGD(momentum=0.5), *(method() for method in get_args(get_args(ServerOptimizer)[0]))]
"""Every optimiser of the server."""


def federation(
    folder: Path, sizes: tuple[int, ...] = SIZES, shape: tuple[int, ...] = (4,), classes: int = 3
) -> Federation:
    """Clients with so many training samples each, in two blobs a class, and a test set."""
    rng = np.random.default_rng(7)
    total, test = sum(sizes), 60
    y = rng.integers(0, classes, total + test)
    centres = rng.normal(size=(classes, *shape)) * 2
    x = (centres[y] + rng.normal(size=(total + test, *shape))).astype(np.float32)
    arrays = {
        "x": x[:total], "y": y[:total], "test_x": x[total:], "test_y": y[total:],
        "indices": rng.permutation(total), "offsets": np.cumsum([0, *sizes]), "train_sizes": np.array(sizes),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", value if value.dtype == np.float32 else value.astype(np.int64))
    meta = {
        "dataset": "blobs", "kind": "table", "shape": list(shape), "classes": classes,
        "class_names": [str(c) for c in range(classes)], "range": None, "samples": total, "test_samples": test,
        "clients": len(sizes),
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return Federation.open(folder)


def run(
    data: Federation,
    train: TrainSettings,
    rounds: int,
    stack: int = 4,
    model: Model = MODEL,
    workers: int = 0,
    seed: int = 3,
    recorded: tuple[int, ...] = (),
    compile: bool = False,
    folder: Path | None = None,
) -> Coordinator:
    """The coordinator after some rounds on ``data``; the uploads of the last are kept. Clients that start from weights
    of their own have those of :func:`drawn`. With a ``folder`` what clients remember is kept there."""
    plan = Plan(stack, "cpu", workers, compile)
    network = models.build(model, data.meta.shape, data.meta.classes, seed)
    folder = folder or Path(tempfile.mkdtemp(dir=data.path.parent))
    recorder = Recorder(data.path.parent / "transcript")
    with hire(Blueprint(data.path, model, train, plan, seed)) as hired:
        coordinator = Coordinator(
            train, plan, seed, data, network.parameters, hired, recorder, folder, frozenset(recorded),
            lambda r: r == rounds, partial(drawn, data, model),
        )  # fmt: skip
        steps = train.schedule.run(coordinator)
        for _ in range(rounds):
            next(steps)
    recorder.close()
    return coordinator


def drawn(data: Federation, model: Model, number: int) -> Tree:
    """Weights for ``model`` of a client's own."""
    return models.build(model, data.meta.shape, data.meta.classes, 100 + number).parameters
