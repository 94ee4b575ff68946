"""Flower: its simulation engine on Ray, one client a core, with its FedAvg strategy.

The clients' data are read once by each of Ray's actors and kept; logging is turned down; nothing is evaluated.
``run_simulation`` is deprecated in favour of ``flwr run``, which starts the same engine from a packaged app.
"""

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from pydantic import TypeAdapter
from torch import nn

from benchmarks.contenders.contract import Job, Session
from tasks import models

ENDLESS = 10**9


class Site(NamedTuple):
    """What an actor keeps from one client to the next."""

    job: Job
    module: nn.Module
    clients: list[tuple[torch.Tensor, torch.Tensor]]


@functools.cache
def site(folder: str) -> Site:
    torch.set_num_threads(1)
    job = Job(folder)
    model = TypeAdapter(models.Model).validate_python(job.model)
    module = models.build(model, tuple(job.shape), job.classes, job.seed).module
    return Site(job, module, [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in job.clients()])


def train(folder: str, message: Message, context: Context) -> Message:
    """A client's round."""
    job, module, clients = site(folder)
    x, y = clients[int(context.node_config["partition-id"])]
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=job.lr)
    for rows in torch.randperm(len(y)).split(job.batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rows]).movedim(-1, 1), y[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def run(folder: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    job = Job(folder)
    session = Session({name: importlib.metadata.version(name) for name in ("flwr", "ray", "torch")})
    current: dict[str, ArrayRecord] = {}

    def parameters() -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in current["arrays"].to_torch_state_dict().items()}

    rounds = session.rounds(job.cohorts, parameters)

    def lap(_: int, arrays: ArrayRecord) -> None:
        """Called before the first round and after each: waits for the driver; at its end ends the server's thread."""
        current["arrays"] = arrays
        if next(rounds, None) is None:
            sys.exit()

    server, client = ServerApp(), ClientApp()
    client.train()(functools.partial(train, folder))

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=job.cohort / len(job.array("train_sizes")),
            fraction_evaluate=0.0,
            min_train_nodes=job.cohort,
            min_available_nodes=len(job.array("train_sizes")),
        )
        initial = ArrayRecord({name: torch.from_numpy(value) for name, value in job.initial.items()})
        strategy.start(grid, initial, num_rounds=ENDLESS, evaluate_fn=lap)

    cores = len(os.sched_getaffinity(0))
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(job.array("train_sizes")),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    # Under the module's own name, so that Ray's actors import it, and its cache lives as long as they do.
    importlib.import_module("benchmarks.contenders.flower").run(str(Path(sys.argv[1]).resolve()))
