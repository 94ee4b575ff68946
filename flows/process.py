"""Running a command so that it can be watched, stopped as a whole, and asked what went wrong."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE = 15.0
"""Seconds between asking a group of processes to stop and killing it."""

LOG = "FEDLOOM_LOG"
"""Environment variable: the file that keeps what a service says, and the runs that it starts."""


class Failed(RuntimeError):
    """A command that ended with an error; the message is what it said last."""

    def __init__(self, command: Sequence[str], code: int, output: list[str]):
        self.code, self.output = code, output
        super().__init__(f"`{' '.join(command)}` ended with code {code}\n" + "\n".join(output[-20:]))


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Runs ``command`` in a process group of its own and returns its output, of which ``say`` gets each line at once.

    Whatever ends the wait (an error, a cancelled flow, Ctrl-C) stops the whole group: DVC would leave the stage that it
    has started behind.

    Raises
    ------
    Failed
        Where the command ends with an error.
    """
    # A stage is started by the shell with the name `python`: this environment's has to come first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})},
        text=True,
        errors="replace",
        bufsize=1,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = []
    try:
        for line in process.stdout or ():
            if line.strip():
                output.append(line.rstrip())
                say(output[-1])
        code = process.wait()
    except BaseException:
        stop(process)
        raise
    if code:
        raise Failed(command, code, output)
    return output


async def follow(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], hear: Callable[[str], None]
) -> None:
    """Runs ``command`` in a process group of its own, beside others; ``hear`` gets each line of its output at once.

    ``environment`` is the whole of it. Whatever ends the wait ends the whole group.

    Raises
    ------
    Failed
        Where the command ends with an error.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=1 << 20,
    )
    output = []
    try:
        async for line in process.stdout:
            output.append(line.decode(errors="replace").rstrip())
            hear(output[-1])
        status = await process.wait()
    except BaseException:
        await end(process)
        raise
    if status:
        raise Failed(command, status, output)


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends the whole process group of ``process``: first asked, then killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen) -> None:
    """What :func:`end` does, for a process that is waited for without asyncio."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            break
    # What outlived the leader: a worker that ignored the signal.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def speak_for_itself() -> None:
    """Has this process write to the log that :data:`LOG` names, rather than through the pipe of who started it: with
    that it would break. What it starts itself speaks to it."""
    if path := os.environ.pop(LOG, None):
        with open(path, "a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())


def dvc(*arguments: str) -> list[str]:
    """A DVC command of this environment."""
    return [sys.executable, "-m", "dvc", *arguments]
