"""``fedloom replicate``: runs the claims of papers through the ordinary stages, and keeps what was measured.

A run that was stopped goes on where it was, and what is unchanged is not repeated: see :mod:`flows.cells`.
"""

import asyncio
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from flows import cells, checkout, claims, reference, verdicts
from flows.board import Board
from flows.cells import Cell
from flows.claims import Replication
from flows.forkserver import ForkServer
from flows.process import Failed
from tasks import tracking
from tasks.artifacts import read_lines, write_json, write_text
from tasks.config import Refused

ENVIRONMENT = {"FEDLOOM_TRACKING": "off", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""Of a stage: the cell is recorded as a whole, and the cores are shared out among the cells."""


def replicate(main: Path, wanted: Sequence[str], seeds: Sequence[int], jobs: int, console: Console) -> int:
    """Runs the replications ``wanted``, writes their results and the page; how many of them could not be judged.

    ``seeds`` takes the place of the seeds that the files name, unless it is empty.
    """
    known = {slug: claims.load(main, slug) for slug in wanted}
    unjudged = 0
    for slug, replication in known.items():
        with checkout.exclusive(main, f"replicate-{slug}", console.print):
            try:
                result = measure(main, slug, replication, seeds or replication.seeds, jobs, console)
            except (Failed, Refused) as error:
                unjudged += 1
                console.print(f"{slug}: {error}", style="red", markup=False, highlight=False)
                continue
        with checkout.exclusive(main, "replications", console.print):
            verdicts.keep(main, result)
            write_text(main / reference.METHODS, reference.methods_page(main))
    return unjudged


def measure(
    main: Path, slug: str, replication: Replication, seeds: Sequence[int], jobs: int, console: Console
) -> dict[str, Any]:
    """The result of one replication, of which every cell was run or had been."""
    if absent := cells.lacking(main, slug, replication):
        raise absent
    place = cells.workplace(main, slug)
    origin = verdicts.origin(main, slug, cells.code(place))
    todo = cells.plan(place, slug, replication, seeds)
    cells.about(replication, todo)  # refused now, and not after an hour
    partitions = {cell.data: cells.partition(cell) for cell in reversed(todo)}
    needed = [partitions[folder] for folder in {cell.data: None for cell in todo if cell.missing}]
    with Board(console, [*needed, *todo]) as board:
        failures = asyncio.run(run(main, place, needed, todo, jobs, board))
    for failure in failures.values():
        raise failure
    remember(todo)
    every = [*partitions.values(), *todo]
    result = verdicts.judge(origin, replication, todo, sum(sum(cell.seconds.values()) for cell in every))
    cells.sweep(place.parent, every)
    return result


async def run(
    main: Path, place: Path, partitions: Sequence[Cell], todo: Sequence[Cell], jobs: int, board: Board
) -> dict[Path, Failed]:
    """Runs what is missing of the partitions and then of the cells, ``jobs`` at a time; what failed, by its folder.

    Where one fails the others go on: what they find is kept for the next time.
    """
    # The code is that of the working folder; a model of the user's own is found in the checkout.
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": f"{main}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    stages = {stage for cell in (*partitions, *todo) for stage in cell.missing}
    gate, failures = asyncio.Semaphore(jobs), {}

    async def work(server: ForkServer, cell: Cell) -> None:
        async with gate:
            try:
                await _work(server, cell, board)
            except Failed as failed:
                failures[cell.folder] = failed
                board.fail(cell)

    async with ForkServer(place, environment, [f"tasks.{stage}.stage" for stage in sorted(stages)]) as server:
        for together in (partitions, todo):
            async with asyncio.TaskGroup() as group:
                for cell in together:
                    if cell.missing and cell.data not in failures:
                        group.create_task(work(server, cell))
    return failures


async def _work(server: ForkServer, cell: Cell, board: Board) -> None:
    places = ["--params", str(cells.prepare(cell)), "--artifacts", str(cell.folder / "artifacts")]
    for stage in cell.missing:
        start = perf_counter()
        await server.run(f"tasks.{stage}", places, functools.partial(board.hear, cell))
        seconds = {**cell.seconds, stage: round(perf_counter() - start, 2)}
        write_json(cell.record, cell.known | {"seconds": seconds})
        board.done(cell, stage)
    board.finish(cell)


def remember(todo: Sequence[Cell]) -> None:
    """Records in MLflow what is not there yet: a run for every cell, in one experiment for the replication."""
    for cell in todo:
        if cell.known["run"] is None:
            rows = read_lines(cell.folder / "artifacts" / "train" / "history.jsonl")
            tags = {"replication": cell.slug, "arm": cell.arm, "seed": str(cell.seed)}
            chosen, name = cell.settings.model_dump(mode="json"), f"{cell.arm}-{cell.seed}"
            recorded = tracking.record(f"replication/{cell.slug}", name, chosen, rows, tags)
            write_json(cell.record, cell.known | {"run": recorded})
