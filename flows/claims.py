"""`replications/<slug>.yaml`: a paper's claim as something that runs, and the arithmetic by which it is judged."""

import ast
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationError

from flows.pipelines import Stage, nearest
from tasks import params
from tasks.artifacts import read_json, read_lines
from tasks.config import Config, Refused, one_of

FOLDER = "replications"

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

    def __init__(self, folder: Path, budget: "Budget | None" = None):
        self.folder, self.budget = folder, budget

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the training, one a round; of a run with a budget, those within it."""
        rows = read_lines(self.folder / "artifacts" / "train" / "history.jsonl")
        limit = math.inf if self.budget is None or self.budget.amount is None else self.budget.amount
        return rows if limit == math.inf else [row for row in rows if spent(row, self.budget.of) <= limit]

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
    """What all arms may spend alike, checked on the recorded histories."""

    of: Measure = Field("rounds", description="what is spent: rounds, bytes both ways or up, virtual time, queries")
    amount: float | None = Field(
        None, gt=0, description="rows beyond it do not count; without it all arms must end with the same total"
    )
    tolerance: float = Field(0.0, ge=0, lt=1, description="share by which totals may differ, or fall short of `amount`")

    def check(self, arms: Mapping[str, Sequence[Outputs]]) -> None:
        """Refuses arms that did not spend the same."""
        totals = {arm: [spent(run.history[-1], self.of) if run.history else 0.0 for run in arms[arm]] for arm in arms}
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

    stages: ClassVar[tuple[Stage, ...]] = ("partition", "train")

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages that must have run."""
        return self.stages

    @property
    def after_all(self) -> bool:
        """Whether it is of the model after all rounds, whatever those cost."""
        return not {"partition", "train"}.issuperset(self.needs)

    def read(self, run: Outputs) -> float:
        """The number; infinity for a level that was never reached."""
        raise NotImplementedError


STATISTICS = {"mean": fmean, "min": min, "max": max, "std": lambda values: stdev(values) if len(values) > 1 else 0.0}


class Final(Metric):
    """A column of the history at the end: a statistic of its last values, the last one alone by default."""

    name: Literal["final"] = "final"
    column: str = Field(description="column of artifacts/train/history.jsonl, such as test_accuracy or epsilon")
    last: int = Field(1, ge=1, description="how many of the last values")
    statistic: Literal["mean", "min", "max", "std"] = Field("mean", description="what is taken of them")

    def read(self, run: Outputs) -> float:
        values = [value for _, value in run.column(self.column)[-self.last :]]
        if not values:
            raise Refused("column", self.column, "has no value in this run")
        return STATISTICS[self.statistic](values)


class Reach(Metric):
    """How much was spent when a column first reached a level; infinite where it never did."""

    name: Literal["reach"] = "reach"
    column: str = Field(description="column of artifacts/train/history.jsonl, such as test_accuracy")
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
        return tuple(dict.fromkeys((*self.stages, self.stage)))

    @property
    def after_all(self) -> bool:
        return self.stage != "partition"

    def read(self, run: Outputs) -> float:
        return run.number(self.stage, self.file, self.field)


class Leakage(Metric):
    """The worst leak of any recorded message, over all attacks of the suite."""

    name: Literal["leakage"] = "leakage"
    stages: ClassVar[tuple[Stage, ...]] = ("partition", "train", "attack")
    score: Literal["psnr", "ssim", "label_accuracy", "recovered"] = Field("psnr", description="decibels, or a share")
    defence: str = Field("none", description="behind which of attack.defences")

    def read(self, run: Outputs) -> float:
        return run.number("attack", None, f"messages.{self.defence}.{self.score}")


AnyMetric = one_of(Final, Reach, Number, Leakage)

SIGNS = {ast.GtE: ">=", ast.LtE: "<=", ast.Gt: ">", ast.Lt: "<"}
SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
Reference = tuple[str, str]
"""An arm and one of the metrics."""


class Inequality(NamedTuple):
    """``method.accuracy >= baseline.accuracy + 0.02``, taken apart."""

    larger: ast.expr
    smaller: ast.expr
    strict: bool

    @classmethod
    def parse(cls, text: str) -> "Inequality":
        """Raises ``ValueError`` where ``text`` is no comparison of sums and products of `arm.metric` and numbers."""
        problem = f"must compare two sides, as in `method.accuracy >= baseline.accuracy + 0.02`, not {text!r}"
        try:
            node = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError):
            raise ValueError(problem) from None
        if not (isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SIGNS):
            raise ValueError(problem)
        sides = (node.left, node.comparators[0])
        for side in sides:
            _check(side)
        sign = SIGNS[type(node.ops[0])]
        larger, smaller = sides if sign.startswith(">") else sides[::-1]
        return cls(larger, smaller, "=" not in sign)

    @property
    def references(self) -> list[Reference]:
        nodes = [node for side in (self.larger, self.smaller) for node in ast.walk(side)]
        return [(node.value.id, node.attr) for node in nodes if isinstance(node, ast.Attribute)]

    def margin(self, values: Mapping[Reference, float]) -> float:
        """By how much the inequality holds: negative where it does not, not a number where neither side is finite."""
        return _value(self.larger, values) - _value(self.smaller, values)

    def holds(self, margin: float) -> bool:
        return margin > 0 if self.strict else margin >= 0


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in SUMS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand)
    elif not (
        (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
        or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
    ):
        raise ValueError(f"may hold arm.metric, numbers and + - * /, not {ast.unparse(node)!r}")


def _value(node: ast.expr, values: Mapping[Reference, float]) -> float:
    match node:
        case ast.BinOp():
            return SUMS[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.UnaryOp():
            return -_value(node.operand, values)
        case ast.Attribute(value=ast.Name(id=arm)):
            return values[arm, node.attr]
        case ast.Constant():
            return float(node.value)
    raise TypeError(ast.dump(node))


def _inequality(text: str) -> str:
    Inequality.parse(text)
    return text


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval, of Student's t; no interval for one seed or an infinite value."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        mean = fmean(values)
        if len(values) < 2 or not math.isfinite(mean):
            return cls(mean, None, None)
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)


class Judgement(NamedTuple):
    """What the seeds say about one claim."""

    margins: list[float]
    margin: Estimate
    holds: bool


class Claim(Config):
    """An inequality between the arms, with its margin."""

    that: Annotated[str, AfterValidator(_inequality)] = Field(
        description="as in `method.accuracy >= baseline.accuracy + 0.02`, of arms and metrics of this file"
    )
    on: Literal["mean", "every_seed"] = Field("mean", description="what it has to hold on")
    says: str = Field("", description="what the paper claims or shows there, in words or its own numbers")

    @property
    def inequality(self) -> Inequality:
        return Inequality.parse(self.that)

    def judge(self, seeds: Sequence[Mapping[Reference, float]]) -> Judgement:
        """Judges the claim on the metrics of every arm, one mapping a seed.

        A level that a run never reached is infinitely far. Means of such values say little, so that then a claim on
        the mean has to hold on every seed.
        """
        inequality = self.inequality
        margins = [inequality.margin(values) for values in seeds]
        used = inequality.references
        if self.on == "mean" and all(math.isfinite(values[name]) for values in seeds for name in used):
            means = {name: fmean(values[name] for values in seeds) for name in used}
            holds = inequality.holds(inequality.margin(means))
        else:
            holds = all(inequality.holds(margin) for margin in margins)
        return Judgement(margins, Estimate.of(margins), holds)


class Paper(Config):
    """Where the claim is from."""

    authors: str = Field(description="as one cites them: Li et al.")
    title: str = Field(description="title of the paper")
    venue: str = Field(description="where and when it appeared: MLSys 2020")
    where: str = Field(description="where in the paper the claim is: section 5.2, figure 1")


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Replication(Config):
    """The whole file."""

    paper: Paper
    scaled: str = Field(description="what is smaller or otherwise than in the paper")
    remark: str = Field("", description="what the numbers say; where a claim does not hold, the reason sought")
    base: dict[str, Any] = Field({}, description="parameters of all arms, in the shape of params.yaml")
    arms: dict[Name, dict[str, Any]] = Field(
        description="what each arm changes in them; `baseline` and `method` are a must"
    )
    budget: Budget = Field(Budget(), description="what all arms spend alike")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1, description="seeds")
    metrics: dict[Name, AnyMetric] = Field(min_length=1, description="numbers of a run that the claims speak of")
    claims: tuple[Claim, ...] = Field(min_length=1, description="what is claimed of them")

    def conflicts(self) -> Iterator[str]:
        """What is wrong between fields that are fine one by one."""
        for arm in ("baseline", "method"):
            if arm not in self.arms:
                yield f"arms: needs one called `{arm}`{nearest(arm, list(self.arms))}"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds = {list(self.seeds)}: one is there twice"
        for i, claim in enumerate(self.claims):
            used = claim.inequality.references
            if not used:
                yield f"claims[{i}].that = {claim.that!r}: compares numbers alone"
            for arm, metric in used:
                if arm not in self.arms:
                    yield f"claims[{i}].that = {claim.that!r}: unknown arm{nearest(arm, list(self.arms))}"
                if metric not in self.metrics:
                    yield f"claims[{i}].that = {claim.that!r}: unknown metric{nearest(metric, list(self.metrics))}"
        for name, metric in self.metrics.items():
            if self.budget.amount is not None and metric.after_all:
                yield f"metrics.{name}: reads the final model, which may have cost more than budget.amount"

    @property
    def needs(self) -> set[Stage]:
        """The stages that the metrics need."""
        return {stage for metric in self.metrics.values() for stage in metric.needs}

    def judge(self, seeds: Sequence[Mapping[Reference, float]]) -> list[Judgement]:
        return [claim.judge(seeds) for claim in self.claims]


def seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` as numbers; none of an empty text."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (-1,)
    if min(found, default=0) < 0 or len(set(found)) < len(found):
        raise Refused("--seeds", text, "must be different whole numbers from 0 on, with commas between them")
    return found


def slugs(main: Path) -> list[str]:
    """The replications of the checkout."""
    return sorted(path.stem for path in (main / FOLDER).glob("*.yaml"))


def load(main: Path, slug: str) -> Replication:
    """The replication called ``slug``.

    Raises
    ------
    Refused
        With every problem at once, each with its path in the file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    known = slugs(main)
    if slug not in known:
        raise Refused("replication", slug, f"unknown{nearest(slug, known)}", f"They are the files of {FOLDER}/")
    file = f"{FOLDER}/{slug}.yaml"
    try:
        data = YAML(typ="safe", pure=True).load((main / file).read_text(encoding="utf-8"))
        replication = Replication.model_validate_json(json.dumps(data), strict=True)
        problems = list(replication.conflicts())
    except (YAMLError, UnicodeDecodeError, TypeError) as error:
        raise Refused(file, None, f"is not YAML of numbers, text, lists and mappings: {error}") from None
    except ValidationError as error:
        problems = params.explained(error, data, Replication)
    if problems:
        raise Refused(file, None, "cannot be used:" + "".join(f"\n  - {problem}" for problem in problems))
    return replication
