"""`replications/<slug>.yaml`: a paper's claim as something that runs, and the arithmetic by which it is judged."""

import ast
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, ValidationError

from flows.measures import AnyMetric, Budget
from flows.pipelines import Stage, nearest
from tasks import params
from tasks.config import Config, Refused

FOLDER = "replications"

SIGNS = {ast.GtE: ">=", ast.LtE: "<=", ast.Gt: ">", ast.Lt: "<"}
SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
CALLS = {"max": max, "min": min, "abs": abs}
Reference = tuple[str, str]
"""An arm and one of the metrics."""


class Inequality(NamedTuple):
    """``method.accuracy >= baseline.accuracy + 0.02``, taken apart."""

    larger: ast.expr
    smaller: ast.expr
    strict: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``ValueError`` where ``text`` compares anything but `arm.metric` and numbers in sums and products."""
        problem = f"must compare two sides, as in `method.accuracy >= baseline.accuracy + 0.02`, not {text!r}"
        try:
            node = ast.parse(text.strip(), mode="eval").body
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
        return list(dict.fromkeys((n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute)))

    def margin(self, values: Mapping[Reference, float]) -> float:
        """By how much the inequality holds: negative where it does not, not a number where neither side is finite."""
        try:
            return _value(self.larger, values) - _value(self.smaller, values)
        except ZeroDivisionError:
            return math.nan

    def holds(self, margin: float) -> bool:
        return margin > 0 if self.strict else margin >= 0


def _check(node: ast.expr) -> None:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SUMS:
            _check(left)
            _check(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in CALLS and (
            len(arguments) == 1 if name == "abs" else len(arguments) > 1
        ):
            for argument in arguments:
                _check(argument)
        case ast.Attribute(value=ast.Name()):
            pass
        case ast.Constant(value=value) if type(value) in (int, float):
            pass
        case _:
            allowed = "may hold arm.metric, numbers, + - * /, max(a, b), min(a, b) and abs(a)"
            raise ValueError(f"{allowed}, not {ast.unparse(node)!r}")


def _value(node: ast.expr, values: Mapping[Reference, float]) -> float:
    match node:
        case ast.BinOp():
            return SUMS[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.UnaryOp():
            return -_value(node.operand, values)
        case ast.Call(func=ast.Name(id=name)):
            return CALLS[name](*(_value(argument, values) for argument in node.args))
        case ast.Attribute(value=ast.Name(id=arm)):
            return values[arm, node.attr]
        case ast.Constant():
            return float(node.value)
    raise TypeError(ast.dump(node))


def _inequality(text: str) -> str:
    Inequality.parse(text)
    return " ".join(text.split())


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval, of Student's t; no interval for one seed or an infinite value."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], mean: float | None = None) -> Self:
        """The estimate from ``values``; around ``mean`` where that is not simply theirs."""
        mean = sum(values) / len(values) if mean is None else mean  # fmean fails on both infinities
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return cls(mean, None, None)
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)


class Judgement(NamedTuple):
    """What the seeds say about one claim: the margin of each, what they come to, and whether the claim holds."""

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

    @property
    def arms(self) -> list[str]:
        """The arms that are compared."""
        return list(dict.fromkeys(arm for arm, _ in self.inequality.references))

    def judge(self, seeds: Sequence[Mapping[Reference, float]]) -> Judgement:
        """Judges the claim on the metrics of every arm, one mapping a seed.

        On the mean it is the metrics that are averaged, then compared. A level that a run never reached is infinitely
        far: means of such values say little, so that then the claim has to hold on every seed.
        """
        inequality = self.inequality
        margins = [inequality.margin(values) for values in seeds]
        used = inequality.references
        if self.on == "mean" and all(math.isfinite(values[name]) for values in seeds for name in used):
            margin = inequality.margin({name: fmean(values[name] for values in seeds) for name in used})
            return Judgement(margins, Estimate.of(margins, margin), inequality.holds(margin))
        return Judgement(margins, Estimate.of(margins), all(map(inequality.holds, margins)))


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
    about: tuple[str, ...] = Field(
        (),
        description="methods that the claims are about, as in train.algorithm.fedprox; without it those that `method` "
        "uses and `baseline` does not",
    )
    scaled: str = Field(description="what is smaller or otherwise than in the paper")
    remark: str = Field("", description="what the numbers say; where a claim does not hold, the reason sought")
    base: dict[str, Any] = Field({}, description="parameters of all arms, in the shape of params.yaml")
    arms: dict[Name, dict[str, Any]] = Field(
        description="what each arm changes in them; `baseline` and `method` are a must"
    )
    budget: Budget = Field(Budget(), description="what the arms of a claim spend alike")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1, description="seeds")
    metrics: dict[Name, AnyMetric] = Field(min_length=1, description="numbers of a run that the claims speak of")
    claims: tuple[Claim, ...] = Field(min_length=1, description="what is claimed of them")

    def conflicts(self) -> Iterator[str]:
        """What is wrong between fields that are fine one by one."""
        for arm in ("baseline", "method"):
            if arm not in self.arms:
                yield f"arms: needs one called `{arm}`{nearest(arm, list(self.arms))}"
        if "partition" in self.arms:
            yield "arms.partition: is what the data of all arms are kept under; give the arm another name"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds = {list(self.seeds)}: one is there twice"
        for i, claim in enumerate(self.claims):
            for problem in self._unknown(claim):
                yield f"claims[{i}].that = {claim.that!r}: {problem}"
        for name, metric in self.metrics.items():
            if self.budget.amount is not None and metric.after_all:
                yield f"metrics.{name}: reads the final model, which may have cost more than budget.amount"
        known = [f"{place}.{name}" for place, name in methods()]
        for method in self.about:
            if method not in known:
                yield f"about: unknown method {method!r}{nearest(method, known)}"

    def _unknown(self, claim: Claim) -> Iterator[str]:
        """What a claim speaks of that is not in the file."""
        used = claim.inequality.references
        if not used:
            yield "compares numbers alone"
        for arm, metric in used:
            if arm not in self.arms:
                yield f"unknown arm{nearest(arm, list(self.arms))}"
            if metric not in self.metrics:
                yield f"unknown metric{nearest(metric, list(self.metrics))}"

    @property
    def needs(self) -> set[Stage]:
        """The stages after the partition that the metrics need."""
        return {stage for metric in self.metrics.values() for stage in metric.needs}

    def judge(self, seeds: Sequence[Mapping[Reference, float]]) -> list[Judgement]:
        return [claim.judge(seeds) for claim in self.claims]


def methods() -> list[tuple[str, str]]:
    """Every method as the place in `params.yaml` that takes it and its name."""
    found = params.methods().items()
    return [(place, str(cls.model_fields["name"].default)) for place, classes in found for cls in classes]


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
