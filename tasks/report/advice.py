"""What follows for those who set the training up; every sentence compares what this run measured."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from tasks.report.amounts import count, number, percent
from tasks.report.recoveries import NOUNS, behind
from tasks.report.run import Run

Row = dict[str, Any]
HOW = {"optimisation": "searches", "generation": "generators", "analytics": "closed forms"}
CLEAR = 3.0
"""dB that make a difference: half, or twice, the squared error."""
WEAK = 8.0
"""The epsilon above which the bound, a factor of exp(epsilon), says little by itself."""
UNEVEN, WORSE, SURE = 0.15, 0.02, 3.0
"""Accuracy that the worst tenth of clients lacks of the mean, and that the end lacks of the best round, to be worth a
word; and the standard deviations that an area under the curve has to exceed one half by."""


def advice(run: Run) -> Iterator[tuple[str, str]]:
    """A few words and a sentence on each thing that was varied in the attacks of this run."""
    rows = [row for row in (run.leakage or {}).get("results", ()) if row["applicable"] and "recovered" in row["scores"]]
    rows = [row for row in rows if row["family"] != "inference"]
    if not rows:
        return
    noun = NOUNS[run.meta.kind] if run.meta else "samples"
    bare = rows[0]["defence"]
    honest, malicious = ([row for row in rows if row["malicious"] is kind] for kind in (False, True))
    open_ = [row for row in honest if row["defence"] == bare]
    yield from _kinds(open_, noun)
    yield from _server(open_, [row for row in malicious if row["defence"] == bare], noun)
    if open_:
        attack = _strongest(open_)
        for varied in VARIED:
            yield from _varied([row for row in open_ if row["attack"] == attack], varied, attack)
    yield from _defences(honest, bare, "a server that keeps to the protocol", noun)
    yield from _defences(malicious, bare, "one that sends models of its own making", noun)
    yield from _looking(rows)


def remedies(run: Run) -> Iterator[tuple[str, str]]:
    """What to do next: a few words, and the measurement that asks for it with the setting that answers."""
    yield from _against_leaks(run)
    yield from _promises(run)
    if members := [row for row in run.membership if _tells(row["scores"])]:
        most = max(members, key=lambda row: row["scores"]["auc"])
        yield (
            "Hide who was trained on.",
            f"{most['attack']} tells members from others (AUC {number(most['scores']['auc'])}): fewer rounds "
            "(`train.early_stop`) or `train.privacy` make a model remember less of each of them.",
        )
    if run.evaluation:
        yield from _for_the_worst_served(run.evaluation)
    yield from _sooner(run)


def _against_leaks(run: Run) -> Iterator[tuple[str, str]]:
    if run.leakage is None and not run.membership:
        yield "Attack it.", "`attack.suite` lists attacks; until some have been tried, what leaks is unknown."
    results = [row for row in (run.leakage or {}).get("results", ()) if row["applicable"]]
    rows = [row for row in results if "recovered" in row["scores"] and row["family"] != "inference"]
    for malicious, server in ((False, "whoever reads the messages"), (True, "a server that sends models of its own")):
        same = [row for row in rows if row["malicious"] is malicious]
        yield from _cheapest_way_out(same, server, NOUNS[run.meta.kind] if run.meta else "samples")


def _cheapest_way_out(rows: list[Row], server: str, noun: str) -> Iterator[tuple[str, str]]:
    """The defence behind which least is left of what ``server`` gets, if it gets anything."""
    by_defence: dict[str, list[Row]] = {}
    for row in rows:
        by_defence.setdefault(row["defence"], []).append(row)
    if not by_defence:
        return
    bare, *others = by_defence
    attack, start = _best(by_defence[bare])
    if not start:
        return
    said = f"{attack} gives {server} {percent(start, 0)} of the {noun} behind the messages"
    left = {name: _best(by_defence[name])[1] for name in others}
    best = min(left, key=left.__getitem__, default=None)
    if best is not None and left[best] < start:
        yield "Defend the messages.", f"{said}; {behind(best)} it is {percent(left[best], 0)}."
    else:
        tried = f", and {' and '.join(others)} did not help" if others else ""
        yield "Defend the messages.", f"{said}{tried}. `attack.defences` tries others on the same messages."


def _promises(run: Run) -> Iterator[tuple[str, str]]:
    if not run.summary:
        return
    epsilon = run.summary["epsilon"]
    if epsilon is None:
        yield (
            "Promise something.",
            "That an attack fails here is no proof that none succeeds; `train.privacy` gives a bound on all: `local` "
            "for the messages, `gaussian` for the models made of them.",
        )
    elif epsilon > WEAK:
        yield (
            "Tighten the promise.",
            f"An epsilon of {number(epsilon)} lets the odds on any client change by a factor of "
            f"exp({number(epsilon)}): more noise, fewer rounds or more clients to draw from make it smaller.",
        )


def _for_the_worst_served(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    clients, own = evaluation["per_client"], evaluation["personalised"]
    if own and own["improved"] > own["worsened"]:
        gain = f"{percent(own['before']['mean'])} to {percent(own['mean'])}"
        yield "Personalise.", f"{own['name']} takes the mean client from {gain}, and more clients gain than lose."
    elif clients["mean"] is not None and clients["mean"] - clients["worst_decile"] > UNEVEN:
        worst, mean = percent(clients["worst_decile"]), percent(clients["mean"])
        yield (
            "Mind the worst served.",
            f"A tenth of the clients gets {worst} where the mean gets {mean}: `aggregate.personalise` fits the "
            "model to each, and `fedloom list` names algorithms that weigh the worst served more.",
        )


def _sooner(run: Run) -> Iterator[tuple[str, str]]:
    scored = [row for row in run.history if row["test_accuracy"] is not None]
    if not scored:
        return
    best, last = max(scored, key=lambda row: row["test_accuracy"]), scored[-1]
    if best["test_accuracy"] - last["test_accuracy"] > WORSE:
        yield (
            "Keep the best.",
            f"Round {best['round']:,} had {percent(best['test_accuracy'])}, the end {percent(last['test_accuracy'])}: "
            "`train.early_stop` or a smaller learning rate keeps what was there.",
        )


def _tells(scores: dict[str, float]) -> bool:
    return scores["auc"] >= 0.5 + SURE * scores["auc_deviation"]


class Varied(NamedTuple):
    """Something in which messages differ, what it is with everything else held fixed, and what to say of it."""

    lead: str
    name: str
    fixed: tuple[str, ...]
    unit: str
    safer: str
    alike: str


VARIED = (
    Varied(
        "Batches.", "samples", ("round", "steps"), "{} samples", "larger batches protect", "that protects no better"
    ),
    Varied(
        "Local steps.", "steps", ("round", "samples"), "{} local steps", "more steps protect", "that protects no better"
    ),
    Varied("Rounds.", "round", ("samples", "steps"), "round {}", "later messages are safer", "they are no safer"),
)


def _kinds(rows: list[Row], noun: str) -> Iterator[tuple[str, str]]:
    kinds = dict.fromkeys(row["family"] for row in rows)
    got = {kind: _best([row for row in rows if row["family"] == kind]) for kind in kinds}
    said = [f"{HOW[kind]} recover {percent(share, 0)} ({name})" for kind, (name, share) in got.items()]
    if len(said) > 1:
        yield "Attacks.", f"Of the {noun} behind recorded messages {', '.join(said)}."


def _server(honest: list[Row], malicious: list[Row], noun: str) -> Iterator[tuple[str, str]]:
    if not (honest and malicious):
        return
    (kept, share), (broke, more) = _best(honest), _best(malicious)
    said = (
        f"A server that keeps to the protocol gets {percent(share, 0)} of the {noun} with {kept}, one that sends "
        f"models of its own making {percent(more, 0)} with {broke}"
    )
    follows = "clients have to look at what they are sent" if more > share else "here that adds nothing"
    yield "Server.", f"{said}: {follows}."


def _varied(rows: list[Row], varied: Varied, attack: str) -> Iterator[tuple[str, str]]:
    """Messages that differ in one thing alone, the least against the most of it."""
    groups: dict[tuple, dict[int, list[float]]] = {}
    for row in rows:
        if row["scores"].get("psnr") is not None:
            alike = groups.setdefault(tuple(row["message"][name] for name in varied.fixed), {})
            alike.setdefault(row["message"][varied.name], []).append(row["scores"]["psnr"])
    widest = max(groups.values(), key=lambda group: max(group) / max(min(group), 1), default={})
    if len(widest) < 2:
        return
    few, many = min(widest), max(widest)
    before, after = fmean(widest[few]), fmean(widest[many])
    said = (
        f"{attack} reaches {number(before)} dB on messages of {varied.unit.format(few)} and {number(after)} dB on "
        f"those of {varied.unit.format(many)}"
    )
    yield varied.lead, f"{said}: {varied.safer if before - after >= CLEAR else varied.alike}."


def _defences(rows: list[Row], bare: str, server: str, noun: str) -> Iterator[tuple[str, str]]:
    """Each defence by what the strongest attack that is left gets, the best defence first."""
    found = {
        name: [row for row in rows if row["defence"] == name] for name in dict.fromkeys(r["defence"] for r in rows)
    }
    if len(found) < 2 or bare not in found:
        return
    attack, start = _best(found.pop(bare))
    if not start:
        return
    left = sorted(((name, *_best(own)) for name, own in found.items()), key=lambda each: each[2])
    said = [f"{behind(name)} {percent(share, 0)}" + (f" ({by})" if share else "") for name, by, share in left]
    idle = [name for name, _, share in left if share >= start]
    end = f" Of no use against it: {', '.join(idle)}." if idle else ""
    yield "Defences.", f"From {server} {attack} gets {percent(start, 0)} of the {noun}; {'; '.join(said)}.{end}"


def _looking(rows: list[Row]) -> Iterator[tuple[str, str]]:
    for defence in dict.fromkeys(row["defence"] for row in rows if row["declined"]):
        made = [row["declined"] for row in rows if row["defence"] == defence and row["malicious"]]
        true = {r["message"]["label"]: r["declined"] for r in rows if r["defence"] == defence and not r["malicious"]}
        said = [f"{sum(made)} of {count(len(made), 'model')} made for an attack"] if made else []
        said += [f"{sum(true.values())} of {count(len(true), 'honest one')}"] if true else []
        yield "Clients.", f"{behind(defence).capitalize()}, clients turn down {' and '.join(said)}."


def _strongest(rows: list[Row]) -> str:
    """The attack that recovers most, and of equals the one with the fewest errors."""
    attacks = dict.fromkeys(row["attack"] for row in rows)
    return max(attacks, key=lambda name: _strength([row for row in rows if row["attack"] == name]))


def _best(rows: list[Row]) -> tuple[str, float]:
    """The strongest attack, and the share of the samples that it recovers."""
    name = _strongest(rows)
    return name, _strength([row for row in rows if row["attack"] == name])[0]


def _strength(rows: list[Row]) -> tuple[float, float]:
    quality = [row["scores"]["psnr"] for row in rows if row["scores"].get("psnr") is not None]
    recovered, samples = (sum(row["scores"][name] for row in rows) for name in ("recovered", "samples"))
    return recovered / samples, fmean(quality) if quality else 0.0
