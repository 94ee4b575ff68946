"""The command line: ``python -m benchmarks speed | layouts | scale``."""

from typing import Annotated

import typer

from benchmarks import graph, tables
from benchmarks import layouts as grid
from benchmarks import scale as growth
from benchmarks import speed as speeds
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
    results = {"workloads": known["workloads"] if write else {}}
    for name, figures in speeds.measure(_known(list(workloads), WORKLOADS), chosen, rounds):
        results["workloads"][name] = figures
        if write:
            write_json(speeds.RESULTS, results)
        print(tables.workload_table(figures))
    print("\n" + tables.target_table(results))
    if write:
        tables.insert(DOCS / "benchmarks.md", "speed", tables.speed_tables(results))


@app.command()
def layouts(
    only: Annotated[str, typer.Option(help=f"Names with commas between them, of: {', '.join(grid.GRID)}.")] = ",".join(
        grid.GRID
    ),
    write: Annotated[bool, typer.Option(help="Write benchmarks/results/layouts.json and docs/benchmarks.md.")] = True,
) -> None:
    """Clients a second looped, stacked and compiled, over a grid of workloads, and how good the rule's choice is.

    On a quiet machine with two cores all of it takes about half an hour, most of which is compiling. A workload that is
    not measured keeps its figures of an earlier run.
    """
    known = read_json(grid.RESULTS) if write and grid.RESULTS.exists() else {"workloads": {}}
    results = {"workloads": known["workloads"]}
    for name, figures in grid.measure(_known(only.split(","), grid.GRID)):
        results["workloads"][name] = figures
        results["workloads"] = {key: results["workloads"][key] for key in grid.GRID if key in results["workloads"]}
        if write:
            write_json(grid.RESULTS, results)
    print("\n" + tables.layout_tables(results))
    if write:
        tables.insert(DOCS / "benchmarks.md", "layouts", tables.layout_tables(results))


@app.command()
def scale(
    largest: Annotated[int, typer.Option(help="Clients of the largest population.", min=1000)] = 1_000_000,
    write: Annotated[
        bool, typer.Option(help="Write benchmarks/results/scale.json, docs/scale.md and its picture.")
    ] = True,
) -> None:
    """Cost against population and cohort, and what a round past this machine would cost.

    On a quiet machine with two cores all of it takes about ten minutes; the largest population needs 1 GB of disk.
    """
    populations = [clients for clients in growth.POPULATIONS if clients <= largest]
    cohorts = [cohort for cohort in growth.COHORTS if cohort <= max(populations)]
    results = growth.measure(populations, cohorts)
    print("\n" + "\n\n".join(table(results) for table in SCALE.values()))
    if write:
        write_json(growth.RESULTS, results)
        projected(results)


@app.command()
def plan() -> None:
    """The plan past this machine once more, from the constants of the last `scale`."""
    if not growth.RESULTS.exists():
        raise typer.BadParameter(f"there is no {growth.RESULTS}; run `python -m benchmarks scale` first")
    results = read_json(growth.RESULTS)
    print(tables.projection_tables(results))
    projected(results)


SCALE = {
    "scale": tables.scale_tables,
    "constants": tables.constant_tables,
    "plan": tables.projection_tables,
}
"""The parts of docs/scale.md that are written by what they are computed with."""


def projected(results: dict) -> None:
    """Writes the tables of docs/scale.md and its picture."""
    for name, table in SCALE.items():
        tables.insert(DOCS / "scale.md", name, table(results))
    graph.draw(results, DOCS / "scale.svg")


def _known(names: list[str], known: dict) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names


if __name__ == "__main__":
    quiet()
    app()
