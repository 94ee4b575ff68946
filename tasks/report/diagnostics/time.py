"""Where the time of the simulation went."""

from tasks.report.amounts import duration, number, percent
from tasks.report.figures import bars
from tasks.report.page import Figure, Panel, Row, Table, Text
from tasks.report.run import Run


def time(run: Run) -> Panel | None:
    """Wall-clock seconds by part of a round."""
    if not run.timings:
        return None
    parts = [name for name in run.timings[0] if name not in ("round", "total")]
    total = sum(row["total"] for row in run.timings)
    spent = {name: sum(row.get(name, 0.0) for row in run.timings) for name in parts}
    spent["everything else"] = max(total - sum(spent.values()), 0.0)
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    rows = [(name, duration(seconds), percent(seconds / total if total else None)) for name, seconds in ordered]
    clients = sum(row["cohort"] for row in run.history)
    pace = f", {number(clients / total)} clients a second" if clients and total else ""
    text = f"{duration(total)} for {len(run.timings):,} rounds{pace}, on the machine that trained. Other runs differ."
    alt = f"Seconds by part of a round; most in {ordered[0][0]} with {duration(ordered[0][1])}"
    drawing = bars(alt, "seconds", [name for name, _ in ordered], [seconds for _, seconds in ordered])
    table = Table("Wall-clock time", ("part", "in all", "share"), rows)
    return Panel("Where the time went", (Text(text), Row((Figure(drawing, "Seconds in all rounds."), table))))
