"""The command line: ``python -m benchmarks speed | layouts | scale``."""

from typing import Annotated

import typer

from benchmarks import speed as speeds
from benchmarks import tables
from benchmarks.workloads import ROOT, WORKLOADS
from tasks.artifacts import read_json, write_json
from tasks.tracking import quiet

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speed and scale, measured here and now.",
)

DOCS = ROOT / "docs"


@app.command()
def speed(
    workloads: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {workload.title}" for name, workload in WORKLOADS.items()))
    ] = "".join(WORKLOADS),
    contenders: Annotated[
        str, typer.Option(help=f"Names with commas between them, of: {', '.join(speeds.CONTENDERS)}.")
    ] = ",".join(speeds.CONTENDERS),
    rounds: Annotated[
        int | None, typer.Option(help="Rounds a pass; without it, as many as fill about a second.", min=1)
    ] = None,
    write: Annotated[bool, typer.Option(help="Write benchmarks/results/speed.json and docs/benchmarks.md.")] = True,
) -> None:
    """The same job through a plain loop, Fedloom, Flower, pfl-research and FedJAX, in turns.

    The peers are installed into environments of their own under .fedloom/benchmarks. On a quiet machine with two cores
    all of it takes about a quarter of an hour. A workload that is not measured keeps its figures of an earlier run.
    """
    chosen = [name for name in speeds.CONTENDERS if name in _known(contenders.split(","), speeds.CONTENDERS)]
    known = read_json(speeds.RESULTS) if write and speeds.RESULTS.exists() else {"workloads": {}}
    results = {"machine": speeds.machine(), "workloads": known["workloads"] if write else {}}
    for name, figures in speeds.measure(_known(list(workloads), WORKLOADS), chosen, rounds):
        results["workloads"][name] = figures
        if write:
            write_json(speeds.RESULTS, results)
        print(tables.workload_table(figures))
    print("\n" + tables.target_table(results))
    if write:
        tables.insert(DOCS / "benchmarks.md", "speed", tables.speed_tables(results))


def _known(names: list[str], known: dict) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names


if __name__ == "__main__":
    quiet()
    app()
