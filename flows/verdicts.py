"""What replications came to: judged from the outputs of their cells, kept as JSON, shown in `docs/replications.md`."""

import hashlib
import math
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from flows import claims
from flows.cells import Cell, about, code
from flows.claims import Estimate, Inequality, Judgement, Reference, Replication
from flows.measures import Outputs
from tasks import tracking
from tasks.artifacts import read_json, read_lines, write_json, write_text
from tasks.config import Refused

PAGE = Path("docs") / "replications.md"
BEGIN, END = "<!-- measured: written by `fedloom replicate` -->", "<!-- end of measured -->"
COSTS = ("bytes_up", "bytes_down", "virtual_seconds", "train_seconds", "epsilon", "delta", "epsilon_extrapolated")
LEAKS = ("psnr", "recovered", "label_accuracy")


class Measured(NamedTuple):
    """A cell's numbers: those that the claims speak of, what it cost, and what it leaked where it was attacked."""

    metrics: dict[str, float]
    costs: dict[str, float | None]
    leaks: dict[str, float | None] | None


def measure(replication: Replication, cell: Cell) -> Measured:
    """Reads a cell's numbers off its folder."""
    outputs = Outputs(cell.folder, replication.budget)
    metrics = {}
    for name, metric in replication.metrics.items():
        try:
            metrics[name] = metric.read(outputs)
        except Refused as refused:
            raise _placed(refused, cell.slug, f"metrics.{name}.") from None
    summary = read_json(cell.folder / "artifacts" / "train" / "summary.json")
    timings = read_lines(cell.folder / "artifacts" / "timings.jsonl")
    summary["train_seconds"] = round(sum(row["total"] for row in timings), 2)
    leaks = None
    if "attack" in cell.stages:
        found = read_json(cell.folder / "metrics" / "attack.json")["messages"]
        worst = next(iter(found.values()), {})
        leaks = {name: worst.get(name) for name in LEAKS}
    return Measured(metrics, {name: summary.get(name) for name in COSTS}, leaks)


def _placed(refused: Refused, slug: str, field: str) -> Refused:
    """``refused`` with its place in the file of a replication."""
    where = f"{claims.FOLDER}/{slug}.yaml: {field}{refused.where}"
    return Refused(where, refused.found, refused.allowed, refused.mend)


def judge(origin: Mapping[str, Any], replication: Replication, todo: Sequence[Cell], seconds: float) -> dict[str, Any]:
    """The result of a replication as it is kept: every number, what the claims come to, and what produced them.

    Raises
    ------
    Refused
        Where the arms of a claim did not spend the same, or a metric names what is not there.
    """
    slug, arms, seeds = todo[0].slug, list(replication.arms), list(dict.fromkeys(cell.seed for cell in todo))
    outputs = {arm: [Outputs(cell.folder, replication.budget) for cell in todo if cell.arm == arm] for arm in arms}
    for claim in replication.claims:
        try:
            replication.budget.check({arm: outputs[arm] for arm in claim.arms})
        except Refused as refused:
            raise _placed(refused, slug, "") from None
    found = {(cell.arm, cell.seed): measure(replication, cell) for cell in todo}
    values: list[dict[Reference, float]] = [
        {(arm, name): found[arm, seed].metrics[name] for arm in arms for name in replication.metrics} for seed in seeds
    ]
    return {
        "slug": slug,
        "about": about(replication, todo),
        "paper": replication.paper.model_dump(),
        "scaled": replication.scaled,
        "remark": replication.remark,
        **origin,
        "budget": replication.budget.model_dump(),
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "claims": [
            {**claim.model_dump(), **_judgement(judgement)}
            for claim, judgement in zip(replication.claims, replication.judge(values), strict=True)
        ],
        "metrics": {
            name: {arm: _estimate([found[arm, seed].metrics[name] for seed in seeds]) for arm in arms}
            for name in replication.metrics
        },
        "arms": {arm: _arm([found[arm, seed] for seed in seeds]) for arm in arms},
        "params": {cell.arm: cell.settings.model_dump(mode="json") for cell in todo if cell.seed == seeds[0]},
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


def origin(main: Path, slug: str, digest: str) -> dict[str, Any]:
    """What is about to be run: the revision, whether it was edited since, the hashes of its code and of the file."""
    edited = tracking.git("status", "--porcelain", "--", "tasks", f"{claims.FOLDER}/{slug}.yaml", folder=main)
    return {
        "revision": tracking.git("rev-parse", "HEAD", folder=main),
        "edited": bool(edited),
        "code": digest,
        "file": _digest(main, slug),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
    }


def _digest(main: Path, slug: str) -> str:
    return hashlib.sha256((main / claims.FOLDER / f"{slug}.yaml").read_bytes()).hexdigest()


def _number(value: float) -> float | None:
    """A number as JSON can hold it: null for a level that was never reached."""
    return value if math.isfinite(value) else None


def _estimate(values: Sequence[float], estimate: Estimate | None = None) -> dict[str, Any]:
    """The mean, its interval and the values, null where a level was never reached."""
    mean, low, high = estimate or Estimate.of(values)
    return {"mean": _number(mean), "low": low, "high": high, "values": [_number(value) for value in values]}


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {"margin": _estimate(judgement.margins, judgement.margin), "holds": judgement.holds}


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


def keep(main: Path, result: Mapping[str, Any]) -> None:
    """Writes a result, and what all results say between the markers of the page."""
    write_json(main / claims.FOLDER / "results" / f"{result['slug']}.json", result)
    path = main / PAGE
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Replications\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise Refused(str(PAGE), None, f"lacks the lines {BEGIN!r} and {END!r} between which the table goes")
    head, _, rest = text.partition(BEGIN)
    write_text(path, f"{head}{BEGIN}\n\n{page(results(main))}\n{END}{rest.partition(END)[2]}")


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
            colour = "green" if claim["holds"] else "red"
            table.add_row(
                slug,
                escape(claim["that"]),
                escape(_sides(result, claim["that"])),
                f"{_spread(claim['margin'], '+')}\n{_each(claim['margin'], '+')}",
                f"[{colour}]{_holds(claim)}[/]",
                f"{result['seconds']:.0f}",
            )
    return table


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all claims, and of each replication what its arms cost and leaked, as Markdown."""
    rows = [["replication", "claimed", "measured", "margin", "holds", "seconds", "how to run"]]
    for slug, result in found.items():
        for i, claim in enumerate(result["claims"]):
            said = f"{claim['says']}: " if claim["says"] else ""
            rows.append(
                [
                    "" if i else f"[{slug}](#{slug})",
                    f"{said}`{claim['that']}`" + (" on every seed" if claim["on"] == "every_seed" else ""),
                    _sides(result, claim["that"]),
                    _spread(claim["margin"], "+"),
                    _holds(claim) if claim["holds"] else f"**{_holds(claim)}**",
                    "" if i else f"{result['seconds']:.0f}",
                    "" if i else f"`fedloom replicate {slug}`",
                ]
            )
    blocks = [markdown(rows)]
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
                *(_shown(costs[name]) for name in ("virtual_seconds", "train_seconds")),
                _privacy(costs),
                _shown(leaks["psnr"]),
                _shown(leaks["recovered"]),
            ]
        )
    yield markdown(rows)
    if result["remark"]:
        yield result["remark"].strip()
    seeds, revision = ", ".join(map(str, result["seeds"])), (result["revision"] or "unknown")[:10]
    yield f"Seeds {seeds}; revision `{revision}`{edited}; [all numbers](../{claims.FOLDER}/results/{slug}.json)."


def _privacy(costs: Mapping[str, float | None]) -> str:
    """The privacy loss with its delta, and what it is extrapolated to where that was asked for."""
    if costs["epsilon"] is None:
        return "–"
    beyond = costs.get("epsilon_extrapolated")
    extrapolated = "" if beyond is None else f"; EXTRAPOLATED {beyond:.3g}"
    return f"{costs['epsilon']:.3g} (δ = {costs['delta']:.0e}){extrapolated}"


def _holds(claim: Mapping[str, Any]) -> str:
    """Whether a claim holds; and whether the seeds leave that open, where their interval has room for the opposite."""
    low, high = claim["margin"]["low"], claim["margin"]["high"]
    return ("yes" if claim["holds"] else "no") + (", within the spread" if low is not None and low < 0 < high else "")


def _sides(result: Mapping[str, Any], text: str) -> str:
    """The metrics that a claim speaks of, as measured."""
    used = Inequality.parse(text).references
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


def markdown(rows: Collection[Sequence[str]]) -> str:
    """A table of which the first row is the head."""
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))
