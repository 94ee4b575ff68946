"""A virtual environment for each peer, made on first use and kept in the cache."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.workloads import CACHE
from tasks.config import Refused

NETWORKS = (f"torch=={version('torch').partition('+')[0]}", "numpy", "pydantic", "safetensors", "ruamel.yaml")
"""What ``tasks.models`` needs, so that PyTorch's peers train the very same module, on the PyTorch that is here."""

PROBE = "import sys, ensurepip, venv; print(*sys.version_info[:2])"


@dataclass(frozen=True)
class Peer:
    """A peer, what pip has to install for its contender, and the oldest and newest Python that it runs on."""

    name: str
    packages: tuple[str, ...]
    oldest: tuple[int, int]
    newest: tuple[int, int]


FLOWER = Peer("flower", ("flwr[simulation]", *NETWORKS), (3, 11), (3, 14))
PFL = Peer("pfl", ("pfl[pytorch]", *NETWORKS), (3, 11), (3, 12))
FEDJAX = Peer("fedjax", ("fedjax",), (3, 11), (3, 14))


def interpreter(peer: Peer, cache: Path = CACHE) -> Path:
    """The Python of the peer's environment.

    Raises ``Refused`` where no suitable Python is found, ``subprocess.CalledProcessError`` where pip cannot install the
    peer.
    """
    home = cache / peer.name
    python, mark = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(peer.packages)
    if not (mark.exists() and mark.read_text() == wanted):
        base = suitable(peer)
        print(f"  installing {', '.join(peer.packages)} into {home}, which takes minutes", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, *peer.packages], check=True, cwd=home)
        mark.write_text(wanted)
    return python


def suitable(peer: Peer) -> str:
    """A Python on which the peer runs and that can make environments: this one, or else the newest on the path."""
    for python in _pythons():
        probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
        # The starters of version managers are on the path even where the version behind them is not in force.
        if probe.returncode == 0 and peer.oldest <= tuple(map(int, probe.stdout.split())) <= peer.newest:
            return python
    oldest, newest = ("{}.{}".format(*version) for version in (peer.oldest, peer.newest))
    problem = f"needs a Python of {oldest} to {newest} with ensurepip and venv, and none is on the path"
    raise Refused(peer.name, None, problem, f"Install one as python{newest}, or leave {peer.name} out of --contenders")


def _pythons() -> Iterator[str]:
    yield sys.executable
    yield from filter(None, (shutil.which(f"python3.{minor}") for minor in range(14, 10, -1)))
