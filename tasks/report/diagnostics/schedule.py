"""Clients that work at their own pace: how old their uploads were, and which objective that amounts to."""

from collections import Counter
from collections.abc import Sequence

from tasks.report.amounts import count, number, percent
from tasks.report.figures import bars
from tasks.report.page import Figure, Panel, Row, Table, Text
from tasks.report.run import Run

MOST_BARS = 12


def schedule(run: Run) -> Panel | None:
    """Staleness, the sizes of the server's steps, the local steps that were assigned, and the bias of it all."""
    if not (run.arrivals and run.summary):
        return None
    summary, arrivals = run.summary, run.arrivals
    ages, taken = [int(age) for age in arrivals["staleness"]], Counter(arrivals["step"])
    sizes = [taken[step] for step in range(1, summary["rounds"] + 1)]
    drawn = [
        (
            "staleness of uploads",
            "uploads",
            ages,
            "Steps of the server from a broadcast to the upload that answers it.",
        ),
        ("uploads in a step", "steps of the server", sizes, "How many uploads each step of the server took in."),
    ]
    if all(steps is not None for steps in arrivals["local_steps"]):
        steps = [int(steps) for steps in arrivals["local_steps"]]
        drawn.append(("local steps", "uploads", steps, "Local steps that the schedule gave clients to take."))
    facts = [
        ("uploads taken in", f"{len(ages):,}"),
        ("in steps of the server", f"{summary['rounds']:,}"),
        ("staleness in the mean", number(summary["staleness"])),
        ("staleness at most", number(summary["max_staleness"])),
        ("time in which clients waited", percent(summary["idle"])),
        ("greatest share that a client had too much or too little", percent(summary["schedule_bias"])),
    ]
    figures = [Figure(_counted(f"{name}, by number of {of}", of, values), said) for name, of, values, said in drawn]
    blocks = (Text(_words(run)), Row((*figures, Table("Steps and arrivals", ("what", "how much"), facts))))
    return Panel("Who was heard when", blocks)


def _words(run: Run) -> str:
    bias, fair = run.summary["schedule_bias"], 1 / run.params.partition.clients
    verdict = (
        "The objective that this minimises is the one that was meant"
        if bias < 0.05 * fair
        else "The objective that this minimises is not quite the one that was meant"
    )
    heard, clients = count(len(set(run.arrivals["client"])), "client"), run.params.partition.clients
    return (
        f"The server did not wait for all: it heard {heard} of {clients:,}, each when it was ready. Of all weight "
        f"a client had {percent(bias)} more or less than its share at most, where a share is {percent(fair)} in "
        f"the mean. {verdict}: a schedule minimises the clients' losses with the weights that they had in the end, "
        "discounts of old uploads included."
    )


def _counted(alt: str, unit: str, values: Sequence[int]):
    """How often each of ``values`` is there: one by one where they are few, else in ranges of equal width."""
    width = max(-(-(max(values) - min(values) + 1) // MOST_BARS), 1)
    found = Counter((value - min(values)) // width for value in values)
    starts = [min(values) + place * width for place in range(max(found) + 1)]
    names = [f"{start}" if width == 1 else f"{start} to {start + width - 1}" for start in starts]
    return bars(alt, unit, names, [found[place] for place in range(len(starts))])
