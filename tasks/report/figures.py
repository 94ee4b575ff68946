"""Drawings as SVG in the page's own colours: the same bytes for the same numbers, light or dark as the reader likes.

Each has its numbers with it, as the table that the page folds under it, and the places of these numbers on it, by which
`page.js` finds what a pointer means.
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

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


Cell = str | float | None
Point = tuple[float, float]


class Numbers(NamedTuple):
    """What a drawing shows: a row a place on it, named in the first column, and a column a series.

    ``points`` ``[series][rows]`` are where on the axes the numbers stand, None where a series has none. ``nearest``
    says by which coordinates a pointer chooses a row, and ``shares`` which columns lie in 0..1 and are told in percent.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    points: Sequence[Sequence[Point | None]]
    nearest: Literal["x", "y", "xy"] = "x"
    shares: Sequence[int] = ()


class Drawing(NamedTuple):
    """An SVG element, ``alt``, which says what it shows, and its numbers as text, nothing where it has none."""

    svg: Markup
    alt: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def lines(alt: str, x: str, y: str, series: Sequence[Line], share: bool = False) -> Drawing:
    """Series over a common axis, told apart by colour and dashes. ``share`` says that the values lie in 0..1."""
    drawn = [
        thinned([(a, b) for a, b in zip(line.x, line.y, strict=True) if _finite(a) and _finite(b)]) for line in series
    ]

    def draw(axes: "Axes") -> Numbers:
        for i, (line, points) in enumerate(zip(series, drawn, strict=True)):
            marker = "o" if len(points) < 25 else None
            _plot(axes, i, line.name, points, marker=marker)
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(_few_ticks(all(float(a).is_integer() for points in drawn for a, _ in points)))
        if share:
            _in_percent(axes.yaxis)
            axes.set_ylim(0, 1.02)
        if len(series) > 1:
            axes.legend(loc="best").set_gid("legend")
        rows, points = joined(drawn)
        shares = range(1, len(series) + 1) if share else ()
        return Numbers((x, *(line.name for line in series)), rows, points, shares=shares)

    return svg(draw, alt)


def histogram(alt: str, x: str, y: str, values: Sequence[float], marks: Sequence[tuple[str, float]]) -> Drawing:
    """How many of ``values``, shares in 0..1, lie where; ``marks`` are named places on the axis."""

    def draw(axes: "Axes") -> Numbers:
        low = min(math.floor(20 * min(values)) / 20, 0.75)
        heights, edges, _ = axes.hist(values, bins=20, range=(low, 1), color=COLOURS["fill"], linewidth=0)
        for i, (name, value) in enumerate(marks):
            axes.axvline(value, color=COLOURS[SERIES[i]], linestyle=DASHES[i], linewidth=1.5, label=name)
        axes.set(xlabel=x, ylabel=y, ylim=(0, 1.1 * max(heights)))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="x", visible=False)
        _in_percent(axes.xaxis)
        axes.legend(loc="best")
        bins = list(zip(edges, edges[1:], heights, strict=False))
        rows = [(f"{100 * a:.4g} to {100 * b:.4g} %", height) for a, b, height in bins]
        return Numbers((x, y), rows, [[((a + b) / 2, height) for a, b, height in bins]])

    return svg(draw, alt)


def bars(alt: str, x: str, names: Sequence[str], values: Sequence[float]) -> Drawing:
    """One horizontal bar a name, the first on top."""

    def draw(axes: "Axes") -> Numbers:
        axes.barh(names, values, color=COLOURS["fill"], height=0.62)
        axes.invert_yaxis()
        axes.set(xlabel=x)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(_few_ticks(all(float(value).is_integer() for value in values)))
        rows, places = list(zip(names, values, strict=True)), [(value, i) for i, value in enumerate(values)]
        return Numbers(("name", x), rows, [places], nearest="y")

    return svg(draw, alt, height=0.75 + 0.3 * len(names))


def roc(alt: str, series: Sequence[Line]) -> Drawing:
    """True over false positive rates on logarithmic axes, where the few sure hits can be seen."""
    floor = 1e-3
    drawn = [corners(list(zip(line.x, line.y, strict=True))) for line in series]

    def shown(point: Point) -> Point:
        return max(point[0], floor), max(point[1], floor)

    def draw(axes: "Axes") -> Numbers:
        for i, (line, points) in enumerate(zip(series, drawn, strict=True)):
            _plot(axes, i, line.name, corners([shown(point) for point in points]))
        axes.plot([floor, 1], [floor, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)), label="chance")
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.2))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            _in_percent(axis)
        axes.legend(loc="lower right").set_gid("legend")
        rows, points = joined(drawn)
        places = [[point and shown(point) for point in one] for one in points]
        header = ("false positive rate", *(line.name for line in series))
        return Numbers(header, rows, places, nearest="xy", shares=range(len(header)))

    return svg(draw, alt)


class Spot(NamedTuple):
    """A point of a scatter: the mark beside it, what it is called in full, and whether the front goes through it."""

    mark: str
    title: str
    x: float
    y: float
    front: bool


def scatter(alt: str, x: str, y: str, spots: Sequence[Spot], tell: Callable[[float], str]) -> Drawing:
    """Shares in 0..1 over what they cost, as ``tell`` writes it; full points are joined to the front, others hollow."""
    costs, wide = [spot.x for spot in spots], 20
    logarithmic = min(costs) > 0 and max(costs) > wide * min(costs)

    def draw(axes: "Axes") -> Numbers:
        from matplotlib.ticker import FuncFormatter, LogLocator

        front = sorted((spot.x, spot.y) for spot in spots if spot.front)
        look = {"color": COLOURS["blue"], "linewidth": 1.2}
        axes.plot([a for a, _ in front], [b for _, b in front], drawstyle="steps-post", **look)
        for full, face in ((True, COLOURS["blue"]), (False, "none")):
            places = [(spot.x, spot.y) for spot in spots if spot.front == full]
            look = {"color": COLOURS["blue" if full else "muted"], "markerfacecolor": face, "markersize": 6}
            axes.plot([a for a, _ in places], [b for _, b in places], "o", **look)
        marked: dict[Point, list[str]] = {}
        for spot in spots:
            marked.setdefault((spot.x, spot.y), []).append(spot.mark)
        for place, marks in marked.items():
            axes.annotate(", ".join(marks), place, xytext=(5, 4), textcoords="offset points", fontsize=9)
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.12)
        axes.yaxis.set_major_locator(_few_ticks(whole=False))
        _in_percent(axes.yaxis)
        if logarithmic:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6) if logarithmic else _few_ticks(whole=False))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tell(value)))
        rows = [(f"{s.title}, {tell(s.x)}", s.y, s.x, "on it" if s.front else "") for s in spots]
        return Numbers(("name", y, x, "Pareto front"), rows, [[(s.x, s.y) for s in spots]], nearest="xy", shares=(1,))

    return svg(draw, alt)


def svg(draw: "Callable[[Axes], Numbers | None]", alt: str, height: float = 2.9) -> Drawing:
    """What ``draw`` puts on a pair of axes, as an SVG element that is named ``alt`` and follows the page's colours.

    ``draw`` returns the numbers of the drawing, or None where it has none. A line whose ``gid`` is ``series-0`` is that
    of their first series, which a reader may hide.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(4.7, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        numbers = draw(axes)
        body, width, tall = _drawn(figure)
    if numbers is None or not numbers.rows:
        return Drawing(_element(body, width, tall, alt), alt)
    to_page = axes.transData + figure.transFigure.inverted()
    at = [[point and _place(to_page.transform(point), width, tall) for point in one] for one in numbers.points]
    colours = [SERIES[i % len(SERIES)] for i in range(len(at))]
    plot = {"nearest": numbers.nearest, "shares": list(numbers.shares), "colours": colours, "at": at}
    element = _element(
        body, width, tall, alt, Markup(' data-plot="{}"').format(json.dumps(plot, separators=(",", ":")))
    )
    return Drawing(element, alt, tuple(numbers.header), tuple(tuple(map(_cell, row)) for row in numbers.rows))


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


def joined(series: Sequence[Sequence[Point]]) -> tuple[list[list[float | None]], list[list[Point | None]]]:
    """Series as rows ``x, y, y, ...`` with one row for an x that they share, and their points row by row.

    A series that is upright somewhere has several points with the same x, and as many rows.
    """
    by_place = [dict(_numbered(points)) for points in series]
    places = sorted(set().union(*by_place))
    rows = [[x, *(one.get((x, nth)) for one in by_place)] for x, nth in places]
    points = [[(x, one[x, nth]) if (x, nth) in one else None for x, nth in places] for one in by_place]
    return rows, points


def _numbered(points: Sequence[Point]) -> Iterable[tuple[tuple[float, int], float]]:
    seen: Counter[float] = Counter()
    for x, y in points:
        yield (x, seen[x]), y
        seen[x] += 1


def _plot(axes: "Axes", i: int, name: str, points: Sequence[Point], **look) -> None:
    """The ``i``-th series, in a colour and dashes of its own."""
    look |= {"color": COLOURS[SERIES[i % len(SERIES)]], "linestyle": DASHES[i % len(DASHES)]}
    axes.plot([a for a, _ in points], [b for _, b in points], label=name, gid=f"series-{i}", **look)


def _drawn(figure: "Figure") -> tuple[str, float, float]:
    """The inside of the SVG element of ``figure``, and its width and height."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    width, tall = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    body = re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :])
    body = re.sub(r' id="series-(\d+)"', r' data-series="\1"', body).replace(' id="legend"', ' class="legend"')
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name},{colour})")
    return body, float(width), float(tall)


def _element(body: str, width: float, tall: float, alt: str, plot: str = "") -> Markup:
    opening = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}"{}>').format(width, tall, alt, plot)
    return opening + Markup(_own_ids(body, alt))


def _place(share: Sequence[float], width: float, tall: float) -> list[float]:
    """A place given in shares of the drawing, from below, in the units of its viewBox, from above."""
    return [round(float(share[0]) * width, 1), round((1 - float(share[1])) * tall, 1)]


def _cell(value: Cell) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.6g}"


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


def _few_ticks(whole: bool):
    """About six ticks; only whole numbers where the values are ``whole``."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=whole)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
