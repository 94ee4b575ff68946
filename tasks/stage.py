"""What the five stage commands have in common: ``python -m tasks.train [--params FILE] [--artifacts FOLDER]``."""

import argparse
import contextlib
import errno
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tasks.artifacts import ROOT
from tasks.config import Refused
from tasks.tracking import Tracker, open_tracker, quiet

REFUSED, BROKEN_OFF = 2, 130
"""Exit codes: what was asked for cannot be done; the stage was told to stop."""


class Stopped(BaseException):
    """The stage was told to stop; like KeyboardInterrupt, no handler of errors catches it by accident."""


def main(stage: Callable[..., None]) -> NoReturn:
    """The command of ``stage``, a function of (params, artifacts folder, tracker) that publishes one folder.

    Exits with 0, with 2 and one readable message where it refused, with 130 where it was told to stop (SIGINT or
    SIGTERM), and with a traceback where there is a fault in the code.
    """
    quiet()
    name = stage.__module__.split(".")[-2]
    options = _options(name, stage)
    try:
        with _stoppable():
            _run(name, stage, options)
    except Refused as refused:
        _fail(name, str(refused), REFUSED)
    except Stopped:
        _fail(name, "stopped before the end; nothing was published, run it again to go on", BROKEN_OFF)
    except OSError as error:
        if error.errno not in _PLACE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        _fail(name, f"{_PLACE[error.errno]}{place}. Nothing was published; mend it and run again", REFUSED)
    sys.exit(0)


_PLACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to read or write",
    errno.EPERM: "no permission to read or write",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
}


def _options(name: str, stage: Callable[..., None]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.{name}",
        description=inspect.getdoc(stage),
        epilog=f"`dvc repro {name}` runs it and what it depends on, and only what has changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: params.yaml)")
    parser.add_argument(
        "--artifacts", type=Path, default=ROOT, help=f"where stages leave their outputs (default: {ROOT})"
    )
    return parser.parse_args()


def _run(name: str, stage: Callable[[object, Path, Tracker], None], options: argparse.Namespace) -> None:
    import torch

    from tasks.params import load

    # One thread a process: the same bits on every machine, and no quarrel with the workers over cores.
    torch.set_num_threads(1)
    params = load(options.params)
    with open_tracker(name, params) as tracker:
        stage(params, options.artifacts, tracker)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into :class:`Stopped`, so that what is open gets closed; a second one kills."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(name: str, message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {name}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
