"""``fedloom replicate``: runs the claims of papers through the ordinary stages, and keeps what was measured.

A cell is one arm with one seed. It has a working folder of its own under `.fedloom/replications/<slug>/`, named by its
parameters and the code of the stages, so a run that was stopped goes on where it was, and what is unchanged is not
repeated. The data in `data/` are taken not to change.
"""

import asyncio
import contextlib
import functools
import hashlib
import math
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from ruamel.yaml import YAML

from flows import checkout, claims, overrides
from flows.claims import Estimate, Judgement, Outputs, Reference, Replication
from flows.pipelines import Stage
from flows.process import GRACE, Failed
from tasks import params, progress, tracking
from tasks.artifacts import read_json, read_lines, write_json, write_text
from tasks.attack.settings import AttackSettings
from tasks.config import Refused

PAGE = Path("docs") / "replications.md"
BEGIN, END = "<!-- measured: written by `fedloom replicate` -->", "<!-- end of measured -->"
ENVIRONMENT = {"FEDLOOM_TRACKING": "off", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""Of a stage: the cell is recorded as a whole, and the cores are shared out among the cells."""
COSTS = ("bytes_up", "bytes_down", "virtual_seconds", "train_seconds", "epsilon")
LEAKS = ("psnr", "recovered", "label_accuracy")

Say = Callable[[str], None]


class Cell(NamedTuple):
    """One arm with one seed: what to run, and where."""

    slug: str
    arm: str
    seed: int
    settings: params.Params
    stages: tuple[Stage, ...]
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.slug} · {self.arm} · seed {self.seed}"

    @property
    def record(self) -> Path:
        """The file that says which stages are done, and in how many seconds."""
        return self.folder / "cell.json"

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage that is done."""
        return read_json(self.record) if self.record.exists() else {}

    @property
    def missing(self) -> list[Stage]:
        """The stages still to run; with any of them the partition, which is not kept once all are done."""
        left = [stage for stage in self.stages if stage not in self.seconds]
        again = left and "partition" not in left and not (self.folder / "artifacts" / "partition").exists()
        return ["partition", *left] if again else left


class Measured(NamedTuple):
    """A cell's numbers: those that the claims speak of, what it cost, and what it leaked where it was attacked."""

    metrics: dict[str, float]
    costs: dict[str, float | None]
    leaks: dict[str, float | None] | None


def replicate(main: Path, wanted: Sequence[str], seeds: Sequence[int], jobs: int, console: Console) -> int:
    """Runs the replications ``wanted``, writes their results and the page; how many of them could not be judged.

    ``seeds`` takes the place of the seeds that the files name, unless it is empty.
    """
    with contextlib.ExitStack() as locks:
        for slug in sorted(wanted):
            locks.enter_context(checkout.exclusive(main, f"replicate-{slug}", console.print))
        known = {slug: claims.load(main, slug) for slug in wanted}
        todo = {slug: cells(main, slug, replication, seeds) for slug, replication in known.items()}
        every = [cell for found in todo.values() for cell in found]
        with Board(console, every) as board:
            failures = asyncio.run(run(main, every, jobs, board))
        unjudged = 0
        for slug, replication in known.items():
            problem = next((failures[cell.folder] for cell in todo[slug] if cell.folder in failures), None)
            try:
                if problem:
                    raise problem
                write_json(main / claims.FOLDER / "results" / f"{slug}.json", judge(main, replication, todo[slug]))
            except (Failed, Refused) as error:
                unjudged += 1
                console.print(f"{slug}: {error}", style="red", markup=False, highlight=False)
                continue
            sweep(todo[slug])
    update(main)
    return unjudged


def cells(main: Path, slug: str, replication: Replication, seeds: Sequence[int] = ()) -> list[Cell]:
    """The cells of a replication, seed by seed.

    Every seed runs what the metrics need; the first one is attacked too, so that each arm's leak is known.
    """
    found = []
    attack = AttackSettings()
    leak = {
        "suite": [method.model_dump(mode="json") for method in attack.suite if method.needs_transcript],
        "defences": [attack.defences[0].model_dump(mode="json")],
    }
    common = overrides.merge({"attack": leak}, replication.base)
    alone = {"train": {"engine": {"workers": 0}}, "aggregate": {"registry": None}}
    for seed in seeds or replication.seeds:
        for arm, changes in replication.arms.items():
            needs = replication.needs | ({"attack"} if not found or seed == found[0].seed else set())
            stages = tuple(stage for stage in get_args(Stage) if stage in needs)
            document = overrides.merge(common, changes, alone, {"seed": seed})
            settings = params.build(document, f"{claims.FOLDER}/{slug}.yaml, arm {arm}")
            digest = hashlib.sha256(f"{settings.model_dump_json()} {code(main)}".encode()).hexdigest()[:12]
            folder = main / ".fedloom" / "replications" / slug / f"{arm}-{seed}-{digest}"
            found.append(Cell(slug, arm, seed, settings, stages, folder))
    return found


@functools.cache
def code(main: Path) -> str:
    """A hash of the code that the numbers of a cell depend on, as `dvc.yaml` lists it."""
    stages = YAML(typ="safe", pure=True).load(main / "dvc.yaml")["stages"]
    listed = {dep for name, stage in stages.items() if name != "report" for dep in stage["deps"]}
    digest = hashlib.sha256()
    for name in sorted(dep for dep in listed if dep.startswith("tasks/")):
        path = main / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(main)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


async def run(main: Path, todo: Sequence[Cell], jobs: int, board: "Board") -> dict[Path, Failed]:
    """Runs what is missing of the cells, ``jobs`` at a time; what failed, by the cell's folder.

    Where one fails the others go on: what they find is kept for the next time.
    """
    gate, failures = asyncio.Semaphore(jobs), {}

    async def work(cell: Cell) -> None:
        async with gate:
            try:
                await _work(main, cell, board)
            except Failed as failed:
                failures[cell.folder] = failed
                board.say(f"{cell.label}: failed")

    async with asyncio.TaskGroup() as group:
        for cell in todo:
            if cell.missing:
                group.create_task(work(cell))
    return failures


async def _work(main: Path, cell: Cell, board: "Board") -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    settings, file = cell.settings.model_dump(mode="json"), cell.folder / params.FILE
    with file.open("w", encoding="utf-8") as text:
        YAML(typ="safe", pure=True).dump(settings, text)
    places = ["--params", str(file), "--artifacts", str(cell.folder / "artifacts")]
    seconds = cell.seconds
    for stage in cell.missing:
        start = perf_counter()
        await _run([sys.executable, "-m", f"tasks.{stage}", *places], main, functools.partial(board.hear, cell))
        seconds[stage] = round(perf_counter() - start, 2)
        write_json(cell.record, seconds)
        board.done(cell, stage)
    # Of a large data set it is by far the largest part, and quickly made again.
    shutil.rmtree(cell.folder / "artifacts" / "partition", ignore_errors=True)
    rows = read_lines(cell.folder / "artifacts" / "train" / "history.jsonl")
    tags = {"replication": cell.slug, "arm": cell.arm, "seed": str(cell.seed)}
    name = f"{cell.arm}-{cell.seed}"
    await asyncio.to_thread(tracking.record, f"replication/{cell.slug}", name, settings, rows, tags)
    board.finish(cell, seconds)


async def _run(command: Sequence[str], folder: Path, hear: Say) -> None:
    """Runs a stage in a process group of its own; whatever ends the wait ends the whole group."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    output = []
    try:
        async for line in process.stdout:
            output.append(line.decode(errors="replace").rstrip())
            hear(output[-1])
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if status:
        raise Failed(command[1:], status, output)


class Board:
    """What a person sees: one bar for all that is to be done, with the time left, and one for each cell at work.

    A finished cell is also a line, which is all that is written where there is no terminal.
    """

    def __init__(self, console: Console, todo: Sequence[Cell]):
        self.console, self.left = console, sum(len(cell.missing) for cell in todo)
        self.reused = sum(not cell.missing for cell in todo)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
        self.bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.whole = self.bars.add_task("all", total=max(self.left, 1))
        self.known: dict[Path, TaskID] = {}
        self.parts: dict[Path, float] = {}
        self.stages = 0

    def hear(self, cell: Cell, line: str) -> None:
        """Takes in a line that a stage wrote."""
        step = progress.parse(line)
        if step is not None:
            self._move(cell, f"{cell.label} · {step.stage}", step.percent / 100)

    def done(self, cell: Cell, stage: Stage) -> None:
        """A stage of the cell has ended."""
        self.stages += 1
        self._move(cell, f"{cell.label} · {stage}", 0.0)

    def finish(self, cell: Cell, seconds: Mapping[str, float]) -> None:
        self.parts.pop(cell.folder, None)
        if cell.folder in self.known:
            self.bars.remove_task(self.known.pop(cell.folder))
        self.say(f"{cell.label}: {sum(seconds.values()):.0f} s")

    def say(self, line: str) -> None:
        self.bars.console.print(line, style="dim", markup=False, highlight=False)

    def _move(self, cell: Cell, text: str, part: float) -> None:
        if cell.folder not in self.known:
            self.known[cell.folder] = self.bars.add_task(text, total=1.0)
        self.parts[cell.folder] = part
        self.bars.update(self.known[cell.folder], description=text, completed=part)
        self.bars.update(self.whole, completed=self.stages + sum(self.parts.values()))

    def __enter__(self) -> "Board":
        if self.reused:
            self.say(f"{self.reused} cells are unchanged and not repeated")
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()


def measure(replication: Replication, cell: Cell) -> Measured:
    """Reads a cell's numbers off its folder."""
    outputs = Outputs(cell.folder, replication.budget)
    metrics = {}
    for name, metric in replication.metrics.items():
        try:
            metrics[name] = metric.read(outputs)
        except Refused as refused:
            where = f"{claims.FOLDER}/{cell.slug}.yaml: metrics.{name}.{refused.where}"
            raise Refused(where, refused.found, refused.allowed, refused.mend) from None
    summary = read_json(cell.folder / "artifacts" / "train" / "summary.json")
    timings = read_lines(cell.folder / "artifacts" / "timings.jsonl")
    summary["train_seconds"] = round(sum(row["total"] for row in timings), 2)
    leaks = None
    if "attack" in cell.stages:
        found = read_json(cell.folder / "metrics" / "attack.json")["messages"]
        worst = next(iter(found.values()), {})
        leaks = {name: worst.get(name) for name in LEAKS}
    return Measured(metrics, {name: summary.get(name) for name in COSTS}, leaks)


def judge(main: Path, replication: Replication, todo: Sequence[Cell]) -> dict[str, Any]:
    """The result of a replication as it is kept: every number, what the claims come to, and what produced them.

    Raises
    ------
    Refused
        Where the arms did not spend the same, or a metric names what is not there.
    """
    slug, arms, seeds = todo[0].slug, list(replication.arms), list(dict.fromkeys(cell.seed for cell in todo))
    outputs = {arm: [Outputs(cell.folder, replication.budget) for cell in todo if cell.arm == arm] for arm in arms}
    try:
        replication.budget.check(outputs)
    except Refused as refused:
        where = f"{claims.FOLDER}/{slug}.yaml: {refused.where}"
        raise Refused(where, refused.found, refused.allowed, refused.mend) from None
    found = {(cell.arm, cell.seed): measure(replication, cell) for cell in todo}
    values: list[dict[Reference, float]] = [
        {(arm, name): found[arm, seed].metrics[name] for arm in arms for name in replication.metrics} for seed in seeds
    ]
    return {
        "slug": slug,
        "paper": replication.paper.model_dump(),
        "scaled": replication.scaled,
        "remark": replication.remark,
        **_provenance(main, slug),
        "budget": replication.budget.model_dump(),
        "seeds": seeds,
        "seconds": round(sum(sum(cell.seconds.values()) for cell in todo), 1),
        "claims": [
            {**claim.model_dump(), **_judgement(judgement)}
            for claim, judgement in zip(replication.claims, replication.judge(values), strict=True)
        ],
        "metrics": {
            name: {arm: _estimate([found[arm, seed].metrics[name] for seed in seeds]) for arm in arms}
            for name in replication.metrics
        },
        "arms": {arm: _arm([found[arm, seed] for seed in seeds]) for arm in arms},
        "params": {cell.arm: cell.settings.model_dump(mode="json") for cell in todo},
        "cells": [
            {
                "arm": cell.arm,
                "seed": cell.seed,
                "folder": cell.folder.name,
                "metrics": {name: _number(value) for name, value in found[cell.arm, cell.seed].metrics.items()},
                "costs": found[cell.arm, cell.seed].costs,
                "leaks": found[cell.arm, cell.seed].leaks,
                "seconds": cell.seconds,
            }
            for cell in todo
        ],
    }


def _provenance(main: Path, slug: str) -> dict[str, Any]:
    """The code that was run: its revision, whether it was edited since, its hash and that of the file."""
    edited = tracking.git("status", "--porcelain", "--", "tasks", f"{claims.FOLDER}/{slug}.yaml", folder=main)
    return {
        "revision": tracking.git("rev-parse", "HEAD", folder=main),
        "edited": bool(edited),
        "code": code(main),
        "file": _digest(main, slug),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
    }


def _digest(main: Path, slug: str) -> str:
    return hashlib.sha256((main / claims.FOLDER / f"{slug}.yaml").read_bytes()).hexdigest()


def _number(value: float) -> float | None:
    """A number as JSON can hold it: null for a level that was never reached."""
    return value if math.isfinite(value) else None


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    """The mean, its interval and the values, null where a level was never reached."""
    mean, low, high = Estimate.of(values)
    return {"mean": _number(mean), "low": low, "high": high, "values": [_number(value) for value in values]}


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {"margin": _estimate(judgement.margins), "holds": judgement.holds}


def _arm(seeds: Sequence[Measured]) -> dict[str, Any]:
    """What an arm cost on average, and what leaked from it at worst."""
    costs = {}
    for name in COSTS:
        known = [found.costs[name] for found in seeds if found.costs[name] is not None]
        costs[name] = sum(known) / len(known) if known else None
    leaks = {}
    for name in LEAKS:
        known = [found.leaks[name] for found in seeds if found.leaks and found.leaks[name] is not None]
        leaks[name] = max(known, default=None)
    return {"costs": costs, "leaks": leaks}


def sweep(todo: Sequence[Cell]) -> None:
    """Removes the folders of the cells' forerunners, which had other parameters or other code."""
    for cell in todo:
        for old in cell.folder.parent.glob(f"{cell.arm}-{cell.seed}-*"):
            if old != cell.folder:
                shutil.rmtree(old, ignore_errors=True)


def results(main: Path) -> dict[str, dict[str, Any]]:
    """What was measured last, by replication."""
    return {path.stem: read_json(path) for path in sorted((main / claims.FOLDER / "results").glob("*.json"))}


def verdict(result: Mapping[str, Any]) -> str:
    """A result in a few words."""
    held, count = sum(claim["holds"] for claim in result["claims"]), len(result["claims"])
    if count == 1:
        return "holds" if held else "does not hold"
    return "all hold" if held == count else "none holds" if not held else f"{held} of {count} hold"


def current(main: Path, result: Mapping[str, Any]) -> bool:
    """Whether a result is of the code and of the file as they are now."""
    return result["code"] == code(main) and result["file"] == _digest(main, result["slug"])


def listing(main: Path) -> Table:
    """Every replication with its last verdict."""
    found = results(main)
    table = Table("replication", "paper", "claims", "when last run", box=None, pad_edge=False)
    for slug in claims.slugs(main):
        replication, result = claims.load(main, slug), found.get(slug)
        said = "not run yet" if result is None else verdict(result)
        if result is not None and not current(main, result):
            said += " (the code or the file has changed since)"
        paper = f"{replication.paper.authors}, {replication.paper.venue}"
        table.add_row(f"[bold]{slug}[/]", escape(paper), str(len(replication.claims)), said)
    return table


def rows(main: Path, wanted: Sequence[str]) -> Table:
    """What was claimed and measured, a row a claim."""
    table = Table("replication", "claimed", "measured", "margin", "holds", "seconds", pad_edge=False)
    for slug, result in results(main).items():
        for claim in result["claims"] if slug in wanted else ():
            holds = "[green]yes[/]" if claim["holds"] else "[red]no[/]"
            table.add_row(
                slug,
                escape(claim["that"]),
                escape(_sides(result, claim["that"])),
                f"{_spread(claim['margin'], '+')}\n{_each(claim['margin'], '+')}",
                holds,
                f"{result['seconds']:.0f}",
            )
    return table


def update(main: Path) -> None:
    """Writes what was measured into the page, between its markers."""
    path = main / PAGE
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Replications\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise Refused(str(PAGE), None, f"lacks the lines {BEGIN!r} and {END!r} between which the table goes")
    head, _, rest = text.partition(BEGIN)
    write_text(path, f"{head}{BEGIN}\n\n{page(results(main))}\n{END}{rest.partition(END)[2]}")


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all claims, and of each replication what its arms cost and leaked, as Markdown."""
    rows = [["replication", "claimed", "measured", "margin", "holds", "seconds", "how to run"]]
    for slug, result in found.items():
        for i, claim in enumerate(result["claims"]):
            first = not i
            rows.append(
                [
                    f"[{slug}](#{slug})" if first else "",
                    f"{claim['says']}: `{claim['that']}`" + (" on every seed" if claim["on"] == "every_seed" else ""),
                    _sides(result, claim["that"]),
                    _spread(claim["margin"], "+"),
                    "yes" if claim["holds"] else "**no**",
                    f"{result['seconds']:.0f}" if first else "",
                    f"`fedloom replicate {slug}`" if first else "",
                ]
            )
    blocks = [_markdown(rows)]
    for slug, result in found.items():
        blocks += _chapter(slug, result)
    return "\n\n".join(blocks) + "\n"


def _chapter(slug: str, result: Mapping[str, Any]) -> Iterator[str]:
    paper, edited = result["paper"], " with edits" if result["edited"] else ""
    yield f"### {slug}"
    yield f'{paper["authors"]}, "{paper["title"]}", {paper["venue"]}; {paper["where"]}. {result["scaled"].strip()}'
    rows = [["arm", *result["metrics"], "MB up", "MB down", "virtual s", "training s", "ε", "best PSNR", "recovered"]]
    for arm, found in result["arms"].items():
        costs, leaks = found["costs"], found["leaks"]
        rows.append(
            [
                arm,
                *(_spread(metric[arm]) for metric in result["metrics"].values()),
                *(_shown(_times(costs[name], 1e-6)) for name in ("bytes_up", "bytes_down")),
                *(_shown(costs[name]) for name in ("virtual_seconds", "train_seconds", "epsilon")),
                _shown(leaks["psnr"]),
                _shown(leaks["recovered"]),
            ]
        )
    yield _markdown(rows)
    if result["remark"]:
        yield result["remark"].strip()
    seeds, revision = ", ".join(map(str, result["seeds"])), (result["revision"] or "unknown")[:10]
    yield f"Seeds {seeds}; revision `{revision}`{edited}; [all numbers](../{claims.FOLDER}/results/{slug}.json)."


def _sides(result: Mapping[str, Any], text: str) -> str:
    """The metrics that a claim speaks of, as measured."""
    used = dict.fromkeys(claims.Inequality.parse(text).references)
    return "; ".join(f"{arm}.{metric} {_spread(result['metrics'][metric][arm])}" for arm, metric in used)


def _spread(estimate: Mapping[str, Any], sign: str = "") -> str:
    """A mean with half the width of its interval; of a level that was not always reached, every value."""
    if estimate["mean"] is None:
        return _each(estimate, sign)
    half = "" if estimate["high"] is None else f" ± {estimate['high'] - estimate['mean']:.2g}"
    return f"{estimate['mean']:{sign}.4g}{half}"


def _each(estimate: Mapping[str, Any], sign: str = "") -> str:
    return ", ".join("never" if value is None else f"{value:{sign}.4g}" for value in estimate["values"])


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _markdown(rows: Collection[Sequence[str]]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))
