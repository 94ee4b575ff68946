"""The page that compares the cells of a sweep: how accurate each is against what it costs, and which are worth it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.report.amounts import NOTHING, SPACE, count, duration, number, percent, size
from tasks.report.figures import Spot, scatter
from tasks.report.page import Amount, Block, Figure, Heading, Panel, Points, Row, Table, Text, link, render

LISTED = 6
"""Cells of a front that a sentence names."""
CLOSE = 0.01
"""A cell this close to the most accurate one counts as about as good."""
PROMISES = (1.0, 2.0, 4.0, 8.0)
"""Bounds of epsilon that are often asked for."""


class Result(NamedTuple):
    """What came of one cell.

    ``values``: what varies, by column, in words; ``outcome``: finished, failed or waiting, with the ``reason`` of a
    failure; ``metrics``: the contents of `metrics/`, by stage; ``experiment``, ``report``, ``run``: the name of the DVC
    experiment, and the addresses of its own page and of its run in MLflow, where there are such.
    """

    label: str
    values: Mapping[str, str]
    outcome: str = "finished"
    reason: str = ""
    metrics: Mapping[str, Any] = {}
    experiment: str = ""
    report: str | None = None
    run: str | None = None


class Measure(NamedTuple):
    """A number that cells are compared by, and how it is written."""

    name: str
    of: Callable[[Mapping[str, Any]], float | None]
    tell: Callable[[float | None], str]


def _at(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def find(metrics: Mapping[str, Any]) -> float | None:
        found: Any = metrics
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    return find


def _accuracy(metrics: Mapping[str, Any]) -> float | None:
    released = _at("aggregate", "accuracy")(metrics)
    return _at("train", "accuracy")(metrics) if released is None else released


def _strongest(score: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The most that any attack got out of all messages together, behind the first defence that was tried."""

    def find(metrics: Mapping[str, Any]) -> float | None:
        attacks = (metrics.get("attack") or {}).get("attacks") or {}
        first = [next(iter(defences.values()), {}) for defences in attacks.values()]
        return max((scores[score] for scores in first if scores.get(score) is not None), default=None)

    return find


def _membership(metrics: Mapping[str, Any]) -> float | None:
    rules = (metrics.get("attack") or {}).get("membership") or {}
    return max((scores["auc"] for scores in rules.values()), default=None)


ACCURACY = Measure("accuracy", _accuracy, percent)
BYTES = Measure("sent up", _at("train", "bytes_up"), size)
EPSILON = Measure("epsilon", _at("train", "epsilon"), number)
SAMPLES = Measure("samples recovered", _strongest("recovered"), percent)
LABELS = Measure("labels recovered", _strongest("label_accuracy"), percent)
MEMBERS = Measure("membership AUC", _membership, number)
LEAKS = (SAMPLES, LABELS, MEMBERS)
TOLD = (
    ACCURACY,
    Measure("worst tenth of clients", _at("aggregate", "clients_worst_decile"), percent),
    BYTES,
    Measure("virtual time", _at("train", "virtual_seconds"), duration),
    EPSILON,
    *LEAKS,
)
"""The columns of the table, of which those are shown that any cell has."""


class Point(NamedTuple):
    """A cell on a chart: its number in the table, what it costs and how accurate it is."""

    index: int
    cost: float
    accuracy: float


def front(points: Sequence[Point]) -> set[int]:
    """The points that no other beats: none is at least as accurate at less cost, or more accurate at no more."""
    kept: set[int] = set()
    best, cheapest = float("-inf"), float("nan")
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if point.accuracy > best:
            best, cheapest = point.accuracy, point.cost
            kept.add(point.index)
        elif (point.accuracy, point.cost) == (best, cheapest):
            kept.add(point.index)
    return kept


class Comparison:
    """The cells side by side, against each cost that they differ in."""

    def __init__(self, results: Sequence[Result]):
        self.results = results
        self.finished = [i for i, result in enumerate(results) if result.outcome == "finished"]
        leak = [measure for measure in LEAKS if len({p.cost for p in self.points(measure)}) > 1][:1]
        varied = [measure for measure in (BYTES, EPSILON, *leak) if self.points(measure)]
        self.costs = [measure for measure in varied if measure is not EPSILON or len(self.points(measure)) > 1]
        self.fronts = {measure.name: front(self.points(measure)) for measure in self.costs}

    def value(self, index: int, measure: Measure) -> float | None:
        return measure.of(self.results[index].metrics) if index in self.finished else None

    def points(self, measure: Measure) -> list[Point]:
        """The finished cells that have an accuracy and this cost."""
        found = ((i, self.value(i, measure), self.value(i, ACCURACY)) for i in self.finished)
        return [Point(i, cost, accuracy) for i, cost, accuracy in found if cost is not None and accuracy is not None]

    @property
    def best(self) -> int | None:
        """The most accurate cell."""
        known = [i for i in self.finished if self.value(i, ACCURACY) is not None]
        return max(known, key=lambda i: self.value(i, ACCURACY) or 0.0, default=None)

    def panels(self) -> Iterator[Panel]:
        yield Panel("What came out", [Points(list(self._findings()))])
        if charts := [self._chart(measure) for measure in self.costs if len(self.points(measure)) > 1]:
            note = Text(
                "Each point is a cell, with its number in the table below. The full points on the line are the Pareto "
                "front: no other cell is at least as accurate for less. Hollow points are beaten by one of them."
            )
            yield Panel("Accuracy against its price", [note, Row(charts)])
        yield Panel("All cells", list(self._cells()))

    def _findings(self) -> Iterator[tuple[str, str]]:
        yield "Cells.", self._outcomes()
        if self.best is None:
            return
        told = [(m, self.value(self.best, m)) for m in (BYTES, EPSILON, *LEAKS)]
        rest = ", ".join(f"{m.name} {m.tell(value)}" for m, value in told if value is not None)
        yield "Most accurate.", f"{self._name(self.best)}: {percent(self.value(self.best, ACCURACY))} ({rest})."
        for measure in self.costs:
            yield f"Accuracy against {measure.name}.", " ".join(self._trade(measure))
        if EPSILON not in self.costs and not self.points(EPSILON):
            yield "Privacy.", "No cell makes a formal promise: no differential privacy was in force."
        if not any(measure in self.costs for measure in LEAKS):
            same = [(m, self.points(m)) for m in LEAKS if self.points(m)]
            said = ", ".join(f"{m.name} {m.tell(points[0].cost)}" for m, points in same)
            yield "Leakage.", f"The same in every cell: {said}." if same else "No cell was attacked."

    def _outcomes(self) -> str:
        said = f"{len(self.finished)} of {count(len(self.results), 'cell')} finished"
        for outcome in ("failed", "waiting"):
            if them := [self._name(i) for i, result in enumerate(self.results) if result.outcome == outcome]:
                said += f"; {outcome}: {', '.join(them[:LISTED])}"
                said += f" and {len(them) - LISTED} more" if len(them) > LISTED else ""
        return said + "."

    def _trade(self, measure: Measure) -> Iterator[str]:
        """The front in words, and what is to be had within a budget."""
        points = self.points(measure)
        there = sorted((point for point in points if point.index in self.fronts[measure.name]), key=lambda p: p.cost)
        named = [f"{self._name(p.index)} ({percent(p.accuracy)} at {measure.tell(p.cost)})" for p in there]
        more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
        what = "is" if len(there) == 1 else "are"
        yield f"On the Pareto front {what} {len(there)} of {len(points)}: {'; '.join(named[:LISTED])}{more}."
        best = max(points, key=lambda point: (point.accuracy, -point.cost))
        frugal = min((p for p in points if p.accuracy >= best.accuracy - CLOSE), key=lambda p: (p.cost, -p.accuracy))
        if frugal.cost < best.cost:
            yield (
                f"Least within {percent(CLOSE, 0)} of the best accuracy: {self._name(frugal.index)}, "
                f"{measure.tell(frugal.cost)} in place of {measure.tell(best.cost)}."
            )
        before = None
        for limit in _limits(measure, best.cost):
            within = [point for point in points if point.cost <= limit]
            found = max(within, key=lambda point: (point.accuracy, -point.cost), default=None)
            if found and found != before:
                yield (
                    f"Best with {measure.name} of at most {measure.tell(limit)}: {self._name(found.index)}, "
                    f"{percent(found.accuracy)}."
                )
            before = found
        if absent := len(self.finished) - len(points):
            what = "without a promise" if measure is EPSILON else "without this number"
            yield f"Left out: {count(absent, 'cell')} {what}."

    def _chart(self, measure: Measure) -> Figure:
        on = self.fronts[measure.name]
        points = self.points(measure)
        spots = [Spot(str(p.index + 1), self._name(p.index), p.cost, p.accuracy, p.index in on) for p in points]
        names = ", ".join(str(i + 1) for i in sorted(on))
        alt = f"Accuracy against {measure.name} of {count(len(points), 'cell')}; on the Pareto front: {names}"
        return Figure(scatter(alt, measure.name, "accuracy", spots, measure.tell), f"Accuracy against {measure.name}")

    def _cells(self) -> Iterator[Block]:
        header, rows = self.table()
        linked = [name for name in ("report", "run") if any(getattr(result, name) for result in self.results)]
        for result, row in zip(self.results, rows, strict=True):
            row += [self._link(result, name) for name in linked]
        header += [{"report": "report", "run": "MLflow"}[name] for name in linked]
        yield Table("Every cell; a click on a column's name sorts by it", header, rows, sortable=True)
        if failed := [(result.label, result.reason) for result in self.results if result.outcome == "failed"]:
            yield Heading("What failed")
            yield Table("Cells that failed, and why", ("cell", "why"), failed, numeric=False)
        if kept := [(result.label, f"`{result.experiment}`") for result in self.results if result.experiment]:
            yield Heading("Where they are kept")
            yield Text(
                "Each is a DVC experiment: `dvc exp show` lists them, `dvc exp apply NAME` brings one back here."
            )
            yield Table("The experiment of each cell", ("cell", "experiment"), kept, numeric=False)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The cells with their numbers in words: the names of the columns, and a row a cell."""
        columns = list(dict.fromkeys(column for result in self.results for column in result.values))
        told = [m for m in TOLD if any(self.value(i, m) is not None for i in self.finished)]
        header = ["cell", *columns, "outcome", *(m.name for m in told), *(["Pareto front"] if self.costs else [])]
        return header, [self._row(i, columns, told) for i in range(len(self.results))]

    def _row(self, index: int, columns: Sequence[str], told: Sequence[Measure]) -> list[str]:
        result = self.results[index]
        on = [name for name, kept in self.fronts.items() if index in kept]
        numbers = [Amount(m.tell(self.value(index, m)), self.value(index, m)) for m in told]
        fronts = [", ".join(on) or NOTHING] if self.costs else []
        varied = [result.values.get(column, NOTHING) for column in columns]
        return [str(index + 1), *varied, result.outcome, *numbers, *fronts]

    @staticmethod
    def _link(result: Result, name: str) -> str:
        address = getattr(result, name)
        return link("open", address) if address else NOTHING

    def _name(self, index: int) -> str:
        return f"{index + 1} ({self.results[index].label})"


def _limits(measure: Measure, most: float) -> Sequence[float]:
    """Budgets worth a sentence: bounds of epsilon that people ask for, half of what the best cell takes of the rest."""
    return [limit for limit in PROMISES if limit < most] if measure is EPSILON else [most / 2] if most else []


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The cells with their numbers in words, as on the page: the names of the columns, and a row a cell."""
    header, rows = Comparison(results).table()
    return header, [[str(cell).replace(SPACE, " ") for cell in row] for row in rows]


def compare(name: str, description: str, results: Sequence[Result]) -> str:
    """The page on the sweep called ``name``."""
    lead = f"{description} " if description else ""
    lead += f"{count(len(results), 'cell')}, each a run of the whole pipeline with other parameters, side by side."
    return render(f"Sweep {name}", "", lead, list(Comparison(results).panels()))
