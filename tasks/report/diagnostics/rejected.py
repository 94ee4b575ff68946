"""Uploads that the server left out."""

from tasks.report.amounts import count
from tasks.report.page import Panel, Table, Text
from tasks.report.run import Run

LISTED = 20


def rejected(run: Run) -> Panel | None:
    """In which rounds uploads were left out because they were not finite or too long."""
    rows = [row for row in run.history if row["rejected"]]
    if not rows:
        return None
    total = sum(row["rejected"] for row in rows)
    text = (
        f"{count(total, 'upload')} in {count(len(rows), 'round')} had a value that is not finite, or were longer than "
        f"{run.params.train.reject_above:g}. They were left out of the average and took no part in the model."
    )
    worst = sorted(rows, key=lambda row: (-row["rejected"], row["round"]))[:LISTED]
    cells = [(f"{row['round']:,}", f"{row['rejected']:,}", f"{row['cohort']:,}") for row in worst]
    caption = "Rounds with rejected uploads" if len(worst) == len(rows) else f"The {LISTED} rounds with most of them"
    return Panel("Rejected uploads", (Text(text), Table(caption, ("round", "rejected", "cohort"), cells)))
