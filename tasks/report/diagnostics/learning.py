"""Accuracy and loss over rounds, over bytes and over the devices' time."""

from tasks.report.amounts import number, percent
from tasks.report.figures import Line, lines
from tasks.report.page import Figure, Panel, Row, Text
from tasks.report.run import Run

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def learning(run: Run) -> Panel | None:
    """The course of the training."""
    if not run.history:
        return None
    rounds, seconds = run.column("round"), run.column("virtual_seconds")
    sent = [row["total_bytes_up"] + row["total_bytes_down"] for row in run.history]
    scale, unit = next((s, u) for s, u in UNITS if sent[-1] >= s or s == 1)
    sent = [total / scale for total in sent]
    accuracy, held_out = run.column("test_accuracy"), run.column("validation_accuracy")
    test = [value for value in accuracy if value is not None]
    ends = f"from {percent(test[0])} to {percent(test[-1])}" if test else "never evaluated"
    by_round = [Line("test set", rounds, accuracy)]
    if any(value is not None for value in held_out):
        by_round.append(Line("clients' held-out samples", rounds, held_out))
    losses = [
        Line("clients, while training", rounds, run.column("loss")),
        Line("test set", rounds, run.column("test_loss")),
    ]
    figures = (
        Figure(
            lines(f"Accuracy over rounds: {ends}", "round", "accuracy", by_round, share=True), "Accuracy over rounds."
        ),
        Figure(lines(f"Loss over rounds: {_ends(run)}", "round", "loss (nats)", losses), "Loss over rounds."),
        Figure(
            lines(f"Test accuracy over {unit} sent: {ends}", f"{unit} sent, up and down", "test accuracy",
                  [Line("test set", sent, accuracy)], share=True),
            "Test accuracy over the bytes sent both ways.",
        ),
        Figure(
            lines(f"Test accuracy over virtual seconds: {ends}", "seconds on the virtual clock", "test accuracy",
                  [Line("test set", seconds, accuracy)], share=True),
            "Test accuracy over the devices' time.",
        ),
    )  # fmt: skip
    return Panel("How it learned", (Text(_summary(run)), Row(figures)))


def _summary(run: Run) -> str:
    scored = [row for row in run.history if row["test_accuracy"] is not None]
    if not scored:
        return "The model was not evaluated during the training."
    best = max(scored, key=lambda row: row["test_accuracy"])
    return (
        f"Test accuracy ends at {percent(scored[-1]['test_accuracy'])} and was best in round {best['round']:,} with "
        f"{percent(best['test_accuracy'])}."
    )


def _ends(run: Run) -> str:
    values = [value for value in run.column("loss") if value is not None]
    return f"the clients' from {number(values[0])} to {number(values[-1])}" if values else "not finite"
