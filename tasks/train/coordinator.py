"""The server's side of a run: it selects, broadcasts, collects, accounts and updates, one step after another."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks import keys, tree
from tasks.partition.federation import Federation
from tasks.train.engine.plan import Plan, stacks
from tasks.train.engine.program import Answer, Blank, Job, Result, blank
from tasks.train.engine.workers import Workers
from tasks.train.inflight import InFlight
from tasks.train.memory import ClientMemory
from tasks.train.privacy import Participation, Sums
from tasks.train.schedules import Fleet, Flight, Step
from tasks.train.settings import TrainSettings
from tasks.train.traffic import Traffic
from tasks.train.transcript import Context, Recorder
from tasks.train.uplink import Chain
from tasks.train.work import Exchange, Setting, Uploads, Work
from tasks.tree import Tree


class Ledger(NamedTuple):
    """What one step of the server cost and brought. ``loss`` is the mean over the accepted clients, None if there are
    none; ``lr`` the local learning rate; ``delays``, where clients do not work in rounds, how old the uploads were."""

    loss: float | None = None
    lr: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    cohort: int = 0
    rejected: int = 0
    delays: dict[str, float | None] | None = None


class Foreseen(NamedTuple):
    """``recorded`` are the steps in which messages arrive that are taken down, by the numbers of their flights;
    ``last`` is the last step in which anything arrives, if the run takes all its steps."""

    recorded: dict[int, int]
    last: int


PARTS = ("download", "compute", "encode", "aggregate", "evaluate", "wait")
"""Where the wall-clock time of a round goes."""


class Coordinator:
    """A run between two steps of the server. All that the next step depends on is in :meth:`state`.

    Parameters
    ----------
    train, plan, seed : what to do, how to lay it out, and the seed of every choice.
    data : the clients.
    params : the model to start from.
    workers : who does the client work.
    recorder : takes down the messages of the ``recorded`` rounds, counted from 1.
    memory_folder : where clients' memories are kept.
    keep_uploads : whether the decoded uploads of a round will be wanted; they are then in :attr:`uploads`.
    draw : other weights for the same network, by number, for a method in which clients start from weights of their own.
    """

    def __init__(
        self,
        train: TrainSettings,
        plan: Plan,
        seed: int,
        data: Federation,
        params: Tree,
        workers: Workers,
        recorder: Recorder,
        memory_folder: Path,
        recorded: frozenset[int] = frozenset(),
        keep_uploads: Callable[[int], bool] = lambda _: False,
        draw: Callable[[int], Tree] | None = None,
    ):
        self.train, self.plan, self.seed, self.data, self.workers = train, plan, seed, data, workers
        self.recorder, self.recorded, self.keep_uploads = recorder, recorded, keep_uploads
        self.memory_folder = memory_folder
        train.algorithm.check(data.meta)
        setting = Setting(data.clients, train.cohort, train.rounds, seed, draw, bool(train.uplink))
        self.server = train.topology.init(train.algorithm, params, setting)
        self.guard = train.privacy.init()
        self.rounds, self.releases, self.clock = 0, 0, 0.0
        self.participations, self.busiest = np.zeros(data.clients, np.int32), 0
        self.exposures, self.exposure = np.zeros(data.clients if train.schedule.asynchronous else 0), 0.0
        self.memories: dict[str, ClientMemory] = {}
        self.blanks: dict[tuple, Blank] = {}
        self.flights = InFlight(memory_folder)
        self.ledger, self.uploads, self.seconds = Ledger(), {}, {}

    @property
    def model(self) -> Tree:
        """The global model."""
        return self.train.topology.model(self.server)

    def models(self, clients: np.ndarray) -> Tree:
        """The own models of ``clients``, stacked; {} where all share the global one."""
        kept = self.memories.get(f"{self.train.algorithm.name}/memory")
        memory = kept.gather(clients) if kept else {}
        return self.train.topology.models(self.train.algorithm, self.server, torch.from_numpy(clients), memory)

    def diagnostics(self) -> dict[str, float]:
        """What the method has to tell of the state it is in, by name."""
        return self.train.topology.diagnostics(self.train.algorithm, self.server)

    def participation(self) -> Participation:
        """How clients were called so far, for the accountant."""
        train, exposure = self.train, self.exposure if self.train.schedule.asynchronous else None
        poisson = train.sampling.poisson
        return Participation(self.releases, train.cohort, self.data.clients, poisson, self.busiest, exposure)

    def epsilon(self) -> float | None:
        """The privacy loss so far, None where nothing is promised."""
        return self.train.privacy.epsilon(self.participation())

    def select(self) -> np.ndarray:
        rng = keys.generator(self.seed, "cohort", self.rounds + 1)
        return self.train.sampling.draw(self.data.sizes, self.train.cohort, rng)

    def advance(self, seconds: np.ndarray) -> None:
        self.clock += float(seconds.max(initial=0.0))

    def round(self, clients: np.ndarray) -> np.ndarray:
        self.rounds += 1
        self.ledger, self.seconds = Ledger(cohort=len(clients)), dict.fromkeys(PARTS, 0.0)
        elapsed, exchange = np.zeros(len(clients)), 0
        method = self.train.topology.round(self.train.algorithm, self.server, torch.from_numpy(clients))
        request = next(method)
        while True:
            uploads, seconds = self._exchange(request, clients, exchange)
            elapsed, exchange = elapsed + seconds, exchange + 1
            if not float(uploads.weight):
                return elapsed  # nobody answered, or nobody could be believed: the server stays where it is
            try:
                with self._timed("aggregate"):
                    request = method.send(uploads)
            except StopIteration as finished:
                self.server = finished.value
                return elapsed

    def _exchange(self, request: Exchange, clients: np.ndarray, exchange: int) -> tuple[Uploads, np.ndarray]:
        """One request to ``clients``: their answers, and the virtual seconds that each took."""
        sent_down = request.shared | tree.join(privacy=self.guard)
        work, shared, own = request.work, request.known | sent_down, request.kept | request.own
        self.participations[clients] += 1
        self.busiest = max(self.busiest, int(self.participations[clients].max(initial=0)))
        nobody = tree.map(lambda value: value.new_zeros(value.shape[1:]), own)
        empty = self._blank(work, shared, nobody)
        memory = self._memory(f"{work.name}/memory", lambda: work.client_memory(shared | nobody))
        residual = self._memory(f"{work.name}/residual", lambda: Chain(self.train.uplink, empty.upload).memory())
        trains = work is self.train.algorithm
        # What nobody hears does not cross a wire.
        heard = clients[request.links.sent.numpy() > 0] if request.links else clients
        watched = self._watch(heard) if trains and self.rounds in self.recorded else frozenset()
        keep = trains and self.keep_uploads(self.rounds)
        groups = list(self._stacks(work, clients))
        jobs = [
            Job(
                work, self.rounds, exchange, clients[group], tree.take(own, torch.from_numpy(group)),
                memory.gather(clients[group]), residual.gather(clients[group]), empty.upload,
                tuple(i for i, client in enumerate(clients[group]) if client in watched), keep or request.each,
            )
            for group in groups
        ]  # fmt: skip
        if watched:
            self.recorder.template(empty.upload)
            self.recorder.broadcast(self.rounds, shared)
        total, notes, answers, each, size = empty.upload, empty.note, [empty.answer], [], 0
        results = zip(jobs, self._timed_wait(self.workers.run(shared, jobs)), strict=True)
        for job, result in results:
            with self._timed("aggregate"):
                total = tree.add(total, tree.part(result.sums, "total"))
                notes = tree.add(notes, tree.part(result.sums, "notes"))
                answers.append(Answer(**result.answer))
                each.append(result.each)
                size = result.bytes
                memory.scatter(job.clients, result.memory)
                residual.scatter(job.clients, result.residual)
                self._record(job, shared, result.payloads, result.bytes)
        answer = Answer(*(torch.cat(field) for field in zip(*answers, strict=True)))
        if keep:
            self._keep(jobs, shared, answer, each)
        down = np.full(len(clients), tree.nbytes(sent_down) + tree.nbytes(request.own) // max(len(clients), 1))
        up = np.full(len(clients), size)
        if request.links:
            down, up = down + size * request.links.received.numpy(), size * request.links.sent.numpy()
        elsewhere = size * request.links.elsewhere if request.links else 0
        self._book(answer, float(shared["lr"]) if "lr" in shared else None, int(down.sum()) + elsewhere, int(up.sum()))
        sums = Sums(total, notes, answer.weight.sum(), int(answer.accepted.sum()))
        noise = torch.tensor(keys.derive(self.seed, "noise", self.rounds, exchange))
        released, self.guard = self.train.privacy.release(self.guard, sums, self.train.cohort, noise)
        self.releases += 1
        devices, turns = self.train.devices, np.full(len(clients), self.rounds)
        speeds = devices.varied(devices.speeds(clients, self.seed, self.data.clients), clients, turns, self.seed)
        seconds = speeds.seconds(work.batches.seen(self.data.sizes[clients]), down, up)
        uploads = Uploads(torch.from_numpy(clients), released.total, released.weight, released.count)
        if request.each and groups:
            back = torch.from_numpy(np.argsort(np.concatenate(groups)))
            uploads = uploads._replace(each=tree.take(tree.concatenate(each), back), weights=answer.weight[back])
        return uploads, seconds

    def _blank(self, work: Work, shared: Tree, nobody: Tree) -> Blank:
        """What the answers of an exchange are added up from, which follows from the shapes of what is sent."""
        kind = (work, *((name, value.shape) for part in (shared, nobody) for name, value in part.items()))
        if kind not in self.blanks:
            self.blanks[kind] = blank(work, shared, nobody, self.train.privacy)
        return self.blanks[kind]

    @cached_property
    def traffic(self) -> Traffic:
        """What is known beforehand of the messages, where clients do not work in rounds."""
        request = self.train.algorithm.request(self.server, torch.zeros(1, dtype=torch.int64))
        return Traffic(self.train, self.seed, self.data, request, self.guard)

    def fleet(self) -> Fleet:
        return self.traffic.fleet()

    def schedule(self) -> list[Step]:
        """The steps so far, where clients do not work in rounds: played through once more on the clock."""
        if not self.train.schedule.asynchronous:
            return []
        return list(itertools.islice(self.train.schedule.steps(self.fleet()), self.rounds))

    @cached_property
    def _foreseen(self) -> Foreseen:
        """What is known of the whole run, where clients do not work in rounds."""
        found, last, fleet = {}, 0, self.fleet()
        ends_too = self.train.rounds in self.recorded
        for step in fleet.run(self.train.schedule.steps(fleet)):
            last = step.number if step.flights else last
            if step.number in self.recorded or (ends_too and fleet.ends(step)):
                flights = {flight.client: flight.number for flight in step.flights}
                chosen = self._watch(np.array(list(flights), np.int64))
                found |= {number: step.number for client, number in flights.items() if client in chosen}
        return Foreseen(found, last)

    def step(self, step: Step) -> None:
        self.rounds, self.clock = step.number, step.seconds
        ages, waited = step.staleness, [step.seconds - flight.due for flight in step.flights]
        known = bool(step.flights)
        delays = {
            "staleness": float(ages.mean()) if known else None,
            "max_staleness": int(ages.max()) if known else None,
            "waited": max(float(np.mean(waited)), 0.0) if known else None,
        }
        self.ledger = Ledger(cohort=len(step.flights), delays=delays)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._send(step.sent)
        self._hand_over(step)
        while any(flight.number in self.flights.waiting for flight in step.flights):
            self._work_out()
            self._hand_over(step)
        if step.flights:
            self._take_in(step)

    def _send(self, flights: Sequence[Flight]) -> None:
        """Sends the present model to the clients of ``flights``."""
        if not flights:
            return
        clients = np.array([flight.client for flight in flights])
        request = self.train.algorithm.request(self.server, torch.from_numpy(clients))
        guard = tree.join(privacy=self.guard)
        self.flights.send(flights, request.known | request.shared | guard, request.kept | request.own)
        np.add.at(self.participations, clients, 1)
        self.busiest = max(self.busiest, int(self.participations[clients].max()))
        length = self.traffic.length(request, guard, len(clients))
        self.traffic.expect(length, self.traffic.down)
        lr = float(request.shared["lr"]) if "lr" in request.shared else None
        self.ledger = self.ledger._replace(lr=lr, bytes_down=length * len(clients))

    def _memories(self) -> tuple[ClientMemory, ClientMemory]:
        work, traffic = self.train.algorithm, self.traffic
        memory = self._memory(f"{work.name}/memory", lambda: work.client_memory(traffic.broadcast))
        residual = self._memory(f"{work.name}/residual", lambda: Chain(self.train.uplink, traffic.like).memory())
        return memory, residual

    def _work_out(self) -> None:
        """Does the work of all flights that wait for it: the stacks mix versions, as the results do not depend on when
        they are found."""
        wave, traffic = self.flights.wave(), self.traffic
        alike = len({flight.version for flight in wave}) == 1
        shared = tree.take(self.flights.broadcasts(wave[:1]), 0) if alike else {}
        kinds: dict[tuple, list[Flight]] = {}
        for flight in wave:
            kinds.setdefault(traffic.codecs(flight.version), []).append(flight)
        stacked = [[kind[i] for i in group] for kind in kinds.values() for group in self._grouped(kind)]
        jobs = [self._job(flights, alike) for flights in stacked]
        results = self._timed_wait(self.workers.run(shared, jobs))
        for flights, job, result in zip(stacked, jobs, results, strict=True):
            with self._timed("aggregate"):
                traffic.expect(result.bytes, traffic.up(flights[0].version))
                kept = {"memory": result.memory, "residual": result.residual, "answer": result.answer}
                self.flights.answer(flights, tree.join(upload=result.each, **kept))
                self._record(job, shared, result.payloads, result.bytes, flights)

    def _job(self, flights: Sequence[Flight], alike: bool) -> Job:
        """The work of ``flights`` as one stack; each has its own broadcast unless they are all ``alike``."""
        clients = np.array([flight.client for flight in flights])
        own = self.flights.own(flights)
        memory, residual = self._memories()
        return Job(
            self.train.algorithm, flights[0].version + 1, 0, clients,
            own if alike else self.flights.broadcasts(flights) | own,
            memory.gather(clients), residual.gather(clients), self.traffic.like,
            tuple(i for i, flight in enumerate(flights) if flight.number in self._foreseen.recorded), True,
            np.array([flight.turn for flight in flights]),
            self.traffic.steps(clients, [flight.steps for flight in flights]),
        )  # fmt: skip

    def _grouped(self, flights: Sequence[Flight]) -> Iterator[np.ndarray]:
        clients = np.array([flight.client for flight in flights])
        return stacks(clients, self.traffic.steps(clients, [flight.steps for flight in flights]), self.plan.stack)

    def _hand_over(self, step: Step) -> None:
        """Lets the clients that have arrived by the time of ``step`` remember what they worked out."""
        if arrived := self.flights.arrived(step.seconds, step.flights):
            clients, answers = np.array([flight.client for flight in arrived]), self.flights.answers(arrived)
            memory, residual = self._memories()
            memory.scatter(clients, tree.part(answers, "memory"))
            residual.scatter(clients, tree.part(answers, "residual"))

    def _take_in(self, step: Step) -> None:
        """The server's update by the answers of ``step``, which are at hand."""
        with self._timed("aggregate"):
            clients = np.array([flight.client for flight in step.flights])
            answers, starts = self.flights.answers(step.flights), self.flights.broadcasts(step.flights)
            self.flights.drop(step.flights)
            answer, each = Answer(**tree.part(answers, "answer")), tree.part(answers, "upload")
            given, total = torch.from_numpy(step.weights).float(), self.traffic.like
            weights = given * answer.accepted
            # In the order of a round's stacks, so that where all arrive together the sums are a round's to the bit.
            groups = [torch.from_numpy(group) for group in self._grouped(step.flights)]
            for group in groups:
                part = tree.map(lambda value, g=group: torch.tensordot(weights[g], value[g], 1), each)
                total = tree.add(total, part)
            ordered = Answer(*(column[torch.cat(groups)] for column in answer))
            self._book(ordered, self.ledger.lr, 0, sum(self.traffic.up(flight.version) for flight in step.flights))
            heaviest = float(step.weights.max())
            sums = Sums(total, {}, weights.sum(), int(answer.accepted.sum()), heaviest)
            noise = torch.tensor(keys.derive(self.seed, "noise", self.rounds, 0))
            released, self.guard = self.train.privacy.release(self.guard, sums, len(clients), noise)
            self.releases += 1
            exposed, places = np.unique(clients, return_inverse=True)
            self.exposures[exposed] += np.bincount(places, step.weights / heaviest) ** 2
            self.exposure = max(self.exposure, float(self.exposures[exposed].max()))
            if self.keep_uploads(self.rounds) or self.rounds == self._foreseen.last:
                self.uploads = tree.join(start=self.model, delta=tree.part(each, "delta"))
                self.uploads |= {"weights": weights, "clients": torch.from_numpy(clients)}
            if not released.count:
                return
            # Noise does not cover the gap: where a loss of privacy is bounded, it must not tell what was rejected.
            told = weights if self.train.privacy.target_delta(self.data.clients) is None else given
            total = tree.add(released.total, self._gap(starts, told)) if step.mixes else released.total
            over = torch.tensor(step.over, dtype=torch.float32)
            uploads = Uploads(torch.from_numpy(clients), total, over, released.count, each, weights)
            self.server = self.train.algorithm.server_update(self.server, uploads)

    def _gap(self, starts: Tree, weights: Tensor) -> Tree:
        """What towards each client's model is to be gone further than along its change, times ``weights``."""
        now, starts = self.model, tree.part(starts, "model")
        return tree.join(delta={n: torch.tensordot(weights, value - now[n], 1) for n, value in starts.items()})

    def _stacks(self, work: Work, clients: np.ndarray) -> Iterator[np.ndarray]:
        return stacks(clients, work.batches.steps(self.data.sizes[clients]), self.plan.stack)

    def _memory(self, name: str, fresh: Callable[[], Tree]) -> ClientMemory:
        if name not in self.memories:
            self.memories[name] = ClientMemory(fresh(), self.data.clients, self._file(name))
        return self.memories[name]

    def _file(self, name: str) -> Path:
        return self.memory_folder / f"{name.replace('/', '-')}.rows"

    def _watch(self, clients: np.ndarray) -> frozenset[int]:
        """The clients of a recorded round whose messages are taken down."""
        return frozenset(self.train.transcript.choose(clients, self.data.sizes[clients]).tolist())

    def _record(self, job: Job, shared: Tree, payloads: Tree, sent: int, flights: Sequence[Flight] = ()) -> None:
        """Takes down those messages of ``job`` that are wanted, of a round or of ``flights``."""
        if not job.record:
            return
        positions, counts = job.order(job.keys(self.seed), self.data.sizes[job.clients])
        for row, i in enumerate(job.record):
            client, samples = int(job.clients[i]), int(self.data.sizes[job.clients[i]])
            own = tree.take(job.own, i)
            batches, lr = job.work.batches._replace(count=int(counts[i])), float((shared | own)["lr"])
            steps, passes = int(batches.steps(samples)), int(batches.passes(samples))
            # Of a pass that was broken off, a message can only tell of the samples that came up.
            used, order = np.unique(positions[i][:steps], return_inverse=True)
            skipped = int(used[0] < 0)
            private = self.data.train(client)[used[skipped:]]
            context = Context(self.rounds, client, len(private), steps, passes, batches.size, lr, sent)
            if flights:
                number, turn, version = flights[i].number, flights[i].turn, flights[i].version
                context = replace(context, round=self._foreseen.recorded[number], turn=turn, sent_in=version + 1)
                own = shared | own
                self.recorder.template(job.like)
                self.recorder.broadcast(context.round, {})
            batch = {"x": torch.from_numpy(self.data.x[private]), "y": torch.from_numpy(self.data.y[private])}
            if self.data.groups is not None:
                batch["group"] = torch.from_numpy(self.data.groups[private])
            batch["order"] = torch.from_numpy(order.reshape(steps, -1) - skipped)
            self.recorder.message(context, tree.take(payloads, row), own, batch)

    def _keep(self, jobs: list[Job], shared: Tree, answer: Answer, each: list[Tree]) -> None:
        clients = np.concatenate([job.clients for job in jobs]) if jobs else np.zeros(0, np.int64)
        deltas = tree.part(tree.concatenate(each), "delta") if each else {}
        self.uploads = tree.join(start=tree.part(shared, "model") or self.model, delta=deltas)
        self.uploads |= {"weights": answer.weight, "clients": torch.from_numpy(clients)}

    def _book(self, answer: Answer, lr: float | None, down: int, up: int) -> None:
        accepted, before = answer.accepted.numpy() > 0, self.ledger
        self.ledger = before._replace(
            loss=float(answer.loss.numpy()[accepted].mean()) if accepted.any() else before.loss,
            lr=before.lr if lr is None else lr,
            bytes_up=before.bytes_up + up,
            bytes_down=before.bytes_down + down,
            rejected=before.rejected + int((~accepted).sum()),
        )

    def _timed_wait(self, results: Iterator[Result]) -> Iterator[Result]:
        """Passes ``results`` on, and books where the workers' time went and how long the server waited in vain."""
        start = time.perf_counter()
        for result in results:
            passed, busy = time.perf_counter() - start, sum(result.seconds) / max(self.plan.workers, 1)
            for name, seconds in result.seconds._asdict().items():
                self.seconds[name] += seconds / max(self.plan.workers, 1)
            self.seconds["wait"] += passed - busy
            yield result
            start = time.perf_counter()
        # While the server added up, workers went on.
        self.seconds["wait"] = max(self.seconds["wait"], 0.0)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def state(self) -> Tree:
        """All that the rest of the run depends on, as one tree; the clients' rows stay in their files."""
        counters = {
            "rounds": torch.tensor(self.rounds),
            "releases": torch.tensor(self.releases),
            "clock": torch.tensor(self.clock, dtype=torch.float64),
            "participations": torch.from_numpy(self.participations),
            "exposures": torch.from_numpy(self.exposures),
        }
        memories = tree.join(**{name: memory.state() for name, memory in self.memories.items()})
        server, flights = {"server": self.server, "guard": self.guard}, self.flights.state()
        return tree.join(**server, counters=counters, memories=memories, flights=flights)

    def flush(self) -> None:
        """Writes the clients' memories through to their files, before a checkpoint of :meth:`state` is written."""
        for memory in self.memories.values():
            memory.flush()
        self.flights.flush()

    def commit(self) -> None:
        """Says that a checkpoint of the present :meth:`state` is safe."""
        for memory in self.memories.values():
            memory.commit()
        self.flights.commit()

    def restore(self, state: Tree) -> None:
        """The inverse of :meth:`state`."""
        self.server, self.guard = tree.part(state, "server"), tree.part(state, "guard")
        counters, memories = tree.part(state, "counters"), tree.part(state, "memories")
        self.rounds, self.releases = int(counters["rounds"]), int(counters["releases"])
        self.clock, self.participations = float(counters["clock"]), counters["participations"].numpy()
        names = {"/".join(name.split("/")[:2]) for name in memories}
        self.busiest, self.exposures = int(self.participations.max(initial=0)), counters["exposures"].numpy()
        self.exposure = float(self.exposures.max(initial=0.0))
        self.flights.restore(tree.part(state, "flights"), self.clock)
        self.memories = {
            name: ClientMemory.restored(tree.part(memories, name), self.data.clients, self._file(name))
            for name in sorted(names)
        }
