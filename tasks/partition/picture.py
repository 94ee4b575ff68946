"""How different the clients are, in a picture: ``card.svg``."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.partition.card import Card

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#1f2933", "#7b8794", "#3d6fb4"
PALETTE = (
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac",
)  # fmt: skip
NAMED = 20
"""Classes that get a colour from the list and a line in the legend; more share a continuous scale."""
STYLE = {
    # The same picture has the same bytes: no random ids, and text as outlines, whatever fonts the reader has.
    "svg.hashsalt": "fedloom",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#cbd2d9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def draw(card: Card, class_names: tuple[str, ...], title: str, path: Path) -> None:
    """Writes the picture of ``card`` as SVG, the same bytes for the same card."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8.6), facecolor="white")
        rows = figure.add_gridspec(
            2, 1, height_ratios=(4.2, 3), hspace=0.24, left=0.075, right=0.87, top=0.88, bottom=0.065
        )
        upper = rows[0].subgridspec(2, 1, height_ratios=(2.4, 1), hspace=0.2)
        lower = rows[1].subgridspec(1, 3, wspace=0.3)
        _heading(figure, card, title)
        labels = figure.add_subplot(upper[0])
        _labels(labels, card, class_names)
        _shown_sizes(figure.add_subplot(upper[1], sharex=labels), card)
        _sizes(figure.add_subplot(lower[0]), card)
        _distances(figure.add_subplot(lower[1]), card)
        _divergence(figure.add_subplot(lower[2]), card)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _heading(figure: "Figure", card: Card, title: str) -> None:
    figure.text(0.075, 0.955, title, fontsize=14, fontweight="bold")
    n = card.numbers()
    facts = (
        f"{n['samples']:,} samples · {n['clients']:,} clients of {n['smallest_client']:,} to {n['largest_client']:,} "
        f"(median {n['median_client']:,.0f}) · {n['effective_classes']:.1f} effective classes a client · "
        f"mean divergence {n['label_divergence']:.2f} bits"
    )
    figure.text(0.075, 0.925, facts, color=MUTED, fontsize=10)


def _labels(axes: "Axes", card: Card, class_names: tuple[str, ...]) -> None:
    """The label shares of every shown client, as stacked bars."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    classes = card.counts.shape[1]
    if classes <= len(PALETTE):
        colours = list(PALETTE[:classes])
    elif classes <= NAMED:
        colours = [colormaps["tab20"](k) for k in range(classes)]
    else:
        colours = [colormaps["viridis"](k / (classes - 1)) for k in range(classes)]
    shares = card.counts / card.counts.sum(1, keepdims=True)
    ends = np.cumsum(shares, axis=1)
    place = np.arange(len(card.shown) + 1) - 0.5
    below = np.zeros(len(place))
    for k in range(classes):
        # A step outline a class, instead of a rectangle a bar: the file stays small.
        above = np.append(ends[:, k], ends[-1, k])
        axes.fill_between(place, below, above, step="post", color=colours[k], linewidth=0)
        below = above
    axes.vlines(place[1:-1], 0, 1, color="white", linewidth=min(40 / len(place), 1.0))
    axes.set(xlim=(-0.5, len(card.shown) - 0.5), ylim=(0, 1), yticks=(0, 0.5, 1), yticklabels=("0", "50 %", "100 %"))
    axes.set_title(f"Labels of {_whom(card)}")
    axes.tick_params(labelbottom=False, length=0)
    if classes <= NAMED:
        from matplotlib.patches import Patch

        patches = [Patch(color=colour, label=_short(name)) for colour, name in zip(colours, class_names, strict=False)]
        # Reversed, so that the legend reads in the order of the stack.
        axes.legend(
            handles=patches[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, handlelength=1.0,
            fontsize=8 if classes <= 12 else 6.5, labelspacing=0.3,
        )  # fmt: skip
    else:
        scale = ScalarMappable(Normalize(0, classes - 1), "viridis")
        side = axes.inset_axes((1.02, 0, 0.015, 1))
        axes.figure.colorbar(scale, cax=side, label="class")


def _shown_sizes(axes: "Axes", card: Card) -> None:
    """The samples of every shown client, below its labels."""
    place = np.arange(len(card.shown))
    axes.bar(place, card.sizes[card.shown], width=0.9 if len(place) <= 100 else 1.0, color=ACCENT, linewidth=0)
    axes.set_title("Samples of the same clients")
    step = max(-(-len(place) // 20), 1)
    axes.set_xticks(place[::step], [f"{client:,}" for client in card.shown[::step]])
    axes.set_ylim(0, card.sizes[card.shown].max() * 1.08)
    axes.tick_params(length=0)
    axes.set_xlabel("client", labelpad=2)


def _sizes(axes: "Axes", card: Card) -> None:
    """The samples of all clients, sorted."""
    ordered = np.sort(card.sizes)[::-1]
    at = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 500)).astype(np.int64))
    share = 100 * (at + 1) / len(ordered)
    axes.plot(share, ordered[at], color=ACCENT, linewidth=2)
    axes.fill_between(share, ordered[at], color=ACCENT, alpha=0.12, linewidth=0)
    axes.axhline(ordered.mean(), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("mean", (100, ordered.mean()), ha="right", va="bottom", color=MUTED, fontsize=8)
    if ordered[0] > 50 * max(np.median(ordered), 1):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, ordered[0] * 1.08)
    axes.set(xlim=(0, 100), xlabel="% of clients, the largest first")
    axes.set_title(f"Samples a client (Gini {card.gini:.2f})")


def _distances(axes: "Axes", card: Card) -> None:
    """How far every client's labels are from those of all data."""
    counts, edges = np.histogram(card.total_variation, bins=25, range=(0, 1))
    axes.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.85, linewidth=0)
    mean = card.total_variation.mean()
    axes.axvline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    side = "left" if mean < 0.7 else "right"
    axes.annotate(f" mean {mean:.2f} ", (mean, counts.max() * 1.05), ha=side, va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, counts.max() * 1.12), xlabel="total variation: 0 alike, 1 disjoint")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Clients by distance to all data")


def _divergence(axes: "Axes", card: Card) -> None:
    """The Jensen-Shannon divergence of every pair of shown clients."""
    image = axes.imshow(card.divergence, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    step = max(-(-len(card.shown) // 4), 1)
    ticks = np.arange(len(card.shown))[::step]
    names = [f"{client:,}" for client in card.shown[::step]]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.set_title("Divergence of pairs (bits)")
    axes.set_xlabel("client")
    side = axes.inset_axes((1.04, 0, 0.05, 1))
    bar = axes.figure.colorbar(image, cax=side)
    bar.outline.set_visible(False)
    side.tick_params(length=0)


def _whom(card: Card) -> str:
    shown, clients = len(card.shown), len(card.sizes)
    return f"all {clients:,} clients" if shown == clients else f"{shown} of {clients:,} clients, evenly spaced"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
