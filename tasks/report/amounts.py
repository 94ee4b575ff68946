"""Numbers as a person reads them. What is missing or not finite is a dash."""

import math

NOTHING = "–"
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float | None, digits: int = 1) -> str:
    """``0.9777`` as ``97.8 %``; all and nothing have no decimals."""
    if not _there(value):
        return NOTHING
    shown = f"{100 * value:.{0 if value in (0, 1) else digits}f}"
    return f"{shown}{SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """Up to ``digits`` significant digits, thousands apart: ``1,438``, ``0.0837``, ``3.1e-05``."""
    if not _there(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def size(bytes_: float | None) -> str:
    """Bytes in powers of 1000: ``48.7 MB``."""
    if not _there(bytes_):
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(bytes_) < 999.5 or unit == "TB":
            return f"{number(bytes_)}{SPACE}{unit}"
        bytes_ /= 1000
    return NOTHING


def duration(seconds: float | None) -> str:
    """``20.6 ms``, ``39.5 s``, ``2 min 05 s`` or ``3 h 20 min``."""
    if not _there(seconds):
        return NOTHING
    if 0 < seconds < 0.1:
        return f"{number(1000 * seconds)}{SPACE}ms"
    if seconds < 120:
        return f"{number(seconds)}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    parts = (
        (minutes, "min", f"{rest:02d}", "s") if minutes < 120 else (minutes // 60, "h", f"{minutes % 60:02d}", "min")
    )
    return SPACE.join(map(str, parts))


def count(amount: int, one: str, many: str | None = None) -> str:
    """``1 client``, ``1,200 clients``."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def _there(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
