"""Stage 2: trains the global model over the clients of the partition, and records what it cost and what was sent."""

import contextlib
import csv
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tasks import artifacts, keys, models, tree
from tasks.config import Refused
from tasks.models import Network
from tasks.params import Params, counted
from tasks.partition.federation import Federation
from tasks.tracking import Tracker, checkpoints_folder, main_checkout
from tasks.train.checkpoints import Checkpoint, Checkpoints, claimed
from tasks.train.coordinator import Coordinator
from tasks.train.engine import compiler
from tasks.train.engine.plan import Plan, resolve, workload
from tasks.train.engine.program import Blueprint
from tasks.train.engine.workers import Workers, hire
from tasks.train.schedules import arrivals, review
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Recorder
from tasks.tree import Tree

VALIDATION_SAMPLES = 10_000
"""The clients' validation samples that an evaluation looks at, at most."""
PERSONAL_MODELS = 100
"""The clients whose own models an evaluation looks at, at most."""
SCORES = (
    "test_loss", "test_accuracy", "validation_loss", "validation_accuracy",
    "personal_test_accuracy", "personal_validation_accuracy",
)  # fmt: skip
COMPILED = Path(".fedloom", "compiled")
"""Where in the main checkout compiled programs are kept between runs."""


def train(params: Params, folder: Path, tracker: Tracker) -> None:
    """Train the global model over the clients: reads artifacts/partition, writes artifacts/train."""
    partition = folder / "partition"
    data = Federation.open(partition)
    params = counted(params, data.clients)
    network = models.build(params.model, data.meta.shape, data.meta.classes, params.seed)
    work = workload(params.train, network, data.meta.shape, data.x.dtype, data.sizes)
    plan = resolve(params.train.engine, work)
    compiler.keep_in(main_checkout() / COMPILED)
    blueprint = Blueprint(partition.resolve(), params.model, params.train, plan, params.seed)
    with claimed(checkpoints_folder("train", params, folder)) as checkpoints:
        with hire(blueprint) as workers:
            run = Run(params, data, network, plan, workers, checkpoints, tracker)
            run.finish()
        publish(run, folder)
    tracker.metrics({f"final_{name}": value for name, value in summary(run).items() if isinstance(value, int | float)})


class Run:
    """A training run from its newest checkpoint, or from the start, to its last round."""

    def __init__(
        self,
        params: Params,
        data: Federation,
        network: Network,
        plan: Plan,
        workers: Workers,
        checkpoints: Checkpoints,
        tracker: Tracker,
    ):
        self.train, self.seed, self.plan, self.network = params.train, params.seed, plan, network
        self.checkpoints, self.tracker = checkpoints, tracker
        self.test = Scorer(network, data.test_x, data.test_y, np.arange(len(data.test_y)))
        self.validation = Scorer(network, data.x, data.y, _validation(data, params.seed))
        self.personal = Personal(network, data)
        self.recorder = Recorder(checkpoints.transcript)
        start = params.train.seed_model.parameters(network, data, params.seed)
        draw = partial(models.redrawn, params.model, data.meta.shape, data.meta.classes, params.seed)
        self.coordinator = Coordinator(
            params.train, plan, params.seed, data, start, workers, self.recorder,
            checkpoints.memories, recorded_rounds(params.train), self.may_end_at, draw,
        )  # fmt: skip
        self.history: list[dict] = []
        self.timings: list[dict] = []
        self.diagnostics: list[dict] = []
        self.best, self.stale = float("inf"), 0
        if checkpoint := checkpoints.newest():
            self._compare(checkpoint.layout)
            self.coordinator.restore(checkpoint.state)
            self.coordinator.uploads = checkpoint.uploads
            self.timings, self.diagnostics = checkpoint.timings, checkpoint.diagnostics
            for row in checkpoint.history:
                self._log(row)
            print(f"train goes on after round {self.coordinator.rounds}, where its last checkpoint is")
        else:
            self._diagnose()

    def finish(self) -> None:
        """Takes the rounds that are left."""
        steps = self.train.schedule.run(self.coordinator)
        begun = time.perf_counter()
        worked, first = 0, self.coordinator.rounds
        while not self.ended():
            start = time.perf_counter()
            with self._profiled(self.coordinator.rounds - first + 1):
                next(steps)
            row = self._row(self._evaluate())
            whole = time.perf_counter() - start
            parts = {name: round(seconds, 6) for name, seconds in self.coordinator.seconds.items()}
            self.timings.append({"round": row["round"], **parts, "total": round(whole, 6)})
            self._log(row)
            worked += row["cohort"]
            pace = worked / max(time.perf_counter() - begun, 1e-9)
            shown = {"accuracy": row["test_accuracy"], "loss": row["loss"], "clients/s": pace}
            self.tracker.progress(row["round"], self.train.rounds, "round", **shown)
            if row["round"] % self.train.engine.checkpoint_every == 0 or self.ended():
                self._save()
        if first == self.coordinator.rounds and first:
            self.tracker.progress(first, self.train.rounds, "round")
        self.recorder.close()

    def _compare(self, layout: dict) -> None:
        """Refuses to go on in another layout than the rounds so far were computed in, which a machine that has lost its
        compiler or its GPU would do."""
        now = self.plan.layout
        changes = [f"{name} from {layout[name]} to {now[name]}" for name in now if layout[name] != now[name]]
        if changes:
            problem = f"to go on here would change {', '.join(changes)} in mid-run, to a model of neither layout"
            mend = "Go on where there are the compiler and the GPU it began with, or remove the folder to begin again"
            raise Refused(str(self.checkpoints.folder), None, problem, mend)

    @contextlib.contextmanager
    def _profiled(self, nth: int) -> Iterator[None]:
        """Traces the second round of this process, in which nothing is done for the first time any more, if the engine
        is told to."""
        if not (self.train.engine.profile and nth == 2):
            yield
            return
        round_ = self.coordinator.rounds + 1
        with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profile:
            yield
        trace = main_checkout() / ".fedloom" / "profiles" / f"train-round-{round_}.json"
        trace.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(trace))
        self.tracker.artifact(trace, "profiles")
        print(f"train: the trace of round {round_} is in {trace}; open it at chrome://tracing or in Perfetto")

    def ended(self) -> bool:
        """Whether there is no round or no time left, or the validation loss has stopped falling."""
        patience = self.train.early_stop.patience or float("inf")
        return self._last_step() or self.stale >= patience

    def _last_step(self) -> bool:
        """Whether the rounds or the time were used up by the last step of the server."""
        return self.coordinator.rounds >= self.train.rounds or self.coordinator.clock >= (
            self.train.seconds or float("inf")
        )

    def may_end_at(self, round_: int) -> bool:
        """Whether ``round_``, about to be taken, could turn out to be the last."""
        patience = self.train.early_stop.patience
        worn = patience and self.stale >= patience - 1
        return round_ == self.train.rounds or bool(worn or self.train.seconds)

    def _evaluate(self) -> dict:
        due = self.coordinator.rounds % self.train.evaluate_every == 0 or self._last_step()
        empty = dict.fromkeys(SCORES)
        if not due:
            return empty
        start, model = time.perf_counter(), self.coordinator.model
        scores = empty | self.test(model, "test") | self.validation(model, "validation")
        scores |= self.personal(self.coordinator.models)
        self._diagnose()
        self.coordinator.seconds["evaluate"] = time.perf_counter() - start
        return scores

    def _diagnose(self) -> None:
        """Takes down what the method has to tell, at every evaluation and before the first round."""
        if found := self.coordinator.diagnostics():
            values = {name: _finite(value) for name, value in found.items()}
            self.diagnostics.append({"round": self.coordinator.rounds, **values})

    def _row(self, scores: dict) -> dict:
        run, exchange = self.coordinator, self.coordinator.data.meta.exchange
        # What was sent to refine the data is part of the price, so the totals begin with it.
        begun = {"total_bytes_up": exchange.bytes_up, "total_bytes_down": exchange.bytes_down}
        before = self.history[-1] if self.history else begun
        ledger, guard = run.ledger, self.train.privacy.clipped_at(run.guard)
        return {
            "round": run.rounds,
            "loss": _finite(ledger.loss),
            **scores,
            "bytes_up": ledger.bytes_up,
            "bytes_down": ledger.bytes_down,
            "total_bytes_up": ledger.bytes_up + before["total_bytes_up"],
            "total_bytes_down": ledger.bytes_down + before["total_bytes_down"],
            "virtual_seconds": run.clock,
            "epsilon": _finite(run.epsilon()),
            "clip_norm": guard,
            "lr": ledger.lr,
            "cohort": ledger.cohort,
            "rejected": ledger.rejected,
            **(ledger.delays or {}),
        }

    def _log(self, row: dict) -> None:
        """Takes down a round, and counts evaluations since the validation loss last fell by what counts as a fall."""
        self.history.append(row)
        if (loss := row["validation_loss"]) is not None:
            fell = loss < self.best - self.train.early_stop.min_delta
            self.best, self.stale = (loss, 0) if fell else (self.best, self.stale + 1)
        self.tracker.metrics({name: value for name, value in row.items() if name != "round"}, row["round"])
        # MLflow draws over the step unless each chart is told otherwise: the same once more over the bytes it took.
        spent = {f"by_bytes_up/{name}": row[name] for name in ("loss", "test_loss", "test_accuracy", "epsilon")}
        self.tracker.metrics(spent, row["total_bytes_up"])

    def _save(self) -> None:
        run = self.coordinator
        run.flush()
        logs = self.history, self.timings, self.diagnostics
        self.checkpoints.save(run.rounds, Checkpoint(run.state(), run.uploads, *logs, self.plan.layout))
        run.commit()


class Scorer:
    """Loss and accuracy of a model on some samples of memory-mapped data."""

    def __init__(self, network: Network, x: np.ndarray, y: np.ndarray, rows: np.ndarray):
        self.network, self.x, self.y = network, torch.from_numpy(x[rows]), torch.from_numpy(y[rows])

    def __call__(self, model: Tree, name: str) -> dict[str, float | None]:
        if not len(self.y):
            return {}
        losses, hits = models.score(self.network, model, self.x, self.y)
        return {f"{name}_loss": _finite(float(losses.mean())), f"{name}_accuracy": float(hits.mean())}


class Personal:
    """Accuracy of clients' own models: on the global test set, and each on its client's own validation samples."""

    def __init__(self, network: Network, data: Federation):
        self.network, self.data = network, data
        self.clients = np.unique(np.linspace(0, data.clients - 1, min(data.clients, PERSONAL_MODELS)).astype(np.int64))
        self.test = Scorer(network, data.test_x, data.test_y, np.arange(len(data.test_y)))

    def __call__(self, models_of: Callable[[np.ndarray], Tree]) -> dict[str, float | None]:
        if not models_of(self.clients[:1]):
            return {}
        test, own = [], []
        for client in self.clients:
            model = tree.take(models_of(np.array([client])), 0)
            validation = Scorer(self.network, self.data.x, self.data.y, self.data.validation(int(client)))
            test += self.test(model, "test").values()
            own += validation(model, "own").values()
        accuracies = {"test": test[1::2], "validation": own[1::2]}
        return {f"personal_{name}_accuracy": float(np.mean(found)) for name, found in accuracies.items() if found}


def recorded_rounds(train: TrainSettings) -> frozenset[int]:
    """The rounds whose messages are recorded, counted from 1."""
    named = {"first": 1, "last": train.rounds}
    return frozenset(named.get(round_, round_) for round_ in train.transcript.rounds if train.transcript.clients)


def summary(run: Run) -> dict:
    """The run in a few numbers."""
    last = run.history[-1]
    scored = [row for row in run.history if row["test_accuracy"] is not None]
    return {
        "accuracy": scored[-1]["test_accuracy"] if scored else None,
        "loss": scored[-1]["test_loss"] if scored else None,
        "best_accuracy": max((row["test_accuracy"] for row in scored), default=None),
        "personal_test_accuracy": scored[-1]["personal_test_accuracy"] if scored else None,
        "personal_validation_accuracy": scored[-1]["personal_validation_accuracy"] if scored else None,
        "rounds": last["round"],
        "stopped_early": last["round"] < run.train.rounds,
        "bytes_up": last["total_bytes_up"],
        "bytes_down": last["total_bytes_down"],
        "virtual_seconds": last["virtual_seconds"],
        "epsilon": last["epsilon"],
        "delta": run.train.privacy.target_delta(run.coordinator.data.clients),
        "epsilon_extrapolated": run.train.privacy.extrapolated(run.coordinator.participation()),
        "rejected": sum(row["rejected"] for row in run.history),
        "parameters": sum(value.numel() for value in run.coordinator.model.values()),
        "frozen_parameters": sum(value.numel() for value in run.network.frozen.values()),
    }


def publish(run: Run, folder: Path) -> None:
    """Writes the outputs of a finished run: the folder ``train``, ``timings.jsonl`` and the stage's metrics."""
    schedule, result = run.coordinator.schedule(), summary(run)
    if schedule:
        result |= review(schedule, run.coordinator.traffic.weights, run.train.cohort)
    with artifacts.publish(folder / "train") as draft:
        artifacts.write_tree(draft / "model.safetensors", run.coordinator.model)
        artifacts.write_tree(draft / "uploads.safetensors", run.coordinator.uploads)
        if personal := run.coordinator.models(np.arange(run.coordinator.data.clients)):
            artifacts.write_tree(draft / "personal.safetensors", personal)
        artifacts.write_lines(draft / "history.jsonl", run.history)
        if run.diagnostics:
            artifacts.write_lines(draft / "diagnostics.jsonl", run.diagnostics)
        told = {"privacy": run.train.privacy.name, "started_from": run.network.started}
        artifacts.write_json(draft / "summary.json", result | told)
        # Workers leave no trace in a result, so they leave none in its record.
        artifacts.write_json(draft / "plan.json", run.plan.layout)
        _write_table(draft / "history.csv", run.history)
        if schedule:
            _write_table(draft / "schedule.csv", list(arrivals(schedule)))
        # A process killed while it wrote leaves a hidden file behind, which is nobody's.
        shutil.copytree(run.checkpoints.transcript, draft / "transcript", ignore=shutil.ignore_patterns(".*"))
    artifacts.write_lines(folder / "timings.jsonl", run.timings)
    artifacts.write_json(folder.parent / "metrics" / "train.json", result)


def _write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _validation(data: Federation, seed: int) -> np.ndarray:
    """The rows of the clients' validation samples, thinned evenly at random where there are very many."""
    place = np.arange(len(data.indices)) - np.repeat(data.offsets[:-1], data.owned)
    rows = data.indices[place >= np.repeat(data.train_sizes, data.owned)]
    if len(rows) > VALIDATION_SAMPLES:
        chosen = keys.generator(seed, "validation").choice(len(rows), VALIDATION_SAMPLES, replace=False)
        rows = rows[np.sort(chosen)]
    return rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
