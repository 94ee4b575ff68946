"""What came out, in plain words, before anything else."""

from collections.abc import Iterator

from tasks.partition.federation import Exchange
from tasks.report.amounts import count, duration, number, percent, size
from tasks.report.page import Panel, Points, Tiles
from tasks.report.recoveries import recoveries, sentences
from tasks.report.run import Run


def findings(run: Run) -> Panel | None:
    """The numbers at a glance, and a sentence on each."""
    tiles, points = list(_tiles(run)), list(_points(run))
    return Panel("What came out", (Tiles(tiles), Points(points))) if points else None


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    if run.evaluation:
        whole, clients = run.evaluation["global"], run.evaluation["per_client"]
        yield "Test accuracy", percent(whole["accuracy"]), f"of {count(whole['samples'], 'sample')}"
        yield (
            "Worst tenth of clients",
            percent(clients["worst_decile"]),
            f"best tenth {percent(clients['best_decile'])}",
        )
    if run.summary:
        up, down = run.summary["bytes_up"], run.summary["bytes_down"]
        yield "Sent", size(up + down), f"{size(up)} up, {size(down)} down"
        seconds, rounds = run.summary["virtual_seconds"], run.summary["rounds"]
        yield "Time on the devices", duration(seconds), f"virtual, {count(rounds, 'round')}"
        epsilon = run.summary["epsilon"]
        remark = "no formal promise" if epsilon is None else f"at delta {number(run.summary['delta'])}"
        yield "Privacy loss (epsilon)", "none" if epsilon is None else number(epsilon), remark
    if leaks := [found for found in recoveries(run) if found.total and not found.malicious]:
        # A sample read back weighs more than any number of labels.
        most = max(leaks, key=lambda found: (found.nouns != "labels", found.share))
        yield (
            "Read back out of messages",
            f"{most.recovered} of {most.total}",
            f"{most.nouns}, out of {count(most.messages, 'message')}",
        )


def _points(run: Run) -> Iterator[tuple[str, str]]:
    if run.evaluation:
        yield "Accuracy.", _accuracy(run)
        yield "Fairness.", _fairness(run.evaluation["per_client"])
    if run.evaluation and run.evaluation["personalised"]:
        yield "Personalisation.", _personalisation(run.evaluation["personalised"])
    if run.summary:
        yield "Price.", _price(run.summary)
        yield "Privacy.", _privacy(run.summary)
    if run.meta and run.meta.exchange.bytes_up:
        yield "Before the training.", _exchange(run.meta.exchange)
    for sentence in sentences(run):
        yield "Leakage.", sentence
    for row in run.membership:
        yield "Membership.", f"{row['attack']} {row['verdict']}."


def _accuracy(run: Run) -> str:
    whole = run.evaluation["global"]
    classes = [c for c in whole["classes"] if c["accuracy"] is not None]
    sentence = f"The released model gets {percent(whole['accuracy'])} of {count(whole['samples'], 'test sample')} right"
    if run.summary:
        sentence += f" after {count(run.summary['rounds'], 'round')}"
        sentence += " (stopped early)" if run.summary["stopped_early"] else ""
    if len(classes) > 1:
        hardest = min(classes, key=lambda c: c["accuracy"])
        sentence += f"; the hardest class is “{hardest['name']}” with {percent(hardest['accuracy'])}"
    return sentence + "."


def _fairness(clients: dict) -> str:
    if clients["mean"] is None:
        return "The model has no accuracy on single clients: none has enough samples, or it diverged."
    return (
        f"A client gets {percent(clients['mean'])} on average; the worst-served tenth "
        f"{percent(clients['worst_decile'])}, the best-served {percent(clients['best_decile'])} (Jain's index "
        f"{number(clients['jain'])}, 1 is even)."
    )


def _personalisation(own: dict) -> str:
    return (
        f"{own['name']} moves the mean client from {percent(own['before']['mean'])} to {percent(own['mean'])} on "
        f"held-out samples: better for {own['improved']:,}, worse for {own['worsened']:,} of "
        f"{count(own['clients'], 'client')}."
    )


def _price(summary: dict) -> str:
    return (
        f"{size(summary['bytes_up'])} went up and {size(summary['bytes_down'])} down in "
        f"{count(summary['rounds'], 'round')}, which took {duration(summary['virtual_seconds'])} on the devices' "
        "virtual clock."
    )


def _exchange(exchange: Exchange) -> str:
    return (
        f"To refine the data, {size(exchange.bytes_up)} of statistics went up and {size(exchange.bytes_down)} down, "
        f"which the price includes. {count(exchange.exposed_samples, 'training sample')} can be calculated exactly "
        "from what the owner sent."
    )


def _privacy(summary: dict) -> str:
    if summary["epsilon"] is None:
        return "The training makes no formal promise: no differential privacy was in force."
    return (
        f"The training is differentially private with epsilon {number(summary['epsilon'])} at delta "
        f"{number(summary['delta'])} (mechanism {summary['privacy']})."
    )
