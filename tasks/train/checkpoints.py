"""What a run needs to go on after it was killed: written whole or not at all, kept apart from the stage's outputs."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks import artifacts
from tasks.tree import Tree


class Checkpoint(NamedTuple):
    """The state of a run after some rounds: the coordinator's, the rows of the logs so far, and the layout that it was
    computed in."""

    state: Tree
    uploads: Tree
    history: list[dict]
    timings: list[dict]
    diagnostics: list[dict]
    layout: dict


class Log:
    """A file of JSON lines that only grows, so that a checkpoint costs its new rows, however many there are.

    A checkpoint knows how long the file was. What a process that was killed wrote behind that is cut off.
    """

    def __init__(self, path: Path):
        self.path, self.rows, self.length = path, 0, 0

    def save(self, rows: list[dict]) -> int:
        """Writes those of ``rows`` that are new; gives the length of the file in bytes."""
        new = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows[self.rows :]).encode()
        try:
            with self.path.open("ab") as file:
                file.truncate(self.length)
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise artifacts.unwritable(self.path, error) from error
        self.rows, self.length = len(rows), self.length + len(new)
        return self.length

    def read(self, length: int) -> list[dict]:
        """The rows in the first ``length`` bytes, which later ones are added to."""
        try:
            with self.path.open("rb") as file:
                text = file.read(length)
            rows = [json.loads(line) for line in text.splitlines()]
        except (OSError, ValueError) as error:
            raise artifacts.Damaged(self.path, f"cannot be read ({error})") from None
        if len(text) < length:
            raise artifacts.Damaged(self.path, "is shorter than its checkpoint says")
        self.rows, self.length = len(rows), length
        return rows


class Checkpoints:
    """The checkpoints of one run, in a folder of their own, and the logs beside them. Only the newest is kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logs = {name: Log(folder / f"{name}.jsonl") for name in ("history", "timings", "diagnostics")}

    @property
    def transcript(self) -> Path:
        """Where the run records its messages until it publishes them."""
        return self.folder / "transcript"

    @property
    def memories(self) -> Path:
        """Where the run keeps what its clients remember."""
        return self.folder / "memories"

    def save(self, round_: int, checkpoint: Checkpoint) -> None:
        older = list(self.folder.glob("round-*"))
        lengths = {name: log.save(getattr(checkpoint, name)) for name, log in self.logs.items()}
        with artifacts.publish(self.folder / f"round-{round_:06d}") as draft:
            artifacts.write_tree(draft / "state.safetensors", checkpoint.state)
            artifacts.write_tree(draft / "uploads.safetensors", checkpoint.uploads)
            artifacts.write_json(draft / "run.json", {"layout": checkpoint.layout, "logs": lengths})
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The last checkpoint that was written, None if there is none."""
        folder = max(self.folder.glob("round-*"), default=None)
        if folder is None:
            return None
        state, uploads = (artifacts.read_tree(folder / f"{name}.safetensors") for name in ("state", "uploads"))
        run = artifacts.read_json(folder / "run.json")
        logs = {name: log.read(run["logs"][name]) for name, log in self.logs.items()}
        return Checkpoint(state, uploads, **logs, layout=run["layout"])


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Checkpoints]:
    """The checkpoints in ``folder`` for this process alone, removed when the block ends without an error.

    Where another process is at work on the same run, a folder beside it is taken instead.
    """
    for number in itertools.count():
        own = folder if not number else folder.with_name(f"{folder.name}-{number}")
        try:
            own.mkdir(parents=True, exist_ok=True)
            lock = (own / "lock").open("w")
        except OSError as error:
            raise artifacts.unwritable(own, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        with lock:
            yield Checkpoints(own)
            shutil.rmtree(own, ignore_errors=True)
        return
