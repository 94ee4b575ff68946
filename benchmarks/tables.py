"""Figures as tables: what is written into the docs between two markers."""

from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import layouts, scale
from benchmarks.constants import Constants
from benchmarks.machine import described
from benchmarks.projection import DAY, FLOAT, Setup, costs
from benchmarks.speed import CONTENDERS
from tasks.artifacts import read_text, write_text
from tasks.config import Refused
from tasks.report.amounts import duration, number, size

PLAIN = ("plain-1", "plain-all")
FEDLOOM = ("fedloom", "fedloom-compiled", "fedloom-ray-1", "fedloom-ray-2")

ADAPTERS = (1e6, 1e8, 1e9)
"""Parameters of the adapters for which the plan past this machine is made."""
NOTHING = 1e-12
"""Seconds a parameter below which nothing is done to it."""


class Target(NamedTuple):
    """How many times as fast the fastest of ``subjects`` is meant to be as the fastest of ``references``, in the median
    of the passes: within one both met the same machine, as busy as it was."""

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
            found.append(Reached(target, ratio(workload, subject[1], reference[1]), subject[1]))
    return found


def ratio(workload: dict, subject: str, reference: str) -> float:
    """How many times as fast ``subject`` is as ``reference``, in the median pass."""
    passes = (workload["contenders"][name]["seconds"] for name in (reference, subject))
    return median(slow / fast for slow, fast in zip(*passes, strict=True))


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
            _pace(pace),
            f"{pace * workload['samples']:,.0f}",
            f"{ratio(workload, name, base[1]):.2f}" if base else "",
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
    parts = ["**Ratios**", target_table(results)]
    for name, workload in results["workloads"].items():
        about = f"cohort {workload['cohort']}, {workload['samples']:.3g} samples a client"
        parts += [f"**({name}) {workload['title']}**; {about}; accuracy after {workload['judged']} rounds."]
        parts += [workload_table(workload), described(workload["machine"]), *plans(workload), *failures(workload)]
    versions = {
        f"{library} {version}"
        for workload in results["workloads"].values()
        for figures in workload["contenders"].values()
        for library, version in figures.get("versions", {}).items()
        if library != "plan"
    }
    return "\n\n".join([*parts, f"With {', '.join(sorted(versions))}."])


def failures(workload: dict) -> list[str]:
    """Why contenders have no figures."""
    return [
        f"{CONTENDERS[name].title} failed: {figures['failed']}"
        for name, figures in workload["contenders"].items()
        if "failed" in figures
    ]


def plans(workload: dict) -> list[str]:
    """How Fedloom laid the work out, if it was measured."""
    found = {
        CONTENDERS[name].title: figures["versions"]["plan"]
        for name, figures in workload["contenders"].items()
        if "plan" in figures.get("versions", {})
    }
    return ["; ".join(f"{title}: {plan}" for title, plan in found.items()) + "."] if found else []


def layout_tables(results: dict) -> str:
    """All that the results of `python -m benchmarks layouts` say."""
    workloads = results["workloads"]
    titles = list(dict.fromkeys(title for workload in workloads.values() for title in workload["layouts"]))
    paces = [["workload", "parameters", "operations a batch", *titles, "compiling pays from"]]
    losses = [["workload", *(f"{rounds:,} rounds" for rounds in layouts.RUNS)]]
    for workload in workloads.values():
        speeds = {title: layouts.steady(workload, title) for title in titles}
        best = max(filter(None, speeds.values()), default=0.0)
        even = layouts.break_even(workload)
        paces.append([
            workload["title"], f"{workload['parameters']:,}", f"{workload['operations']:.1e}",
            *(_pace(pace, pace == best) for pace in speeds.values()),
            "never" if even is None else f"{even:,.0f} rounds",
        ])  # fmt: skip
        losses.append([workload["title"], *(_choice(workload, rounds) for rounds in layouts.RUNS)])
    machines = dict.fromkeys(described(workload["machine"]) for workload in workloads.values())
    return "\n\n".join([
        "Clients a second in steady state, the best in bold:", markdown(paces),
        "What the rule chooses for a run of so many rounds, and how many times as long the whole run takes as in the "
        "best layout, start-up and compiling counted in:", markdown(losses), *machines,
    ])  # fmt: skip


def _pace(pace: float | None, best: bool = False) -> str:
    shown = "" if pace is None else f"{pace:,.0f}" if pace >= 10 else f"{pace:.2f}"
    return f"**{shown}**" if best and shown else shown


def _choice(workload: dict, rounds: int) -> str:
    factor = layouts.loss(workload, rounds)
    return workload["ruled"][str(rounds)] + ("" if factor is None else f": {factor:.2f} ×")


class Bound(NamedTuple):
    """What a figure of `python -m benchmarks scale` may be at most."""

    what: str
    most: float
    unit: str
    measured: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.most


def bounds(results: dict) -> list[Bound]:
    """The bounds that are set for a million clients, beside what was measured; none where it was not."""
    stage, grown = results["partition"].get("1000000"), results["population"]
    if not (stage and "1000" in grown):
        return []
    ratio = grown["1000000"]["seconds"] / grown["1000"]["seconds"]
    return [
        Bound("partition and index of a million clients", 60, "s", stage["seconds"]),
        Bound("memory of that", 2048, "MiB", stage["memory"] / 2**20),
        Bound(f"a round of {scale.COHORT} of a million clients against {scale.COHORT} of a thousand", 1.1, "×", ratio),
    ]


def scale_tables(results: dict) -> str:
    """All that the results of `python -m benchmarks scale` say of this machine."""
    aims = [["what", "at most", "measured", "reached"]]
    aims += [
        [b.what, f"{b.most:,} {b.unit}", f"{b.measured:.3g} {b.unit}", "yes" if b.holds else "**no**"]
        for b in bounds(results)
    ]
    grown = [[
        "clients", "partition s", "partition MiB", "index", "round ms", "own MiB", "with files MiB",
        "SCAFFOLD: round ms", "own MiB", "with files MiB",
    ]]  # fmt: skip
    for clients, stage in results["partition"].items():
        plain, keeping = results["population"][clients], results["scaffold"][clients]
        grown.append([
            f"{int(clients):,}", f"{stage['seconds']:.1f}", _mebi(stage["memory"]), size(stage["index"]),
            f"{1000 * plain['seconds']:.1f}", _mebi(plain["own"]), _mebi(plain["memory"]),
            f"{1000 * keeping['seconds']:.1f}", _mebi(keeping["own"]), _mebi(keeping["memory"]),
        ])  # fmt: skip
    crowds = [["clients a round", "round ms", "clients/s", "own MiB", "with files MiB", "laid out as"]]
    for cohort, figures in results["cohort"].items():
        crowds.append([
            f"{int(cohort):,}", f"{1000 * figures['seconds']:,.1f}", _pace(int(cohort) / figures["seconds"]),
            _mebi(figures["own"]), _mebi(figures["memory"]), figures["plan"],
        ])  # fmt: skip
    return "\n\n".join([
        *([markdown(aims)] if len(aims) > 1 else []), "**Population**", markdown(grown), "**Cohort**", markdown(crowds),
        described(results["machine"]),
    ])  # fmt: skip


def constant_tables(results: dict) -> str:
    """The constants that the plan past this machine is made from."""
    constants, engine = Constants.read(results["constants"]), scale.simulator(results)
    rates = [
        ["of one core", "measured"],
        ["training steps of a large network", f"{constants.operations / 1e9:.3g} GFLOP/s"],
        ["adding an upload to the sum", f"{FLOAT / constants.add / 1e9:.3g} GB/s of float32"],
        ["copying a message off the wire", f"{1 / constants.copy / 1e9:.3g} GB/s"],
        ["a client in the engine, whatever its model", duration(engine.client)],
        ["a million parameters of a client in the engine", duration(1e6 * engine.handled)],
        ["memory of the engine for a parameter", f"{engine.held:.3g} bytes"],
    ]
    codings = [
        ["upload as", "bytes a parameter", "encode GB/s", "decode GB/s", "time a parameter, large against small"]
    ]
    for name, code in constants.codings.items():
        moves = code.encode + code.decode > NOTHING
        codings.append([
            name, f"{code.size:.4g}", *(f"{FLOAT / t / 1e9:.3g}" if moves else "" for t in (code.encode, code.decode)),
            f"{code.linear:.2f}" if moves else "",
        ])  # fmt: skip
    return "\n\n".join([markdown(rates), markdown(codings), described(results["machine"])])


def projection_tables(results: dict) -> str:
    """What :mod:`benchmarks.projection` makes of the constants, for adapters of several sizes."""
    constants, engine = Constants.read(results["constants"]), scale.simulator(results)
    deployed = [[
        "adapter", "upload as", "down a client", "up a client", "time a client", "clients at work", "bytes a day",
        "bandwidth", "core hours a day", "cores", "memory of the server",
    ]]  # fmt: skip
    simulated = [["adapter", "upload as", "core days to simulate a day", "memory of a worker"]]
    for parameters in ADAPTERS:
        for coding in constants.codings:
            cost = costs(Setup(parameters, coding), constants, engine)
            deployed.append([
                f"{parameters:.0e}", coding, size(cost.bytes_down), size(cost.bytes_up), duration(cost.client_seconds),
                f"{cost.at_work:,.0f}", size(cost.day_bytes), f"{cost.bandwidth / 1e9:.3g} Gbit/s",
                number(cost.server_seconds / 3600), f"{cost.server_cores:,}", size(cost.server_memory),
            ])  # fmt: skip
            days, held = number(cost.simulated / DAY), size(cost.simulator)
            simulated.append([f"{parameters:.0e}", coding, days, held])
    setup = Setup(ADAPTERS[0], "")
    assumed = (
        f"Assumed: {setup.clients:,.0f} clients a day in {setup.rounds:,.0f} rounds; a frozen base of {setup.base:.0e} "
        f"parameters; {setup.samples:,.0f} samples (tokens) a client; {setup.download:g} Mbit/s down and "
        f"{setup.upload:g} Mbit/s up; a client's device as fast as one core of this machine."
    )
    return "\n\n".join([assumed, markdown(deployed), markdown(simulated)])


def _mebi(bytes_: int | None) -> str:
    return "" if bytes_ is None else f"{bytes_ / 2**20:,.0f}"


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
