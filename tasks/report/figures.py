"""Drawings as SVG in the page's own colours: the same bytes for the same numbers, light or dark as the reader likes."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1c2430",
    "muted": "#55606e",
    "line": "#dcdfe4",
    "blue": "#1f5fbf",
    "orange": "#a8500c",
    "green": "#17704a",
    "red": "#ad1f35",
    "purple": "#6a48bd",
    "fill": "#9dbbe6",
}
"""The names of the style sheet's variables, and the values that a drawing is made with."""

SERIES = ("blue", "orange", "green", "purple", "red")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
MOST_POINTS = 500

STYLE = {
    "svg.hashsalt": "fedloom",
    # Text stays text: a reader can select it, and the page's fonts are used.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}


class Line(NamedTuple):
    """A named series; points without a value are left out."""

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]


def lines(alt: str, x: str, y: str, series: Sequence[Line], share: bool = False) -> Markup:
    """Series over a common axis, told apart by colour and dashes. ``share`` says that the values lie in 0..1."""

    def draw(axes: "Axes") -> None:
        for i, line in enumerate(series):
            points = thinned([(a, b) for a, b in zip(line.x, line.y, strict=True) if _finite(a) and _finite(b)])
            look = {"color": COLOURS[SERIES[i % len(SERIES)]], "linestyle": DASHES[i % len(DASHES)]}
            marker = "o" if len(points) < 25 else None
            axes.plot([a for a, _ in points], [b for _, b in points], label=line.name, marker=marker, **look)
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(_few_ticks())
        if share:
            _in_percent(axes.yaxis)
            axes.set_ylim(0, 1.02)
        if len(series) > 1:
            axes.legend(loc="best")

    return svg(draw, alt)


def histogram(alt: str, x: str, y: str, values: Sequence[float], marks: Sequence[tuple[str, float]]) -> Markup:
    """How many of ``values``, shares in 0..1, lie where; ``marks`` are named places on the axis."""

    def draw(axes: "Axes") -> None:
        low = min(math.floor(20 * min(values)) / 20, 0.75)
        heights, _, _ = axes.hist(values, bins=20, range=(low, 1), color=COLOURS["fill"], linewidth=0)
        for i, (name, value) in enumerate(marks):
            axes.axvline(value, color=COLOURS[SERIES[i]], linestyle=DASHES[i], linewidth=1.5, label=name)
        axes.set(xlabel=x, ylabel=y, ylim=(0, 1.1 * max(heights)))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="x", visible=False)
        _in_percent(axes.xaxis)
        axes.legend(loc="best")

    return svg(draw, alt)


def bars(alt: str, x: str, names: Sequence[str], values: Sequence[float]) -> Markup:
    """One horizontal bar a name, the first on top."""

    def draw(axes: "Axes") -> None:
        axes.barh(names, values, color=COLOURS["fill"], height=0.62)
        axes.invert_yaxis()
        axes.set(xlabel=x)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(_few_ticks())

    return svg(draw, alt, height=0.75 + 0.3 * len(names))


def roc(alt: str, series: Sequence[Line]) -> Markup:
    """True over false positive rates on logarithmic axes, where the few sure hits can be seen."""
    floor = 1e-3

    def draw(axes: "Axes") -> None:
        for i, line in enumerate(series):
            points = corners([(max(a, floor), max(b, floor)) for a, b in zip(line.x, line.y, strict=True)])
            look = {"color": COLOURS[SERIES[i % len(SERIES)]], "linestyle": DASHES[i % len(DASHES)]}
            axes.plot([a for a, _ in points], [b for _, b in points], label=line.name, **look)
        axes.plot([floor, 1], [floor, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)), label="chance")
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.2))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            _in_percent(axis)
        axes.legend(loc="lower right")

    return svg(draw, alt)


class Spot(NamedTuple):
    """A named point of a scatter, and whether the front goes through it."""

    name: str
    x: float
    y: float
    front: bool


def scatter(alt: str, x: str, y: str, spots: Sequence[Spot], tell: Callable[[float], str]) -> Markup:
    """Shares in 0..1 over what they cost, as ``tell`` writes it; full points are joined to the front, others hollow."""
    costs, wide = [spot.x for spot in spots], 20
    logarithmic = min(costs) > 0 and max(costs) > wide * min(costs)

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator

        front = sorted((spot.x, spot.y) for spot in spots if spot.front)
        look = {"color": COLOURS["blue"], "linewidth": 1.2}
        axes.plot([a for a, _ in front], [b for _, b in front], drawstyle="steps-post", **look)
        for full, face in ((True, COLOURS["blue"]), (False, "none")):
            places = [(spot.x, spot.y) for spot in spots if spot.front == full]
            look = {"color": COLOURS["blue" if full else "muted"], "markerfacecolor": face, "markersize": 6}
            axes.plot([a for a, _ in places], [b for _, b in places], "o", **look)
        named: dict[tuple[float, float], list[str]] = {}
        for spot in spots:
            named.setdefault((spot.x, spot.y), []).append(spot.name)
        for place, names in named.items():
            axes.annotate(", ".join(names), place, xytext=(5, 4), textcoords="offset points", fontsize=9)
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.12)
        axes.yaxis.set_major_locator(_few_ticks())
        _in_percent(axes.yaxis)
        if logarithmic:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6) if logarithmic else _few_ticks())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tell(value)))

    return svg(draw, alt)


def svg(draw, alt: str, height: float = 2.9) -> Markup:
    """What ``draw`` puts on a pair of axes, as an SVG element that is named ``alt`` and follows the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(4.7, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        return _element(figure, alt)


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about :data:`MOST_POINTS` of ``points``, evenly spaced, the first and the last among them."""
    step = -(-len(points) // MOST_POINTS) or 1
    kept = points[::step]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """``points`` without those in the middle of a level or upright stretch, which a line does not need."""
    between = zip(points, points[1:], points[2:], strict=False)
    inner = [b for a, b, c in between if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])]
    return [*points[:1], *inner, *points[1:][-1:]]


def _element(figure: "Figure", alt: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    width, tall = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, tall, alt)
    body = re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :])
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name},{colour})")
    return Markup(opening + Markup(_own_ids(body, alt)))


def _own_ids(body: str, alt: str) -> str:
    """Ids that no other drawing of the page has, and none where nothing refers to it."""
    import hashlib

    prefix = "f" + hashlib.sha256(f"{alt}{body}".encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", body)


def _in_percent(axis) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _few_ticks():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
