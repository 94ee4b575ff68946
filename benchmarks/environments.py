"""A virtual environment for each peer, made on first use and kept in the cache."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workloads import CACHE, ROOT

NETWORKS = ("torch", "numpy", "pydantic", "safetensors", "ruamel.yaml")
"""What ``tasks.models`` needs, so that PyTorch's peers train the very same module."""


@dataclass(frozen=True)
class Peer:
    """A peer and what pip has to install for its contender."""

    name: str
    packages: tuple[str, ...]


FLOWER = Peer("flower", ("flwr[simulation]", *NETWORKS))
PFL = Peer("pfl", ("pfl[pytorch]", *NETWORKS))
FEDJAX = Peer("fedjax", ("fedjax",))


def interpreter(peer: Peer, cache: Path = CACHE) -> Path:
    """The Python of the peer's environment.

    The versions in ``constraints.txt`` hold there too, so that all contenders run on the same PyTorch. Raises
    ``subprocess.CalledProcessError`` where pip cannot install the peer.
    """
    home, constraints = cache / peer.name, ROOT / "constraints.txt"
    python, mark = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(peer.packages) + "\n" + constraints.read_text()
    if not (mark.exists() and mark.read_text() == wanted):
        print(f"installing {', '.join(peer.packages)} into {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", constraints, *peer.packages], check=True, cwd=home)
        mark.write_text(wanted)
    return python
