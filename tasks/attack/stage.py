"""The attack stage: every attack on every chosen message behind every defence, and on the released model."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from tasks import artifacts, keys, models, tree
from tasks.artifacts import Damaged
from tasks.attack import words
from tasks.attack.attacks import Attack
from tasks.attack.case import Case, Release, View
from tasks.attack.defences import Defence, Offer
from tasks.attack.guesses import Declined, Guess
from tasks.attack.pictures import save_pairs
from tasks.attack.scoring import Judgement, Referee
from tasks.attack.settings import AttackSettings
from tasks.config import Config
from tasks.models import Model, Network
from tasks.params import Params
from tasks.partition.federation import Federation
from tasks.tracking import Tracker, flatten
from tasks.train.transcript import Message, Transcript


def attack(params: Params, folder: Path, tracker: Tracker) -> None:
    """Attacks the recorded messages and the released model, and says what could be read out of them.

    Reads ``partition``, ``train/transcript`` and ``aggregate/model.safetensors`` under ``folder``; publishes ``attack``
    and ``metrics/attack.json`` beside it.
    """
    settings: AttackSettings = params.attack
    bench = Bench(params, folder)
    suite, defences = named(settings.suite), named(settings.defences)
    judged: list[Judged] = []
    total = sum(bench.guesses(method) * (len(defences) if method.needs_transcript else 1) for method in suite.values())
    for protection, defence in defences.items():
        cases = tuple(bench.case(message, defence) for message in bench.messages)
        for name, method in suite.items():
            if not method.needs_transcript and judged and protection != next(iter(defences)):
                continue
            for guess in method.run(bench.view(method, cases)):
                judged.append(Judged(name, protection, method, guess, bench.referee.judge(guess)))
                shown = {key: judged[-1].judgement.scores.get(key) for key in ("psnr", "label_accuracy", "auc")}
                tracker.progress(len(judged), max(total, len(judged)), "attack", **shown)
    with artifacts.publish(folder / "attack") as draft:
        report = Report(draft, bench, suite, defences)
        metrics = report.write(judged)
    artifacts.write_json(folder.parent / "metrics" / "attack.json", metrics)
    tracker.metrics({name: value for name, value in flatten(metrics).items() if isinstance(value, int | float)})
    for name in ("leakage.json", "membership.json", "roc.csv", "images"):
        tracker.artifact(folder / "attack" / name)


class Judged(NamedTuple):
    """A guess of one attack behind one defence, and what it was worth."""

    attack: str
    defence: str
    method: Attack
    guess: Guess
    judgement: Judgement


def named(configs: Iterable[Config]) -> dict[str, Config]:
    """Each entry under its name; further ones of the same name get a number: ``noise``, ``noise-2``."""
    seen: Counter[str] = Counter()
    found = {}
    for config in configs:
        seen[config.name] += 1
        found[config.name if seen[config.name] == 1 else f"{config.name}-{seen[config.name]}"] = config
    return found


class Bench:
    """What the attacks of a run are tried on."""

    def __init__(self, params: Params, folder: Path):
        self.params, self.settings, self.folder = params, params.attack, folder
        self.federation = Federation.open(folder / "partition")
        self.network = self._network(params.model)
        self.transcript = Transcript.open(folder / "train" / "transcript") if self.settings.needs_transcript else None
        self.referee = Referee(
            self.federation, self.transcript, params.seed, self.settings.public, self.settings.candidates
        )
        self.messages = self._choose(self.transcript.messages) if self.transcript else []
        self.recorded = {message.label: message for message in self.messages}

    def guesses(self, method: Attack) -> int:
        """How many guesses to expect of a method behind one defence, for the progress shown."""
        return len(self.messages) if method.needs_transcript else 1

    def view(self, method: Attack, cases: tuple[Case, ...]) -> View:
        """What ``method`` may see of ``cases``, or of the released model."""
        if not method.needs_transcript:
            return View((), self._release())
        told = tuple(self._told(case) for case in cases) if method.told_labels else cases
        return View(told, None, self.ask if method.malicious else None)

    def case(self, message: Message, defence: Defence) -> Case:
        """A message as it reaches the server behind ``defence``, played once more if that changes what clients do."""
        train = self.params.train
        case = Case(
            message=message.label,
            context=message.context,
            network=self.network,
            work=defence.protocol(train.algorithm),
            data=self.federation.meta,
            broadcast=message.broadcast(),
            delta={},
            defence=defence,
            budget=self.settings.budget,
            seed=self.params.seed,
            public=self.referee.public,
            uplink=train.uplink,
            privacy=train.privacy,
        )
        if (model := defence.design(self.params.model)) != self.params.model:
            network = self._network(model)
            return self.ask(case.sending(network.parameters, network))
        if case.work != train.algorithm:
            return self.ask(case)
        reason = self._objection(case)
        heard = message.payload(), message.upload(train.uplink)
        return replace(case, declined=reason) if reason else self._heard(case, *heard)

    def ask(self, case: Case) -> Case:
        """What the client behind ``case`` answers to the broadcast that is in it, or why it does not."""
        if reason := self._objection(case):
            return replace(case, declined=reason)
        client = self.referee.client(self.recorded[case.message], self.params.train)
        reply = client.answer(case.network, case.work, case.broadcast)
        return self._heard(replace(case, context=reply.context), reply.payload, reply.upload)

    def _objection(self, case: Case) -> str | None:
        """Why the client behind ``case`` stays out of the round, by its defence."""
        message = self.recorded[case.message]
        client = self.referee.client(message, self.params.train)
        agreed = self._network(case.defence.design(self.params.model))
        start = agreed.parameters
        known = [start, *(model for model in self._earlier(message) if model.keys() == start.keys())]
        return case.defence.objection(Offer(agreed, case.network, case.model, known, client.x, client.y))

    def _heard(self, case: Case, payload: tree.Tree, upload: tree.Tree) -> Case:
        """The case with a message that its defence has been applied to."""
        key = torch.tensor(keys.derive(self.params.seed, "attack", "defence", case.message))
        raw = case.work.change(upload, case.broadcast)
        delta = case.defence.protect(raw, key)
        if delta is not raw:
            upload, payload = upload | tree.join(delta=delta), {}
        return replace(case, delta=delta, upload=upload, payload=payload)

    def _told(self, case: Case) -> Case:
        return replace(case, labels=self.referee.labels(self.recorded[case.message]))

    def _earlier(self, message: Message) -> list[tree.Tree]:
        """The models of the recorded rounds before that of ``message``."""
        rounds = {other.context.round: other for other in self.transcript.messages}
        return [rounds[round_].model() for round_ in sorted(rounds) if round_ < message.context.round]

    def _release(self) -> Release:
        referee, path = self.referee, self.folder / "aggregate" / "model.safetensors"
        released = artifacts.read_tree(path)
        if missing := [name for name in self.network.parameters if name not in released]:
            raise Damaged(path, f"holds no parameter `{missing[0]}` of the model in params.yaml")
        released = {name: released[name] for name in self.network.parameters}
        return Release(
            self.network, released, self.federation.meta, referee.x, referee.y, *referee.public, self.params.seed
        )

    def _network(self, model: Model) -> Network:
        meta = self.federation.meta
        return models.build(model, meta.shape, meta.classes, self.params.seed)

    def _choose(self, messages: list[Message]) -> list[Message]:
        ranked = sorted(messages, key=lambda m: (m.context.samples, m.context.round, m.context.client))
        return ranked if self.settings.messages == "all" else ranked[: self.settings.messages]


class Report:
    """Writes what the attacks found into the folder of the stage."""

    def __init__(self, folder: Path, bench: Bench, suite: dict[str, Attack], defences: dict[str, Defence]):
        self.folder, self.bench, self.suite, self.defences = folder, bench, suite, defences

    def write(self, judged: list[Judged]) -> dict:
        """Writes all files; returns the metrics of the stage."""
        on_messages = [item for item in judged if item.method.needs_transcript]
        on_model = [item for item in judged if not item.method.needs_transcript]
        results = [self._message(item) for item in on_messages]
        membership = [self._suspicion(item) for item in on_model]
        artifacts.write_json(
            self.folder / "leakage.json", {"findings": self._findings(results, membership), "results": results}
        )
        artifacts.write_json(self.folder / "membership.json", membership)
        self._roc(on_model)
        (self.folder / "images").mkdir(exist_ok=True)
        (self.folder / "reconstructions").mkdir(exist_ok=True)
        return summary(results, membership)

    def _message(self, item: Judged) -> dict:
        case, scores = item.guess.case, item.judgement.scores
        stem, pairs = f"{item.attack}--{item.defence}--{case.message}", item.judgement.matched
        picture = f"images/{stem}.png" if len(pairs.get("labels", ())) and case.data.kind == "image" else None
        kept = f"reconstructions/{stem}.safetensors" if pairs else None
        if kept:
            artifacts.write_tree(self.folder / kept, pairs)
        if picture:
            save_pairs(self.folder / picture, pairs["original"], pairs["reconstruction"], case.data.range)
        return {
            "attack": item.attack,
            "family": item.method.family,
            "malicious": item.method.malicious,
            "assumes": item.method.assumes,
            "defence": item.defence,
            "message": {"label": case.message, **asdict(case.context)},
            "applicable": bool(scores),
            "declined": isinstance(item.guess, Declined),
            "reason": getattr(item.guess, "reason", None),
            "scores": scores,
            "verdict": item.judgement.verdict,
            "evaluations": getattr(item.guess, "evaluations", 0),
            "image": picture,
            "reconstruction": kept,
        }

    def _suspicion(self, item: Judged) -> dict:
        guess, judgement = item.guess, item.judgement
        return {
            "attack": f"{item.attack}/{guess.rule}",
            "family": item.method.family,
            "assumes": item.method.assumes,
            "scores": judgement.scores,
            "verdict": judgement.verdict,
            "evaluations": guess.evaluations,
            "roc": {"fpr": judgement.roc[0].tolist(), "tpr": judgement.roc[1].tolist()},
        }

    def _roc(self, judged: list[Judged]) -> None:
        with (self.folder / "roc.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["attack", "fpr", "tpr"])
            for item in judged:
                points = zip(*item.judgement.roc, strict=True)
                table.writerows([f"{item.attack}/{item.guess.rule}", f"{f:.6g}", f"{t:.6g}"] for f, t in points)

    def _findings(self, results: list[dict], membership: list[dict]) -> list[str]:
        found = [] if results or not self.bench.settings.needs_transcript else [words.NOTHING_RECORDED]
        for name in self.suite:
            rows = [row for row in results if row["attack"] == name]
            found += words.finding(name, rows, self.defences, self.bench.federation.meta.kind)
        return found + [f"{row['attack']} on the released model: {row['verdict']}." for row in membership]


def summary(results: list[dict], membership: list[dict]) -> dict:
    """The few numbers by which the stage is judged.

    ``messages``: the worst leak of any recorded message, behind each defence; ``attacks``: what each attack got out of
    all messages together, behind each defence, and the share of clients that declined; ``together``: the same of all
    attacks on samples, behind the first defence.
    """
    best: dict[str, dict[str, float]] = {}
    for row in (row for row in results if not row["malicious"]):
        scores, kept = row["scores"], best.setdefault(row["defence"], {})
        found = {name: scores.get(name) for name in ("psnr", "ssim", "label_accuracy")}
        if "recovered" in scores:
            found["recovered"] = scores["recovered"] / scores["samples"]
        for name, value in found.items():
            if value is not None:
                kept[name] = max(value, kept.get(name, value))
    areas = {row["attack"].partition("/")[2]: row["scores"] for row in membership}
    shown = ("auc", "tpr_at_fpr_0_01", "tpr_at_fpr_0_001")
    attacks: dict[str, dict[str, dict[str, float]]] = {}
    for name, defence in dict.fromkeys((row["attack"], row["defence"]) for row in results if row["applicable"]):
        rows = [r for r in results if r["applicable"] and (r["attack"], r["defence"]) == (name, defence)]
        attacks.setdefault(name, {})[defence] = together(rows)
    return {
        "messages": best,
        "attacks": attacks,
        "together": together(_on_samples(results)),
        "membership": {rule: {name: scores[name] for name in shown} for rule, scores in areas.items()},
    }


def _on_samples(results: list[dict]) -> list[dict]:
    """What was tried on samples, behind the first defence."""
    rows = [row for row in results if row["applicable"] and row["family"] != "inference"]
    return [row for row in rows if row["defence"] == results[0]["defence"]]


def together(rows: list[dict]) -> dict[str, float]:
    """Shares of all samples of the messages in ``rows``, means over the messages, and the share that was declined."""
    if not rows:
        return {}
    scores = [row["scores"] for row in rows]
    found = {"declined": sum(row["declined"] for row in rows) / len(rows)}
    for name in ("recovered", "exact"):
        counted = [score for score in scores if score.get(name) is not None]
        if counted:
            found[name] = sum(score[name] for score in counted) / sum(score["samples"] for score in counted)
    for name in ("psnr", "ssim", "cw_ssim", "label_accuracy"):
        values = [score[name] for score in scores if score.get(name) is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found
