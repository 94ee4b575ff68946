"""What every contender is given, and what it answers. Needs nothing but NumPy, so that it imports everywhere.

A job is a folder: the arrays of a partition (see ``docs/architecture.md``), ``job.json``, ``initial.npz`` with the
weights to start from, and ``cohorts.npy``, int64 ``[rounds, cohort]``, who takes part when. A client goes once through
its samples, in batches of which the last may be smaller, with plain SGD; the server takes the mean of the clients'
models, weighted by their samples.

A contender builds what it needs and says ``{"versions": ...}``. Then it is told, a line at a time: a number, to take so
many rounds and answer ``{"seconds": ...}``; or a path, to save its model there. It ends when there is nothing more to
read. So the driver decides who runs when, and the contenders can take turns on a noisy machine.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Job:
    """A job's folder, read.

    ``settings`` holds ``model`` (a section of ``params.yaml``), ``shape``, ``classes``, ``cohort``, ``batch``, ``lr``,
    ``seed`` and ``threads``, the number of threads with which a peer's single process is fastest on this job.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.settings = json.loads((self.folder / "job.json").read_text())
        self.cohorts = self.array("cohorts")
        with np.load(self.folder / "initial.npz", allow_pickle=False) as file:
            self.initial = {name: file[name] for name in file.files}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(name) from None

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def clients(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Every client's ``x`` ``[samples, *shape]`` and ``y`` ``[samples]``."""
        x, y, indices = self.array("x"), self.array("y"), self.array("indices")
        starts, sizes = self.array("offsets")[:-1], self.array("train_sizes")
        rows = (indices[start : start + size] for start, size in zip(starts, sizes, strict=True))
        return [(x[own], y[own]) for own in rows]


class Session:
    """A contender's side of the conversation. Standard input and output are taken, so that no library can speak."""

    def __init__(self, versions: dict[str, str]):
        self.orders = os.fdopen(os.dup(0), "r")
        self.answers = os.fdopen(os.dup(1), "w")
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        self.versions = {"python": sys.version.split()[0], **versions}

    def rounds(
        self,
        cohorts: np.ndarray,
        parameters: Callable[[], dict[str, np.ndarray]],
        settle: Callable[[], object] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The cohort of one round after another, as the driver asks for them.

        Parameters
        ----------
        cohorts : int64 ``[rounds, cohort]``; after the last comes the first again.
        parameters : the global model as arrays with PyTorch's names and layouts.
        settle : waits until what was started is done, where a library works behind one's back.
        """
        self._say(versions=self.versions)
        taken = 0
        for order in map(str.strip, self.orders):
            start = time.perf_counter()
            if order.isdigit():
                for _ in range(int(order)):
                    yield cohorts[taken % len(cohorts)]
                    taken += 1
                settle()
            else:
                np.savez(order, **parameters())
            self._say(seconds=time.perf_counter() - start)

    def _say(self, **answer: Any) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)
