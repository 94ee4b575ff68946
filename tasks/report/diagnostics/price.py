"""What the training cost: bytes, time and privacy."""

from tasks.report.amounts import duration, number, percent, size
from tasks.report.figures import Line, lines
from tasks.report.page import Block, Figure, Panel, Row, Table
from tasks.report.run import Run


def price(run: Run) -> Panel | None:
    """The price in all, a round and a message."""
    if not (run.summary and run.history):
        return None
    summary, rounds = run.summary, len(run.history)
    messages = sum(row["cohort"] for row in run.history)
    whole = 4 * summary["parameters"]
    up, down = sum(run.column("bytes_up")), sum(run.column("bytes_down"))
    share = up / messages / whole if messages and whole else None
    rows = [
        ("bytes up", size(summary["bytes_up"]), *_spread(up, rounds, messages)),
        ("bytes down", size(summary["bytes_down"]), *_spread(down, rounds, messages)),
        ("virtual time", duration(summary["virtual_seconds"]), duration(summary["virtual_seconds"] / rounds), ""),
    ]
    before = (("up", summary["bytes_up"] - up), ("down", summary["bytes_down"] - down))
    rows += [(f"of these {way}, before the training", size(sent), "", "") for way, sent in before if sent]
    if run.timings:
        wall = sum(row["total"] for row in run.timings)
        rows.append(("wall clock of the simulation", duration(wall), duration(wall / len(run.timings)), ""))
    rows.append(("uploads rejected", f"{summary['rejected']:,} of {messages:,}", "", ""))
    table = Table("The price", ("what", "in all", "a round", "a message"), rows)
    facts = [
        ("an upload against the whole model in float32", percent(share)),
        ("privacy loss epsilon", "no promise" if summary["epsilon"] is None else number(summary["epsilon"])),
        ("at delta", number(summary["delta"])),
        ("mechanism", summary["privacy"]),
    ]
    if summary.get("epsilon_extrapolated") is not None:
        scale = run.params.train.privacy.extrapolate_to
        where = f"{scale.cohort:,} of {scale.population:,} clients a round, assuming the same accuracy there"
        facts.append((f"epsilon EXTRAPOLATED to {where}", number(summary["epsilon_extrapolated"])))
    blocks: list[Block] = [Row((table, Table("Compression and privacy", ("measure", "value"), facts)))]
    if summary["epsilon"] is not None:
        spent = run.column("epsilon")
        alt = f"Epsilon over rounds, ending at {number(summary['epsilon'])}"
        drawing = lines(alt, "round", "epsilon", [Line("epsilon", run.column("round"), spent)])
        blocks.append(Row((Figure(drawing, "The privacy loss as it added up."),)))
    return Panel("The price", blocks)


def _spread(total: int, rounds: int, messages: int) -> tuple[str, str]:
    return size(total / rounds), size(total / messages) if messages else ""
