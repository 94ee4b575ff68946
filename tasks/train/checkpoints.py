"""What a run needs to go on after it was killed: written whole or not at all, kept apart from the stage's outputs."""

import contextlib
import fcntl
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks import artifacts
from tasks.tree import Tree


class Checkpoint(NamedTuple):
    """The state of a run after some rounds: the coordinator's, and the rows of the logs so far."""

    state: Tree
    uploads: Tree
    history: list[dict]
    timings: list[dict]
    diagnostics: list[dict]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own. Only the newest is kept."""

    def __init__(self, folder: Path):
        self.folder = folder

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
        with artifacts.publish(self.folder / f"round-{round_:06d}") as draft:
            artifacts.write_tree(draft / "state.safetensors", checkpoint.state)
            artifacts.write_tree(draft / "uploads.safetensors", checkpoint.uploads)
            artifacts.write_lines(draft / "history.jsonl", checkpoint.history)
            artifacts.write_lines(draft / "timings.jsonl", checkpoint.timings)
            artifacts.write_lines(draft / "diagnostics.jsonl", checkpoint.diagnostics)
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The last checkpoint that was written, None if there is none."""
        folder = max(self.folder.glob("round-*"), default=None)
        if folder is None:
            return None
        return Checkpoint(
            artifacts.read_tree(folder / "state.safetensors"),
            artifacts.read_tree(folder / "uploads.safetensors"),
            artifacts.read_lines(folder / "history.jsonl"),
            artifacts.read_lines(folder / "timings.jsonl"),
            artifacts.read_lines(folder / "diagnostics.jsonl"),
        )


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
