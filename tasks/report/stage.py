"""Makes the page that says what was run, what came of it and what it cost.

The page is a function of `params.yaml`, of what the stages left, and of the code: its versions and its git revision at
the time are on it, as nothing depends on the page. Ids of runs are not; the copy in MLflow is found by its run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import publish, write_text
from tasks.report.diagnostics import DIAGNOSTICS
from tasks.report.page import render
from tasks.report.run import Run

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.tracking import Tracker


def report(params: "Params", artifacts: Path, tracker: "Tracker") -> None:
    """Makes the page to read out of what the other stages left: publishes artifacts/report/index.html."""
    page = made(Run(params, artifacts))
    with publish(artifacts / "report") as folder:
        write_text(folder / "index.html", page)
    tracker.artifact(artifacts / "report" / "index.html")


def made(run: Run) -> str:
    """The page of ``run``."""
    panels = [panel for diagnostic in DIAGNOSTICS if (panel := diagnostic(run)) is not None]
    return render(title(run), run.params.report.note, lead(run), panels)


def title(run: Run) -> str:
    """The title asked for, or one that names method and data."""
    data = run.meta.dataset if run.meta else run.params.partition.dataset.name
    return run.params.report.title or f"{run.params.train.algorithm.name} on {data}"


def lead(run: Run) -> str:
    """The run in a sentence, and what the page says of it."""
    clients, train, model = run.params.partition.clients, run.params.train, run.params.model.name
    rounds = run.summary["rounds"] if run.summary else train.rounds
    # By what they have, as in the panels: to import the methods would make the page depend on all of their code.
    if hasattr(train.topology, "graph"):
        how = (
            f"{clients:,} nodes trained a {model} model each for {rounds:,} rounds, and mixed it with their neighbours'"
        )
    elif run.arrivals:
        how = f"{clients:,} clients trained a {model} model, each at its own pace, for {rounds:,} steps of the server"
    else:
        how = f"{clients:,} clients, {train.cohort:,} of them a round for {rounds:,} rounds, trained a {model} model"
    return (
        f"{how}, without sharing their data. How good it is, what it cost, and what could be read back out of the "
        "messages."
    )
