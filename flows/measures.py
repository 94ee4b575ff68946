"""What a run spent, and the numbers that claims speak of: both are read off the outputs of its stages."""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar, Literal

from pydantic import Field

from flows.pipelines import Stage, nearest
from tasks.artifacts import read_json, read_lines
from tasks.config import Config, Refused, one_of

Measure = Literal["rounds", "bytes", "bytes_up", "virtual_seconds", "queries"]
COLUMNS: dict[str, tuple[str, ...]] = {
    "rounds": ("round",),
    "bytes": ("total_bytes_up", "total_bytes_down"),
    "bytes_up": ("total_bytes_up",),
    "virtual_seconds": ("virtual_seconds",),
    "queries": ("total_queries",),
}
"""The columns of the history whose sum says how much of something a run has spent so far."""


class Outputs:
    """What one run left behind in its working folder, where `artifacts/` and `metrics/` are."""

    def __init__(self, folder: Path, budget: "Budget"):
        self.folder, self.budget = folder, budget

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the training, one a round, each with what the method told of its state, null where it told
        nothing; of a run with a budget, those within it."""
        train = self.folder / "artifacts" / "train"
        rows, state = read_lines(train / "history.jsonl"), train / "diagnostics.jsonl"
        if told := {row["round"]: row for row in read_lines(state)} if state.exists() else {}:
            nothing = dict.fromkeys(name for row in told.values() for name in row)
            rows = [nothing | told.get(row["round"], {}) | row for row in rows]
        limit = self.budget.amount
        return rows if limit is None else [row for row in rows if spent(row, self.budget.of) <= limit]

    @property
    def total(self) -> float:
        """How much of what the budget is about was spent in the end."""
        return spent(self.history[-1], self.budget.of) if self.history else 0.0

    def column(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """The rows in which the column has a value, with the value."""
        known = list(self.history[0]) if self.history else []
        if known and name not in known:
            raise Refused("column", name, f"the history has none of this name{nearest(name, known)}")
        return [(row, float(row[name])) for row in self.history if row[name] is not None]

    def number(self, stage: Stage, file: str | None, field: str) -> float:
        """The number at the dotted path ``field`` of a JSON file of a stage, or else of the stage's metrics."""
        path = self.folder / "artifacts" / stage / file if file else self.folder / "metrics" / f"{stage}.json"
        here = read_json(path)
        for step in field.split("."):
            known = list(here) if isinstance(here, dict) else []
            if step not in known:
                raise Refused("field", field, f"{path.name} has no {step!r} there{nearest(step, known)}")
            here = here[step]
        if not isinstance(here, int | float):
            raise Refused("field", field, f"is no number in {path.name}, but {here!r}")
        return float(here)


def spent(row: Mapping[str, Any], of: Measure) -> float:
    """How much a run had spent after a round, from the round's row in the history."""
    for column in COLUMNS[of]:
        if row.get(column) is None:
            raise Refused("budget", of, f"the history has no column {column!r}")
    return float(sum(row[column] for column in COLUMNS[of]))


class Budget(Config):
    """What the arms that are compared may spend alike, checked on the recorded histories."""

    of: Measure = Field("rounds", description="what is spent: rounds, bytes both ways or up, virtual time, queries")
    amount: float | None = Field(
        None, gt=0, description="rows beyond it do not count; without it the arms of a claim must end with equal totals"
    )
    tolerance: float = Field(0.0, ge=0, lt=1, description="share by which totals may differ, or fall short of `amount`")

    def check(self, arms: Mapping[str, Sequence[Outputs]]) -> None:
        """Refuses arms that did not spend the same."""
        totals = {arm: [run.total for run in runs] for arm, runs in arms.items()}
        every = [total for found in totals.values() for total in found]
        wanted = max(every) if self.amount is None else self.amount
        if min(every) < wanted * (1 - self.tolerance):
            listed = ", ".join(f"{arm} {min(found):g} to {max(found):g}" for arm, found in totals.items())
            limit = "the largest" if self.amount is None else f"budget.amount = {self.amount:g}"
            allowed = (
                f"the arms did not spend the same ({listed}); each must come within {self.tolerance:.0%} of {limit}"
            )
            raise Refused("budget", self.of, allowed, "Change rounds or cohorts of the arms, or say a tolerance")


class Metric(Config):
    """A number that is read off the outputs of one run."""

    stages: ClassVar[tuple[Stage, ...]] = ("train",)

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages that must have run after the partition."""
        return self.stages

    @property
    def after_all(self) -> bool:
        """Whether it is of the run as a whole, whatever that cost."""
        return False

    def read(self, run: Outputs) -> float:
        """The number; infinity for a level that was never reached."""
        raise NotImplementedError


STATISTICS = {"mean": fmean, "min": min, "max": max, "std": lambda values: stdev(values) if len(values) > 1 else 0.0}


class Final(Metric):
    """A column of the history at the end, or at a round: a statistic of its last values, the last alone by default."""

    name: Literal["final"] = "final"
    column: str = Field(
        description="column of artifacts/train/history.jsonl or diagnostics.jsonl: test_accuracy, epsilon"
    )
    last: int = Field(1, ge=1, description="how many of the last values")
    statistic: Literal["mean", "min", "max", "std"] = Field("mean", description="what is taken of them")
    round: int | None = Field(None, ge=1, description="the round at which to look; null: the last")

    def read(self, run: Outputs) -> float:
        until = math.inf if self.round is None else self.round
        values = [value for row, value in run.column(self.column) if row["round"] <= until][-self.last :]
        if not values:
            raise Refused("column", self.column, "has no value in this run")
        return STATISTICS[self.statistic](values)


class Reach(Metric):
    """How much was spent when a column first reached a level; infinite where it never did."""

    name: Literal["reach"] = "reach"
    column: str = Field(
        description="column of artifacts/train/history.jsonl or diagnostics.jsonl, such as test_accuracy"
    )
    level: float = Field(description="the level")
    direction: Literal["up", "down"] = Field("up", description="whether the column has to rise or to fall to the level")
    of: Measure = Field("rounds", description="what is counted until then")
    window: int = Field(1, ge=1, description="values whose mean has to reach the level, against a lucky round")

    def read(self, run: Outputs) -> float:
        rows = run.column(self.column)
        passes = operator.ge if self.direction == "up" else operator.le
        for end in range(self.window, len(rows) + 1):
            if passes(fmean(value for _, value in rows[end - self.window : end]), self.level):
                return spent(rows[end - 1][0], self.of)
        return math.inf


class Number(Metric):
    """A number that a stage wrote: of `metrics/<stage>.json`, or of another JSON file of the stage."""

    name: Literal["number"] = "number"
    stage: Literal["partition", "train", "aggregate", "attack"] = Field(description="the stage")
    file: str | None = Field(None, description="file in artifacts/<stage>, such as evaluation.json")
    field: str = Field(description="dotted path in the file, such as per_client.worst_decile")

    @property
    def needs(self) -> tuple[Stage, ...]:
        return tuple(dict.fromkeys(("train", self.stage)))

    @property
    def after_all(self) -> bool:
        return self.stage != "partition"

    def read(self, run: Outputs) -> float:
        return run.number(self.stage, self.file, self.field)


class Leakage(Metric):
    """The worst leak of any recorded message, over all attacks of the suite."""

    name: Literal["leakage"] = "leakage"
    stages: ClassVar[tuple[Stage, ...]] = ("train", "attack")
    score: Literal["psnr", "ssim", "label_accuracy", "recovered"] = Field("psnr", description="decibels, or a share")
    defence: str = Field("none", description="behind which of attack.defences")

    @property
    def after_all(self) -> bool:
        return True

    def read(self, run: Outputs) -> float:
        return run.number("attack", None, f"messages.{self.defence}.{self.score}")


AnyMetric = one_of(Final, Reach, Number, Leakage)
