"""Memory of processes, seen from outside, through ``/proc``."""

import re
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (status := _read(entry / "status")):
            parents.setdefault(_field(status, "PPid"), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def peak(pid: int) -> int | None:
    """Bytes that a process and its descendants have taken at most, None where the system does not say.

    What several of them share is counted once: a process counts with its share of what is resident now (PSS), and with
    what it has given back since its own peak (VmHWM - VmRSS).
    """
    total = 0
    for member in family(pid) if PROC.exists() else ():
        status, rollup = _read(PROC / str(member) / "status"), _read(PROC / str(member) / "smaps_rollup")
        if "VmHWM" in status and "Pss" in rollup:
            total += _field(rollup, "Pss") + _field(status, "VmHWM") - _field(status, "VmRSS")
    return total * 1024 or None


def own(pid: int) -> int | None:
    """Bytes of a process and its descendants that are not pages of files, None where the system does not say.

    What a file lends is given back when another needs it; this is what would be missing."""
    texts = [_read(PROC / str(member) / "smaps_rollup") for member in family(pid)] if PROC.exists() else []
    return sum(_field(text, "Pss_Anon") for text in texts if "Pss_Anon" in text) * 1024 or None


def _field(text: str, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])


def _read(path: Path) -> str:
    """The text, empty if the process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""
