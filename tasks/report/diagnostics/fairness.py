"""Whether a model treats groups alike, within clients and over all of them, and what that costs."""

from tasks.report.amounts import count, number, percent, size
from tasks.report.figures import Line, bars, lines
from tasks.report.page import Block, Figure, Heading, Panel, Points, Row, Table, Text
from tasks.report.run import Run

PARTS = {
    "unique": (
        "the same everywhere (unique)",
        "Predictions go with the group in the same way within clients and over all of them, so to remove it within "
        "every client removes it for all.",
    ),
    "redundant": (
        "between clients (redundant)",
        "Groups live at different clients, and predictions differ between these. Clients that are fair, each for "
        "itself, leave it as it is: locally fair does not imply globally fair.",
    ),
    "masked": (
        "hidden within clients (masked)",
        "Within clients one group is favoured, here this one and there another, and over all clients it cancels: "
        "globally fair does not imply locally fair.",
    ),
}


def fairness(run: Run) -> Panel | None:
    """The disparity taken apart, in plain words, and the best accuracy that limits of it allow."""
    found = run.fairness
    if not found:
        return None
    parts = [found[part] for part in PARTS]
    names = [name for name, _ in PARTS.values()]
    alt = "Bars of the disparity in bits: " + ", ".join(
        f"{name} {number(bits)}" for name, bits in zip(names, parts, strict=True)
    )
    drawing = bars(alt, "bits", names, parts)
    blocks: list[Block] = [
        Text(_how(found)),
        Row((Figure(drawing, "What the disparity is made of."), _table(found))),
        Points(_meaning(found)),
    ]
    if found["frontier"]:
        blocks += _frontier(found)
    return Panel("Fairness within and between clients", blocks)


def _how(found: dict) -> str:
    whose = "Each client predicts with its own model. " if found["predictions"] == "own" else ""
    return (
        f"{whose}How much a prediction tells of `{found['attribute']}`, in bits: over all samples, and within clients. "
        f"For it each of {count(len(found['clients']), 'client')} sends a table of counts, "
        f"{size(found['message_bytes'])}, of {count(found['samples'], 'sample')} in all."
    )


def _table(found: dict) -> Table:
    parity, bias = found["parity"], found["bias"]
    rows = [
        ("over all samples", number(found["total"]), number(bias["total"]), percent(parity["difference"])),
        ("within clients", number(found["local"]), number(bias["local"]), percent(parity["local_difference"])),
    ]
    header = ("where", "disparity in bits", "of it by chance", "gap in how often a group is given the second class")
    return Table("Disparity", header, rows)


def _meaning(found: dict) -> list[tuple[str, str]]:
    """The sentences on the parts, the largest first; parts that chance explains are left out."""
    floor = max(found["bias"].values())
    large = sorted((part for part in PARTS if found[part] > floor), key=lambda part: -found[part])
    if not large:
        return [("None to speak of.", "All parts are as small as chance makes them with so few samples.")]
    return [(f"{number(found[part])} bits {PARTS[part][0]}.", PARTS[part][1]) for part in large]


def _frontier(found: dict) -> list[Block]:
    frontier, accuracy = found["frontier"], found["accuracy"]
    shown = sorted({0, len(frontier["local"]) // 2, len(frontier["local"]) - 1})
    series = [
        Line(
            f"within clients at most {number(frontier['local'][column], 2)}",
            frontier["total"],
            [row[column] for row in frontier["accuracy"]],
        )
        for column in shown
    ]
    series.append(Line("this model", [found["total"]], [accuracy]))
    alt = (
        f"Best accuracy over the limit of the global disparity, for {count(len(shown), 'limit')} of the local one; "
        f"this model has {percent(accuracy)} at {number(found['total'])} bits"
    )
    caption = "The best accuracy that is possible under limits of both disparities, in bits."
    drawing = lines(alt, "disparity over all samples, at most", "accuracy", series)
    first, last = frontier["accuracy"][0], frontier["accuracy"][-1]
    costs = [
        ("no limit", percent(last[-1])),
        ("none over all samples", percent(first[-1])),
        ("none within clients", percent(last[0])),
        ("neither", percent(first[0])),
        ("those of this model", percent(frontier["best"])),
    ]
    text = (
        "This is a bound of the data, not of a model: predictions may know the label. No method of training gets above "
        f"it. On the same samples the predictions have {percent(accuracy)}."
    )
    table = Table("Best accuracy", ("disparity allowed", "accuracy"), costs)
    return [Heading("What fairness costs at least"), Text(text), Row((Figure(drawing, caption), table))]
