"""The same job through every contender, in turns, in one run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.environments import FEDJAX, FLOWER, PFL
from benchmarks.machine import machine
from benchmarks.race import Contender, Entrant, Running, Timing, race
from benchmarks.workloads import ROOT, SEED, WORKLOADS, Workload, prepare
from tasks import models, tree
from tasks.partition.federation import Federation

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PLAIN = "plain-1"
"""The contender whose model the others' are compared with, so it comes first."""


def engine(name: str, title: str, skips: str = "", **fields: int | bool) -> Contender:
    """Fedloom with ``fields`` of its engine set."""
    return Contender(name, title, "fedloom", ("--train", json.dumps({"engine": fields})), skips=skips)


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("plain-1", "plain loop, 1 thread", "plain", threads=1),
        Contender("plain-all", "plain loop, all threads", "plain"),
        Contender("fedloom", "Fedloom, workers: 0", "fedloom"),
        engine("fedloom-compiled", "Fedloom, workers: 0, compiled", skips="cd", compile=True),
        engine("fedloom-ray-1", "Fedloom, 1 Ray worker", workers=1),
        engine("fedloom-ray-2", "Fedloom, 2 Ray workers", workers=2),
        Contender("flower", "Flower", "flower", peer=FLOWER),
        Contender("pfl", "pfl-research", "pfl", peer=PFL),
        Contender("fedjax", "FedJAX", "fedjax", peer=FEDJAX, skips="d"),
    )
}


def measure(names: Sequence[str], contenders: Sequence[str], rounds: int | None = None) -> Iterator[tuple[str, dict]]:
    """The figures of one workload after another, each with its name.

    ``rounds`` fixes how many a contender takes in a pass; without it each takes as many as fill the workload's time.
    """
    here = machine()
    for name in names:
        workload = WORKLOADS[name]
        print(f"\n{name}: {workload.title}", flush=True)
        chosen = [CONTENDERS[contender] for contender in contenders if name not in CONTENDERS[contender].skips]
        yield name, {"machine": here, **measured(workload, chosen, rounds)}


def measured(workload: Workload, contenders: Sequence[Contender], rounds: int | None = None) -> dict:
    """What the workload is, and the figures of ``contenders`` on it."""
    job = prepare(workload)
    data = Federation.open(job)
    timing = Timing(workload.warmup, workload.passes, workload.seconds, rounds)

    def judge(one: Running) -> dict[str, float | None]:
        one.ask(workload.judged - workload.warmup)
        one.ask(one.saved)
        return scores(one.saved, one.saved.with_name(f"{workload.name}-{PLAIN}.npz"), workload, data)

    figures = race(workload.name, [Entrant(contender, job) for contender in contenders], timing, judge)
    return {
        "title": workload.title,
        "clients": workload.clients,
        "cohort": workload.cohort,
        "judged": workload.judged,
        "samples": float(data.sizes.mean()),
        "contenders": figures,
    }


def scores(saved: Path, plain: Path, workload: Workload, data: Federation) -> dict[str, float | None]:
    """What says that the work was the same: how good the ``saved`` model is, and how far it is from that of the
    ``plain`` loop, as a share of how far training has brought that."""
    model, start = _weights(saved), _weights(data.path / "initial.npz")
    network = models.build(workload.model, data.meta.shape, data.meta.classes, SEED)
    losses, hits = models.score(network, model, torch.from_numpy(data.test_x), torch.from_numpy(data.test_y))
    distance = None
    if plain.exists():
        reference = _weights(plain)
        apart, moved = (tree.norm(tree.subtract(reference, other)) for other in (model, start))
        distance = float(apart / moved)
    return {"accuracy": float(hits.mean()), "loss": float(losses.mean()), "distance": distance}


def _weights(file: Path) -> tree.Tree:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
