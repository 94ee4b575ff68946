"""The cells of a sweep: what each of them changes, how it is called, and by what it is known to be finished."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows import checkout, overrides
from flows.pipelines import FILE, Case, Pipelines, Sweep
from tasks.config import Refused
from tasks.params import Params

LONGEST = 80
"""Characters of an experiment's name, but for the part that tells versions apart; reports are files of that name."""


class Cell(NamedTuple):
    """One run of a sweep.

    ``values`` says in words what varies, by column; ``changes`` is what differs from the pipeline. ``settings`` are all
    its parameters but for how the work is spread, which changes no result.
    """

    sweep: str
    values: dict[str, str]
    changes: dict[str, Any]
    settings: Params

    @property
    def label(self) -> str:
        """What varies, in one line."""
        return ", ".join(value if column == CASE else f"{column} {value}" for column, value in self.values.items())

    @property
    def training(self) -> str:
        """A short name of what its training depends on: cells that share it train once."""
        before = {name: getattr(self.settings, name) for name in ("seed", "partition", "model", "train")}
        return checkout.fingerprint(Params(**before))

    def experiment(self, version: str) -> str:
        """The name of its DVC experiment, for code and data of some ``version``.

        The name ends with what its numbers depend on, so that an experiment with this name is this cell, finished.
        """
        readable = checkout.slug(f"{self.sweep}-{self.label}")[:LONGEST].strip("-")
        return f"{readable}-{checkout.fingerprint(self.settings, version)[:8]}"


CASE = "case"
"""The column for the names of the cases in a sweep's list."""


UNREGISTERED = {"aggregate": {"registry": None}}
"""A cell is one of many tries: its model goes into the registry only where the sweep says so."""


def cells(main: Path, name: str, known: Pipelines) -> list[Cell]:
    """The cells of the sweep called ``name``, case by case, the last field of the grid varying fastest.

    Raises
    ------
    Refused
        Where one of them cannot be run as it is written, or two of them are the same run.
    """
    sweep = known.sweeps[name]
    base = known.pipelines[sweep.pipeline].changes
    columns = _columns(sweep.grid)
    found: dict[str, Cell] = {}
    for case in sweep.list or (None,):
        for point in itertools.product(*sweep.grid.values()):
            values = {CASE: case.name} if case else {}
            values |= {columns[field]: words(value) for field, value in zip(sweep.grid, point, strict=True)}
            cell = Cell(name, values, _changes(sweep, case, point), Params())
            where = f"{FILE}: sweeps.{name}, cell `{cell.label}`"
            spread = {"train": {"engine": {"workers": 0}}}
            cell = cell._replace(settings=checkout.resolve(main, overrides.merge(base, cell.changes, spread), where))
            same = found.setdefault(checkout.fingerprint(cell.settings), cell)
            if same is not cell:
                raise Refused(where, None, f"is the same run as `{same.label}`", "Leave one of them out")
    return list(found.values())


def words(value: Any) -> str:
    """A value of a grid as a person would say it: of a method its name and what it was given, of a list its entries."""
    if isinstance(value, Mapping):
        parts = [str(inner) if name == "name" else f"{name} {words(inner)}" for name, inner in value.items()]
        return " ".join(parts) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " + ".join(map(words, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _changes(sweep: Sweep, case: Case | None, point: Sequence[Any]) -> dict[str, Any]:
    nested = (_nested(field, value) for field, value in zip(sweep.grid, point, strict=True))
    return overrides.merge(UNREGISTERED, sweep.overrides, case.overrides if case else {}, *nested)


def _nested(field: str, value: Any) -> dict[str, Any]:
    for part in reversed(field.split(".")):
        value = {part: value}
    return value


def _columns(fields: Sequence[str]) -> dict[str, str]:
    """A short name for each field that no other has: the last part of it, or the slot whose method it names."""
    short = {field: (field.removesuffix(".name") or field).rpartition(".")[2].replace("_", " ") for field in fields}
    taken = [*short.values(), CASE]
    return {field: name if taken.count(name) == 1 else field for field, name in short.items()}
