"""What the figures were taken on, and how quiet it was."""

import os
import platform
import time
from pathlib import Path
from typing import Any

WATCHED = 2.0
"""Seconds for which the machine is watched before anything is started on it."""


def machine() -> dict[str, Any]:
    """The processor, the cores that may be used, the day, and ``busy``, the share of all cores that others took."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "day": time.strftime("%Y-%m-%d"),
        "busy": _busy(),
    }


def described(machine: dict[str, Any]) -> str:
    """In a sentence."""
    text = f"{machine['cores']} cores of {machine['processor']}, {machine['system']}, on {machine['day']}"
    if machine["busy"] is None:
        return f"{text}."
    return f"{text}; other processes took {machine['busy']:.0%} of the cores when the measurement began."


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _busy() -> float | None:
    """The share of processor time that was not idle, None where the system does not say."""
    try:
        before = _ticks()
        time.sleep(WATCHED)
        spent = [after - earlier for after, earlier in zip(_ticks(), before, strict=True)]
    except OSError:
        return None
    idle = spent[3] + spent[4]
    return round(1 - idle / max(sum(spent), 1), 3)


def _ticks() -> list[int]:
    """Of all cores together: user, nice, system, idle, waiting for disks, and so on."""
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
