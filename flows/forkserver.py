"""Stages that start at once: one process imports PyTorch and the code of the stages, and forks for each that is to run.

A stage of a replication works for seconds, of which the imports alone would take two. :class:`ForkServer` is the side
that asks; the module run by itself, ``python -m flows.forkserver FD MODULE...``, is the side that forks.

A request is one message on a socket: the module and its arguments, with one end of a pair of sockets attached. What the
stage writes comes out of the other end, and last :data:`ENDED` with the status it ended with.
"""

import asyncio
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from flows.process import Failed, end

ENDED = b"\0ended "
"""Begins the last line, which says the status."""

_LONGEST = 1 << 16
"""Bytes of a request."""


class ForkServer:
    """An asynchronous context manager: a process in ``folder`` that has imported ``modules``.

    What runs has ``environment``, which is the whole of it. With the block, whatever still runs ends.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], modules: Sequence[str]):
        self._folder, self._environment, self._modules = folder, environment, modules

    async def __aenter__(self) -> Self:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", __name__, str(theirs.fileno()), *self._modules],
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control.setblocking(False)
        await asyncio.get_running_loop().sock_recv(self._control, 1)  # it is ready, or has ended
        return self

    async def __aexit__(self, *_: object) -> None:
        self._control.close()
        await end(self._process)

    async def run(self, module: str, arguments: Sequence[str], hear: Callable[[str], None]) -> None:
        """Runs ``python -m module arguments``, beside others; ``hear`` gets each line of its output at once.

        Raises
        ------
        Failed
            Where it ends with an error.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(BrokenPipeError):  # then the connection ends without a status
            request = json.dumps([module, *arguments]).encode()
            socket.send_fds(self._control, [request], [theirs.fileno()])
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        status, output = -signal.SIGKILL, []
        try:
            async for line in reader:
                if line.startswith(ENDED):
                    status = int(line.removeprefix(ENDED))
                    break
                output.append(line.decode(errors="replace").rstrip())
                hear(output[-1])
        finally:
            writer.close()
        if status:
            raise Failed(["python", "-m", module, *arguments], status, output)


def serve(control: socket.socket) -> list[str]:
    """Forks for every request until nobody can ask any more; returns in the process that is to do it, with the request.

    Between the two is a process that waits for the stage to end, to say how it did. Signals are for the stages alone.
    """
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
    }
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _LONGEST, 1)
        if not request:
            os.killpg(0, signal.SIGINT)
            with contextlib.suppress(ChildProcessError):
                os.wait()  # for all of them, as their ends are ignored
            sys.exit()
        (connection,) = descriptors
        if not os.fork():
            break
        os.close(connection)
    control.close()
    signal.signal(signal.SIGCHLD, before[signal.SIGCHLD])
    if stage := os.fork():
        _, status = os.waitpid(stage, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(connection, ENDED + b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    for number, handler in before.items():
        signal.signal(number, handler)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(connection, stream.fileno())
    os.close(connection)
    return json.loads(request)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        with contextlib.suppress(Exception):  # the stage itself says what is wrong with it
            importlib.import_module(module)
    control.send(b".")
    module, *arguments = serve(control)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
