"""`pipelines.yaml`: named pipelines, each a set of stages, overrides of `params.yaml`, a schedule and resources.

And sweeps, each a set of variations of a pipeline.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, ValidationError, model_validator

from tasks.config import Config, Refused
from tasks.promotion.rule import Promotion

FILE = "pipelines.yaml"

Stage = Literal["partition", "train", "aggregate", "attack", "report"]


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"is no time zone, such as Europe/Berlin or UTC: {name!r}") from None
    return name


DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
CRON = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day of the month": (1, 31, ()),
    "month": (1, 12, MONTHS),
    "day of the week": (0, 7, DAYS),
}
"""The fields of a cron line, with their bounds and names. Checked here, for importing Prefect takes a second."""


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != len(CRON):
        raise ValueError(f"must have five fields: {', '.join(CRON)}")
    for field, (what, (low, high, names)) in zip(fields, CRON.items(), strict=True):
        for item in field.split(","):
            found = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([1-9]\d*))?", item)
            ends = [end.lower() for end in found.groups()[:2] if end] if found else ["none"]
            if not all(end in names or (end.isdigit() and low <= int(end) <= high) for end in ends):
                raise ValueError(f"the {what} must be *, or within {low} to {high}, as in {low}, {low}-{high} or */2")
    return text


class Schedule(Config):
    """When a served pipeline starts by itself: at the times of a cron line, or every so many seconds."""

    cron: Annotated[str, AfterValidator(_cron)] | None = Field(None, description="cron line, such as 0 3 * * *")
    timezone: Annotated[str, AfterValidator(_timezone)] = Field("UTC", description="where the cron line is meant")
    interval: float | None = Field(None, gt=0, description="seconds between two starts")
    active: bool = Field(True, description="false deploys the schedule paused; it can be switched on in the Prefect UI")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("needs either `cron` or `interval`")
        return self


class Resources(Config):
    """What a pipeline may take of the machine."""

    workers: int | Literal["auto"] | None = Field(None, description="overrides train.engine.workers")
    concurrency: int = Field(1, ge=1, description="runs of this pipeline at a time; more of them wait")


class Pipeline(Config):
    """One named way to run the stages."""

    description: str = Field("", description="what it is for, in a sentence")
    stages: tuple[Stage, ...] = Field((), description="stages wanted, with what they depend on; none means all")
    overrides: dict[str, Any] = Field({}, description="what differs from params.yaml, in the same shape")
    schedule: Schedule | None = Field(None, description="when it starts by itself while `fedloom up` runs")
    promote: Promotion | None = Field(
        Promotion(), description="when the released model becomes the champion of MLflow's registry; null for never"
    )
    resources: Resources = Field(Resources(), description="what it may take of the machine")
    tags: tuple[str, ...] = Field((), description="labels in the Prefect UI")

    @property
    def changes(self) -> dict[str, Any]:
        """All that differs from `params.yaml`: the overrides, and the workers where they are said."""
        if self.resources.workers is None:
            return self.overrides
        train = self.overrides.get("train") or {}
        engine = {**(train.get("engine") or {}), "workers": self.resources.workers}
        return {**self.overrides, "train": {**train, "engine": engine}}


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Case(Config):
    """One named variation in the list of a sweep."""

    name: Name = Field(description="what it is called in the comparison and in the names of its experiments")
    overrides: dict[str, Any] = Field({}, description="what differs from the pipeline, in the shape of params.yaml")


class SweepResources(Config):
    """What a sweep may take of the machine."""

    parallel: int = Field(1, ge=1, description="cells at a time")
    workers: int | Literal["auto"] | None = Field(
        None, description="train.engine.workers of each cell; where neither says a number, a fair share of the cores"
    )


class Sweep(Config):
    """Variations of a pipeline, run side by side and compared: every case of `list` at every point of `grid`."""

    description: str = Field("", description="what it is to find out, in a sentence")
    pipeline: str = Field("default", description="the pipeline that is varied, with its overrides and stages")
    overrides: dict[str, Any] = Field({}, description="what differs from the pipeline in every cell")
    list: tuple[Case, ...] = Field((), description="named variations")
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {}, description="fields of params.yaml, as in train.uplink, with the values that each takes"
    )
    schedule: Schedule | None = Field(None, description="when it starts by itself while `fedloom up` runs")
    resources: SweepResources = Field(SweepResources(), description="what it may take of the machine")
    tags: tuple[str, ...] = Field((), description="labels in the Prefect UI")

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if not (self.list or self.grid):
            raise ValueError("needs a `grid`, a `list` or both, or there is nothing to compare")
        names = [case.name for case in self.list]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two cases of `list` are called {', '.join(twice)}")
        return self


class Pipelines(Config):
    """The whole file."""

    pipelines: dict[Name, Pipeline] = Field(min_length=1)
    sweeps: dict[Name, Sweep] = Field({}, description="sets of variations of a pipeline that are run and compared")

    @model_validator(mode="after")
    def _sweeps_fit(self) -> Self:
        for name, sweep in self.sweeps.items():
            if name in self.pipelines:
                raise ValueError(f"sweeps.{name}: a pipeline has this name already")
            if sweep.pipeline not in self.pipelines:
                known = nearest(sweep.pipeline, list(self.pipelines))
                raise ValueError(f"sweeps.{name}.pipeline = {sweep.pipeline!r}: unknown{known}")
        return self


def load(folder: Path) -> dict[str, Pipeline]:
    """The pipelines of the checkout in ``folder``, by name; refused as :func:`read` does."""
    return read(folder).pipelines


def read(folder: Path) -> Pipelines:
    """The file of the checkout in ``folder``.

    Raises
    ------
    Refused
        With every problem at once, each with its path in the file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = folder / FILE
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(FILE, None, f"does not exist in {folder}", "Run in the folder that has it") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise Refused(FILE, None, f"is not YAML: {error}") from None
    try:
        return Pipelines.model_validate_json(json.dumps(data))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise Refused(FILE, None, f"holds a value that is no number, text, list or mapping ({error})") from None
        problems = "".join(f"\n  - {_explain(detail)}" for detail in error.errors())
        raise Refused(FILE, None, f"cannot be used:{problems}") from None


def pick(name: str, pipelines: dict[str, Pipeline]) -> Pipeline:
    """The pipeline called ``name``; refused with the nearest name where there is none."""
    if name not in pipelines:
        raise Refused("pipeline", name, f"unknown{nearest(name, list(pipelines))}")
    return pipelines[name]


def pick_sweep(name: str, sweeps: dict[str, Sweep]) -> Sweep:
    """The sweep called ``name``; refused with the nearest name where there is none."""
    if name not in sweeps:
        raise Refused("sweep", name, f"unknown{nearest(name, list(sweeps))}")
    return sweeps[name]


def nearest(name: str, known: list[str]) -> str:
    """A hint for a mistyped name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return (f"; did you mean `{close[0]}`?" if close else "") + f" (known: {', '.join(known)})"


def _explain(detail: Any) -> str:
    place = detail["loc"]
    where = ".".join(str(part) for part in place if part != "[key]") or "the file"
    if detail["type"] == "extra_forbidden":
        entry = Sweep if place[0] == "sweeps" else Pipeline
        resources = SweepResources if entry is Sweep else Resources
        sections = {"schedule": Schedule, "resources": resources, "promote": Promotion, "list": Case}
        owner = Pipelines if len(place) == 1 else sections[place[2]] if len(place) > 3 else entry
        return f"{where}: unknown field{nearest(str(place[-1]), list(owner.model_fields))}"
    if detail["type"] == "string_pattern_mismatch":
        return f"{where}: a name is made of a-z, 0-9 and -"
    found = detail["input"]
    shown = "" if isinstance(found, dict | list) else f" = {found!r}"
    return f"{where}{shown}: {detail['msg'].removeprefix('Value error, ')}"
