"""Where the time of the simulation went."""

from statistics import median

from tasks.report.amounts import count, duration, number, percent
from tasks.report.figures import Line, bars, lines
from tasks.report.page import Figure, Panel, Row, Table, Text
from tasks.report.run import Run

PARTS = {
    "download": "workers read the broadcast",
    "compute": "local steps, with drawing their batches",
    "encode": "uploads onto the wire and off it, up to the workers' sums",
    "aggregate": "the sums added up, and the server's step",
    "evaluate": "scores on test and validation samples",
    "wait": "for workers, and for what travels to them and back",
}
REST = "everything else"
DRAWN = 4
"""Parts that get a line over the rounds, those that took longest."""


def time(run: Run) -> Panel | None:
    """Wall-clock seconds by part of a round, in all and round by round."""
    if not run.timings:
        return None
    rounds = [_parts(row) for row in run.timings]
    totals = [row["total"] for row in run.timings]
    total = sum(totals)
    spent = {name: sum(parts.get(name, 0.0) for parts in rounds) for name in rounds[0]}
    ordered = sorted(spent, key=lambda name: -spent[name])
    clients = sum(row["cohort"] for row in run.history)
    pace = f", {number(clients / total)} clients a second" if clients and total else ""
    slowest = max(run.timings, key=lambda row: row["total"])
    text = (
        f"{duration(total)} for {count(len(totals), 'round')}{pace}, on the machine that trained; other runs differ. "
        f"A typical round took {duration(median(totals))}, the longest, round {slowest['round']:,}, "
        f"{duration(slowest['total'])}."
    )
    rows = [
        (
            name,
            PARTS.get(name, "cohorts drawn, work prepared, logs"),
            duration(spent[name]),
            percent(spent[name] / total),
        )
        for name in ordered
    ]
    table = Table("Wall-clock time", ("part", "what it is", "in all", "share"), rows)
    first = ordered[0]
    alt = f"Seconds by part of a round; most in {first} with {duration(spent[first])}"
    whole = Figure(bars(alt, "seconds", ordered, [spent[name] for name in ordered]), "Seconds in all rounds.")
    numbers = [row["round"] for row in run.timings]
    series = [Line(name, numbers, [parts.get(name, 0.0) for parts in rounds]) for name in ordered[:DRAWN]]
    alt = f"Seconds of each round in {', '.join(ordered[:DRAWN])}; the longest is round {slowest['round']}"
    each = Figure(lines(alt, "round", "seconds", series), "Seconds of each round, in the parts that took longest.")
    return Panel("Where the time went", (Text(text), Row((whole, each)), table))


def _parts(row: dict[str, float]) -> dict[str, float]:
    """A round's seconds by part, and what is left of its whole."""
    named = {name: seconds for name, seconds in row.items() if name not in ("round", "total")}
    return named | {REST: max(row["total"] - sum(named.values()), 0.0)}
