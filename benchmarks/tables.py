"""Figures as tables: what is written into the docs between two markers."""

from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.speed import CONTENDERS
from tasks.artifacts import read_text, write_text
from tasks.config import Refused

PLAIN = ("plain-1", "plain-all")
FEDLOOM = ("fedloom", "fedloom-compiled", "fedloom-ray-1", "fedloom-ray-2")


class Target(NamedTuple):
    """How many times as fast the fastest of ``subjects`` is meant to be as the fastest of ``references``."""

    workload: str
    what: str
    subjects: tuple[str, ...]
    references: tuple[str, ...]
    factor: float


TARGETS = [
    *(Target(w, "the plain loop", FEDLOOM, PLAIN, f) for w, f in zip("abcd", (10, 3.5, 0.97, 0.97), strict=True)),
    *(Target(w, "Flower", FEDLOOM, ("flower",), f) for w, f in zip("abc", (100, 30, 2), strict=True)),
    *(Target(w, "pfl-research", FEDLOOM, ("pfl",), f) for w, f in zip("abc", (12, 4, 1), strict=True)),
    *(Target(w, "FedJAX", FEDLOOM, ("fedjax",), f) for w, f in zip("abc", (5, 1.5, 1.2), strict=True)),
    Target("c", "two Ray workers against one", ("fedloom-ray-2",), ("fedloom-ray-1",), 1.7),
    Target("c", "one Ray worker against none", ("fedloom-ray-1",), ("fedloom",), 1 / 1.05),
]


class Reached(NamedTuple):
    """A target beside what was measured, and which of its subjects it was."""

    target: Target
    ratio: float
    subject: str

    @property
    def holds(self) -> bool:
        return self.ratio >= self.target.factor


def speed(workload: dict, name: str) -> float | None:
    """Clients a second in the median pass, None where the contender was not measured."""
    seconds = workload["contenders"].get(name, {}).get("seconds")
    return workload["cohort"] / median(seconds) if seconds else None


def fastest(workload: dict, names: tuple[str, ...]) -> tuple[float, str] | None:
    """The speed of the fastest of ``names``, and who it is."""
    return max(((pace, name) for name in names if (pace := speed(workload, name))), default=None)


def reached(results: dict) -> list[Reached]:
    """The targets that the results say something about."""
    found = []
    for target in TARGETS:
        workload = results["workloads"].get(target.workload, {"contenders": {}})
        subject, reference = fastest(workload, target.subjects), fastest(workload, target.references)
        if subject and reference:
            found.append(Reached(target, subject[0] / reference[0], subject[1]))
    return found


def workload_table(workload: dict) -> str:
    """One workload, a line a contender."""
    base = fastest(workload, PLAIN)
    rows = [
        [
            "contender",
            "clients/s",
            "samples/s",
            "× plain loop",
            "spread",
            "start-up s",
            "peak MiB",
            "accuracy",
            "distance",
        ]
    ]
    for name, figures in workload["contenders"].items():
        title, pace = CONTENDERS[name].title, speed(workload, name)
        if pace is None:
            rows.append([title, "failed", *[""] * 7])
            continue
        rows.append([
            title,
            f"{pace:,.0f}" if pace >= 10 else f"{pace:.2f}",
            f"{pace * workload['samples']:,.0f}",
            f"{pace / base[0]:.2f}" if base else "",
            f"± {spread(figures['seconds']):.0%}",
            f"{figures['startup']:.1f}",
            f"{figures['memory'] / 2**20:,.0f}" if figures["memory"] else "",
            f"{figures['accuracy']:.3f}",
            "" if figures["distance"] is None else f"{figures['distance']:.0e}",
        ])  # fmt: skip
    return markdown(rows)


def spread(seconds: list[float]) -> float:
    """Half the range of the passes, as a share of their median: how noisy the machine was."""
    return (max(seconds) - min(seconds)) / 2 / median(seconds)


def target_table(results: dict) -> str:
    """Every target with the ratio that was measured."""
    rows = [["workload", "against", "to reach", "measured", "reached", "by"]]
    for target, ratio, subject in reached(results):
        holds = "yes" if ratio >= target.factor else "**no**"
        rows.append([
            target.workload, target.what, f"{target.factor:.3g}", f"{ratio:.3g}", holds, CONTENDERS[subject].title
        ])  # fmt: skip
    return markdown(rows)


def speed_tables(results: dict) -> str:
    """All that the results of `python -m benchmarks speed` say."""
    machine = results["machine"]
    parts = [f"{machine['cores']} cores of {machine['processor']}, {machine['system']}."]
    for name, workload in results["workloads"].items():
        about = f"cohort {workload['cohort']}, {workload['samples']:.3g} samples a client"
        parts += [f"**({name}) {workload['title']}**; {about}; accuracy after {workload['judged']} rounds."]
        parts += [workload_table(workload)]
    versions = {
        f"{library} {version}"
        for workload in results["workloads"].values()
        for figures in workload["contenders"].values()
        for library, version in figures.get("versions", {}).items()
        if library != "plan"
    }
    return "\n\n".join([*parts, "**Ratios**", target_table(results), f"With {', '.join(sorted(versions))}."])


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head, columns after the first are numbers."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def insert(page: Path, name: str, text: str) -> None:
    """Puts ``text`` into a page of the docs, between ``<!-- name -->`` and ``<!-- /name -->``."""
    content, begin, end = read_text(page), f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise Refused(str(page), None, f"must hold the lines {begin} and {end}, between which the table goes")
    write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")
