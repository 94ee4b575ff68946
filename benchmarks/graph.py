"""Cost against population and against cohort, in a picture: ``docs/scale.svg``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.partition.picture import ACCENT, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECOND = "#a8500c"
GRID = "#e4e7eb"


class Curve(NamedTuple):
    """A named line through ``(size, value)``."""

    name: str
    points: Sequence[tuple[int, float]]


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the picture of the results of `python -m benchmarks scale`, the same bytes for the same results."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 6.4), facecolor="white", layout="constrained")
        (upper, lower) = figure.subplots(2, 2)
        staged, grown, keeping, crowds = (results[name] for name in ("partition", "population", "scaffold", "cohort"))
        mebi = 2.0**-20
        _panel(upper[0], "Seconds against population", "clients", "s", [
            Curve("partition and index", points(staged, "seconds")),
            Curve("a round of 100 clients", points(grown, "seconds")),
        ])  # fmt: skip
        _panel(upper[1], "Memory against population", "clients", "MiB", [
            Curve("partition stage, at most", points(staged, "memory", mebi)),
            Curve("training, its own", points(grown, "own", mebi)),
            Curve("training, files counted", points(grown, "memory", mebi)),
            Curve("SCAFFOLD, its own", points(keeping, "own", mebi)),
        ])  # fmt: skip
        _panel(lower[0], "A round against cohort", "clients a round", "s", [Curve("", points(crowds, "seconds"))])
        _panel(lower[1], "Memory against cohort", "clients a round", "MiB", [
            Curve("its own", points(crowds, "own", mebi)),
            Curve("files counted", points(crowds, "memory", mebi)),
        ])  # fmt: skip
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def points(figures: dict[str, dict[str, Any]], what: str, scale: float = 1.0) -> list[tuple[int, float]]:
    """``what`` of every size, the smallest first; sizes of which it is not known are left out."""
    found = {int(size): values[what] for size, values in figures.items()}
    return [(size, scale * found[size]) for size in sorted(found) if found[size] is not None]


def _panel(axes: "Axes", title: str, x: str, y: str, curves: Sequence[Curve]) -> None:
    looks = [(ACCENT, "-"), (SECOND, "-"), (ACCENT, "--"), (SECOND, "--")]
    for curve, (colour, dashes) in zip(curves, looks, strict=False):
        axes.plot(*zip(*curve.points, strict=True), dashes, color=colour, marker="o", markersize=4, label=curve.name)
    axes.set(xscale="log", xlabel=x, ylabel=y, title=title)
    if y == "s":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.35 * max(value for curve in curves for _, value in curve.points))
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.title.set_color(INK)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
