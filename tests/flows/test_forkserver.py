"""The process that forks for stages: what a stage says and how it ends arrive, whatever befalls it."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from flows.forkserver import ForkServer
from flows.process import Failed

HEAVY = """
import os
with open("imports", "a") as log:
    log.write(f"{os.getpid()}\\n")
"""
STAGE = """
import os, sys, time
from pathlib import Path

import heavy

name = sys.argv[1]
print(__name__, name, os.getpid(), "ä", flush=True)
print("to the side", file=sys.stderr)
if name == "refuse":
    sys.exit("error: no")
if name == "break":
    raise ValueError("fault")
if name == "killed":
    os.kill(os.getpid(), 9)
if name == "long":
    try:
        print("x" * 100_000, flush=True)
        time.sleep(1000)
    finally:
        Path("ended").touch()
if name == "pair":
    Path(sys.argv[2]).touch()
    while len(list(Path(".").glob("pair-*"))) < 2:
        time.sleep(0.01)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


class Lines(list):
    """What was heard; ``busy`` is set once a long stage is in the midst of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.append(line)
        if line == 100_000 * "x":
            self.busy.set()


def server(place: Path) -> ForkServer:
    return ForkServer(place, {**os.environ, "PYTHONUNBUFFERED": "1"}, ["heavy"])


def done(work: Coroutine[None, None, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def begun(started: ForkServer) -> tuple[asyncio.Task, list[str]]:
    """A long stage in the midst of its work, and what was heard of it."""
    lines = Lines()
    stage = asyncio.create_task(started.run("stage", ["long"], lines))
    await lines.busy.wait()
    return stage, lines


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_modules_are_imported_once_for_all_and_each_stage_is_a_process_of_its_own(place):
    async def work() -> list[str]:
        lines = Lines()
        async with server(place) as started:
            for name in ("a", "b"):
                await started.run("stage", [name], lines)
        return lines

    lines = done(work())
    (imported,) = (place / "imports").read_text().split()
    names, pids = [line.split()[:2] for line in lines[::2]], {line.split()[2] for line in lines[::2]}
    assert names == [["__main__", "a"], ["__main__", "b"]] and lines[1] == lines[3] == "to the side"
    assert "ä" in lines[0]
    assert len({imported, *pids}) == 3
    assert not any(map(alive, {imported, *pids}))


def test_stages_run_side_by_side(place):
    async def work() -> None:
        async with server(place) as started, asyncio.TaskGroup() as group:
            for name in ("pair-1", "pair-2"):
                group.create_task(started.run("stage", ["pair", name], Lines()))

    done(work())


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("refuse", 1, "error: no"), ("break", 1, "ValueError: fault"), ("killed", -signal.SIGKILL, "to the side")],
)
def test_a_stage_that_fails_says_how_and_the_next_one_runs(place, name, code, said):
    async def work() -> None:
        async with server(place) as started:
            with pytest.raises(Failed, match=f"python -m stage {name}") as failed:
                await started.run("stage", [name], Lines())
            assert failed.value.code == code
            assert failed.value.output[-1] == said
            await started.run("stage", ["good"], Lines())

    done(work())


def test_what_cannot_be_imported_is_told_by_the_stage(place):
    (place / "heavy.py").write_text("import nothing_of_that_name")

    async def work() -> None:
        async with server(place) as started:
            with pytest.raises(Failed, match="No module named 'nothing_of_that_name'"):
                await started.run("stage", ["a"], Lines())

    done(work())


def test_with_the_block_every_stage_ends_and_may_tidy_up(place):
    async def work() -> str:
        async with server(place) as started:
            stage, lines = await begun(started)
            stage.cancel()
        return lines[0].split()[2]

    pid = done(work())
    assert (place / "ended").exists()
    assert not alive(pid)


def test_a_server_that_was_killed_fails_its_stages_and_those_to_come(place):
    async def work() -> None:
        async with server(place) as started:
            stage, lines = await begun(started)
            os.killpg(int((place / "imports").read_text()), signal.SIGKILL)
            for failing in (stage, started.run("stage", ["a"], lines)):
                with pytest.raises(Failed) as failed:
                    await failing
                assert failed.value.code == -signal.SIGKILL

    done(work())
