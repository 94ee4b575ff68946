"""One worker's part of a round: the work of a stack of clients, from the broadcast to the sum of their uploads."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from tasks import keys, models, tree
from tasks.models import Model, Network
from tasks.partition.federation import Federation
from tasks.train.engine import compiler
from tasks.train.engine.batches import order
from tasks.train.engine.plan import Plan
from tasks.train.privacy import Mechanism
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Chain
from tasks.train.work import ClientState, Work, rebased
from tasks.tree import Tree

PURPOSES = {"privacy": 1, "uplink": 2}
"""What a client's key is folded with for the draws after its last step; steps fold it with 0, -1, -2 and so on."""


@dataclass(frozen=True)
class Blueprint:
    """All that a worker needs to build its program: plain values that travel to any machine."""

    partition: Path
    model: Model
    train: TrainSettings
    plan: Plan
    seed: int

    def program(self, data: Federation | None = None) -> "Program":
        """The program on ``data``, or on the partition at its path."""
        return Program(self, data or Federation.open(self.partition))


class Job(NamedTuple):
    """A stack of clients in one exchange of one round.

    ``own`` and the two memories are stacked trees, one slice a client; ``like`` the upload's names and shapes;
    ``record`` the positions in the stack whose payload is wanted; ``each`` whether every decoded upload is; ``turns``
    ``[clients]`` what takes the place of the round in each one's key, and ``steps`` ``[clients]`` that of the work's
    own number of local steps.
    """

    work: Work
    round: int
    exchange: int
    clients: np.ndarray
    own: Tree
    memory: Tree
    residual: Tree
    like: Tree
    record: tuple[int, ...] = ()
    each: bool = False
    turns: np.ndarray | None = None
    steps: np.ndarray | None = None

    def padded(self, width: int) -> "Job":
        """The job with its last client repeated until there are ``width`` of them."""
        if width == len(self.clients):
            return self
        places = np.minimum(np.arange(width), len(self.clients) - 1)
        index = torch.from_numpy(places)
        own, memory, residual = (tree.take(part, index) for part in (self.own, self.memory, self.residual))
        turns, steps = (None if column is None else column[places] for column in (self.turns, self.steps))
        clients = self.clients[places]
        return self._replace(clients=clients, own=own, memory=memory, residual=residual, turns=turns, steps=steps)

    def keys(self, seed: int) -> np.ndarray:
        """Each client's own key for this exchange, int64 ``[clients]``."""
        turns = np.full(len(self.clients), self.round) if self.turns is None else self.turns
        own = np.empty(len(self.clients), np.int64)
        for turn in {*turns.tolist()}:
            here = turns == turn
            own[here] = keys.each(keys.derive(seed, "round", turn, self.exchange), self.clients[here])
        return own

    def order(self, own: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which sample each client sees in which step, by its ``own`` key and its number of samples, as
        :func:`tasks.train.engine.batches.order` gives it."""
        return order(self.work.batches, sizes, own, self.steps)


class Answer(NamedTuple):
    """What is said of each client's upload beside the upload itself, each ``[clients]``.

    ``weight`` in the mean, 0 where rejected; ``accepted`` 1 or 0; ``loss`` the mean over the client's steps; ``norm``
    of the decoded upload.
    """

    weight: Tensor
    accepted: Tensor
    loss: Tensor
    norm: Tensor


class Seconds(NamedTuple):
    """Where a job's wall-clock time went: reading the broadcast, the local steps, and the way to the sum."""

    download: float
    compute: float
    encode: float


class Result(NamedTuple):
    """What a stack gives back. Everything per client is stacked in the order of the job's clients.

    ``sums`` has the parts ``total`` and ``notes``, sums over the accepted clients; ``answer`` the fields of
    :class:`Answer`; ``payloads`` those to record, as they cross the wire; ``each`` the decoded uploads, if they were
    asked for; ``bytes`` is the length of one client's message.
    """

    sums: Tree
    answer: Tree
    memory: Tree
    residual: Tree
    payloads: Tree
    each: Tree
    bytes: int
    seconds: Seconds


class Program:
    """Runs jobs. Built once per worker; holds the data, the network and nothing that changes."""

    def __init__(self, blueprint: Blueprint, data: Federation):
        self.train, self.seed, self.plan, self.data = blueprint.train, blueprint.seed, blueprint.plan, data
        self.device = torch.device(blueprint.plan.device)
        self.network = models.build(blueprint.model, data.meta.shape, data.meta.classes, blueprint.seed)
        self.network.module.to(self.device)
        arrays = {"x": data.x, "y": data.y} | ({} if data.groups is None else {"group": data.groups})
        self.samples = {name: _borrow(values).to(self.device) for name, values in arrays.items()}
        self.channels_last = self.plan.stack == 1 and _takes_channels_last(self.network, self.samples["x"][:1])
        self.stages: dict[tuple[Work, tuple, tuple], Stages] = {}

    @torch.no_grad()
    def run(self, shared: Tree, job: Job, received: float = 0.0) -> Result:
        """The work of all clients of ``job`` on the broadcast ``shared``, which took ``received`` seconds to read."""
        started, real, stages = time.perf_counter(), len(job.clients), self._stages(job)
        job = job.padded(stages.width(real))
        sizes, own_keys = self.data.sizes[job.clients], job.keys(self.seed)
        positions, steps = job.order(own_keys, sizes)
        shared = tree.to(shared, self.device)
        own, memory, residual = (tree.to(part, self.device) for part in (job.own, job.memory, job.residual))
        weight = job.work.weights(torch.from_numpy(sizes)).to(self.device)
        counts = (torch.arange(len(weight)) < real).float().to(self.device)
        batches = Steps(self._rows(job.clients, positions), steps, torch.from_numpy(own_keys).to(self.device))
        losses, sums, sent, computed = stages.run(self, batches, Given(shared, own, memory, residual, weight, counts))
        sent = {name: _leave(part, real) for name, part in sent.items()}
        wire = sent["payload"] | tree.join(note=sent["note"])
        losses = _leave(losses, real) / torch.from_numpy(steps[:real]).clamp(min=1)
        answer = Answer(sent["weight"], sent["accepted"], losses, sent["norm"])
        return Result(
            tree.to(sums, "cpu"),
            answer._asdict(),
            sent["memory"],
            sent["residual"],
            tree.take(wire, torch.tensor(job.record, dtype=torch.int64)) if job.record else {},
            sent["upload"] if job.each else {},
            tree.nbytes(wire) // real,
            Seconds(received, computed - started, time.perf_counter() - computed),
        )

    def batch(self, rows: Tensor) -> Tree:
        """The batch at ``rows``, see :func:`batch`."""
        found = batch(self.samples, rows)
        return found | {"x": _channels_last(found["x"])} if self.channels_last else found

    def _rows(self, clients: np.ndarray, positions: np.ndarray) -> Tensor:
        """Rows of the data at ``positions`` of ``clients``, -1 where none; int64 ``[clients, steps, batch]``."""
        there = positions >= 0
        starts = self.data.offsets[clients][:, None, None]
        rows = np.where(there, self.data.indices[np.where(there, starts + positions, 0)], -1)
        return torch.from_numpy(rows).to(self.device)

    def _stages(self, job: Job) -> "Stages":
        codecs = tuple(codec.at(job.round) for codec in self.train.uplink)
        kind = (job.work, codecs, tuple((name, value.shape) for name, value in job.like.items()))
        if kind not in self.stages:
            layout = Compiled if self.plan.compile else Looped if self.plan.stack == 1 else Stacked
            client = Client(self.train, job.work, Chain(codecs, tree.to(job.like, self.device)))
            self.stages[kind] = layout(client, partial(job.work.client_step, self.network), self.plan.stack)
        return self.stages[kind]


class Steps(NamedTuple):
    """What the clients of a stack go through: ``rows`` of the data ``[clients, steps, batch]``, -1 where none; the
    number of ``steps`` of each ``[clients]``, the longest first, on the host; and each one's key ``ids`` ``[clients]``.
    """

    rows: Tensor
    steps: np.ndarray
    ids: Tensor


class Given(NamedTuple):
    """What a stack works with: the broadcast, what is each client's own, what it remembers of its work and of its
    uplink; its ``weight`` in the mean; ``counts``, 0 for a client that only fills the stack up. Stacked, but for
    ``shared``."""

    shared: Tree
    own: Tree
    memory: Tree
    residual: Tree
    weight: Tensor
    counts: Tensor


def batch(samples: Tree, rows: Tensor) -> Tree:
    """The batch at ``rows`` ``[..., batch]``: ``x``, ``y``, ``group`` if there is one, ``weight`` 0 on padding."""
    there = rows.clamp(min=0)
    return {name: values[there] for name, values in samples.items()} | {"weight": (rows >= 0).float()}


class Client(NamedTuple):
    """One client's way from its last step onto the wire, and the server's first look at what arrives."""

    train: TrainSettings
    work: Work
    chain: Chain

    def send(self, shared: Tree, state: ClientState, residual: Tree, memory: Tree, key: Tensor) -> dict[str, Any]:
        privacy, known = self.train.privacy, tree.part(shared, "privacy")
        upload, kept = self.work.client_final(shared, state)
        upload, note = privacy.on_device(known, upload, keys.fold(key, PURPOSES["privacy"]))
        had = shared | state.own
        payload, left = self.chain.encode(rebased(upload, had, 1), residual, keys.fold(key, PURPOSES["uplink"]))
        arrived = privacy.on_arrival(known, rebased(self.chain.decode(payload), had, -1))
        norm = tree.norm(arrived)
        kept = self.work.client_sent(shared, kept, arrived)
        accepted = torch.isfinite(norm) & (norm <= self.train.reject_above)
        return {
            "upload": tree.map(lambda value: torch.where(accepted, value, torch.zeros_like(value)), arrived),
            "note": note,
            "payload": payload,
            "memory": tree.map(partial(torch.where, accepted), kept, memory),
            "residual": tree.map(partial(torch.where, accepted), left, residual),
            "norm": norm,
            "accepted": accepted.float(),
        }


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of one client as that of a stack of one."""

    def only(*stacked: Any) -> Any:
        return tree_map(lambda value: value[None], function(*tree_map(lambda value: value[0], stacked)))

    return only


class Stages:
    """The three parts of a stack's work. How a stack is laid out is all that its kinds differ in: ``every`` makes of a
    function of one client that of a stack."""

    every = staticmethod(vmap)

    def __init__(self, client: Client, step: Callable[..., tuple[ClientState, Tree]], stack: int):
        self.client, self.stack = client, stack
        self.begin, self.step, self.finish = self._begin, self.every(step), self._finish

    def width(self, clients: int) -> int:
        """Clients that a stack of ``clients`` is padded to, with ones that count for nothing."""
        return clients

    def run(self, program: Program, steps: Steps, given: Given) -> tuple[Tensor, Tree, dict[str, Any], float]:
        """Each client's sum of losses ``[clients]``, what :meth:`_finish` gives, and when the local steps were done."""
        state, losses = self.fold(program, self.begin(given, steps.ids), steps)
        computed = time.perf_counter()
        return losses, *self.finish(given, state, steps.ids), computed

    def _begin(self, given: Given, ids: Tensor) -> ClientState:
        # The keys are mapped too, so that there is one stacked input even where clients have nothing of their own.
        init, shared = self.client.work.client_init, given.shared
        return self.every(lambda own, memory, _: init(shared | own, own, memory))(given.own, given.memory, ids)

    def _finish(self, given: Given, state: ClientState, ids: Tensor) -> tuple[Tree, dict[str, Any]]:
        """The sums over the clients that count and were accepted, and what there is of each client."""
        send, shared = self.client.send, given.shared
        each = self.every(lambda own, *rest: send(shared | own, *rest))
        sent = each(given.own, state, given.residual, given.memory, ids)
        accepted = sent["accepted"] * given.counts
        weight = given.weight * accepted
        total = tree.map(lambda value: torch.tensordot(weight, value, 1), sent["upload"])
        notes = tree.map(lambda value: torch.tensordot(accepted, value.float(), 1), sent["note"])
        return tree.join(total=total, notes=notes), sent | {"weight": weight}

    def fold(self, program: Program, state: ClientState, steps: Steps) -> tuple[ClientState, Tensor]:
        """All local steps: the last states, and the sum of each client's losses ``[clients]``. Clients come with the
        most steps first, so those that still work are a prefix."""
        raise NotImplementedError


class Stacked(Stages):
    """All clients as one stacked model; at each step only the prefix that still works runs, so nothing is wasted."""

    def fold(self, program, state, steps):
        rows, counts, ids = steps
        losses = torch.zeros(len(ids), device=ids.device)
        drawn = keys.fold(ids, -torch.arange(rows.shape[1], device=ids.device)[:, None])
        finished: list[ClientState] = []
        for s in range(rows.shape[1]):
            active = int((counts > s).sum())
            if active < len(state.steps):
                finished.append(_part(state, slice(active, None)))
                state = _part(state, slice(active))
            state, metrics = self.step(state, program.batch(rows[:active, s]), drawn[s, :active])
            losses[:active] += metrics["loss"]
        return _concatenate([state, *reversed(finished)]), losses


class Compiled(Stages):
    """The stacked model, or the only one, compiled. The stack, its working prefix and the batch are padded to few
    sizes, which all turn up in the first rounds, so that nothing compiles later."""

    def __init__(self, client: Client, step: Callable[..., tuple[ClientState, Tree]], stack: int):
        self.every = vmap if stack > 1 else _alone
        super().__init__(client, step, stack)
        # The stacks of a round are cut alike, so of a cohort of fixed size they are all this long.
        cohort = client.train.cohort
        self.usual = -(-cohort // -(-cohort // stack))

        def guarded(state: ClientState, batch: Tree, key: Tensor, active: Tensor) -> tuple[ClientState, Tensor]:
            new, metrics = step(state, batch, key)
            kept = (_where(active, after, before) for after, before in zip(new, state, strict=True))
            return ClientState(*kept), torch.where(active, metrics["loss"], 0.0)

        name = client.work.name
        self.stepped = self.every(guarded)
        self.step = compiler.whole(self.stepped, f"the local steps of {name}")
        if stack > 1:
            # What the first step gets is laid out as what all others get, or it would be compiled for itself.
            self.begin = compiler.whole(
                lambda *args: tree_map(Tensor.contiguous, self._begin(*args)), f"the start of {name}"
            )
            self.finish = compiler.whole(self._finish, f"the uploads of {name}")
            self.once = compiler.whole(self._once, f"the one step of {name}")

    def width(self, clients):
        return self.usual if clients <= self.usual else self.stack

    def run(self, program, steps, given):
        rows = steps.rows
        width = _bucket(rows.shape[2], 2)
        if self.client.work.batches.size:
            width = min(width, self.client.work.batches.size)
        steps = steps._replace(rows=torch.nn.functional.pad(rows, (0, width - rows.shape[2]), value=-1))
        if self.stack == 1 or rows.shape[1] != 1:
            return super().run(program, steps, given)
        working = torch.from_numpy(steps.steps).to(rows.device) > 0
        return *self.once(program.samples, given, steps.rows[:, 0], steps.ids, working), time.perf_counter()

    def _once(
        self, samples: Tree, given: Given, rows: Tensor, ids: Tensor, working: Tensor
    ) -> tuple[Tensor, Tree, dict[str, Any]]:
        """Where nobody takes more than one step, all of it is one program."""
        state, losses = self.stepped(self._begin(given, ids), batch(samples, rows), keys.fold(ids, 0), working)
        return losses, *self._finish(given, state, ids)

    def fold(self, program, state, steps):
        rows, counts, ids = steps
        losses, working = torch.zeros(len(ids), device=ids.device), torch.from_numpy(counts).to(ids.device)
        drawn = keys.fold(ids, -torch.arange(rows.shape[1], device=ids.device)[:, None])
        finished: list[ClientState] = []
        for s in range(rows.shape[1]):
            size = min(_bucket(int((counts > s).sum()), 4), len(state.steps))
            if size < len(state.steps):
                finished.append(_part(state, slice(size, None)))
                state = _part(state, slice(size))
            batch, active = program.batch(rows[:size, s]), working[:size] > s
            state, loss = self.step(state, batch, drawn[s, :size], active)
            losses[:size] += loss
        return _concatenate([state, *reversed(finished)]), losses


class Looped(Stages):
    """The one client of a stack of one, as it is: no stacking, no padding, no transform."""

    every = staticmethod(_alone)

    def __init__(self, client: Client, step: Callable[..., tuple[ClientState, Tree]], stack: int):
        super().__init__(client, step, stack)
        self.step = step

    def fold(self, program, state, steps):
        rows, counts, ids = steps
        state, loss = _part(state, 0), torch.zeros((), device=ids.device)
        count, samples = int(counts[0]), (rows[0] >= 0).sum(1).tolist()
        drawn = keys.fold(ids[0], -torch.arange(count, device=ids.device)).unbind()
        for s in range(count):
            state, metrics = self.step(state, program.batch(rows[0, s, : samples[s]]), drawn[s])
            loss += metrics["loss"]
        return _part(state, None), loss[None]


class Blank(NamedTuple):
    """The answer of no client at all: an upload and a note of zeros, and empty columns."""

    upload: Tree
    note: Tree
    answer: Answer


def blank(work: Work, shared: Tree, own: Tree, privacy: Mechanism) -> Blank:
    """What an exchange starts to add up from, found by a client that has nothing to do."""
    with torch.no_grad():
        shared = shared | own
        state = work.client_init(shared, own, work.client_memory(shared))
        upload, _ = work.client_final(shared, state._replace(steps=torch.ones_like(state.steps)))
        _, note = privacy.on_device(tree.part(shared, "privacy"), upload, torch.tensor(0))
    none = torch.zeros(0)
    zeros = tree.map(lambda value: torch.zeros_like(value, dtype=torch.float32), note)
    return Blank(tree.zeros_like(upload), zeros, Answer(none, none, none, none))


def _borrow(array: np.ndarray) -> Tensor:
    """A tensor on the memory of ``array``, which may be read-only, as nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _takes_channels_last(network: Network, x: Tensor) -> bool:
    """Whether ``network`` convolves images and takes them with the channels innermost.

    A CPU's convolutions, poolings and norms are up to 1.4 times as fast on them. A module that asks for a ``view`` of
    what they make cannot have it. Nor can one with a convolution of single pixels, some of which it skips: where the
    channels do not fill the processor's vectors, PyTorch's kernel for it writes past its memory.
    """
    convolutions = [layer for layer in network.module.modules() if isinstance(layer, nn.Conv2d)]
    if x.device.type != "cpu" or x.dim() != 4 or not convolutions or any(map(_skips_pixels, convolutions)):
        return False
    try:
        with torch.no_grad():
            network.apply(network.parameters, _channels_last(x))
    except RuntimeError:
        return False
    return True


def _skips_pixels(layer: nn.Conv2d) -> bool:
    vector = 16
    odd = layer.in_channels % vector or layer.out_channels % vector
    return bool(odd) and set(layer.kernel_size) == {1} and set(layer.stride) != {1}


def _channels_last(x: Tensor) -> Tensor:
    # A copy, as with a single channel both layouts look alike, and convolutions go by the strides.
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _bucket(count: int, base: int) -> int:
    """The next power of ``base``."""
    size = 1
    while size < count:
        size *= base
    return size


def _leave(part: Tree | Tensor, real: int) -> Tree | Tensor:
    """What leaves the program: on the CPU, and without the clients that a stack was padded with."""
    return {name: value.cpu()[:real] for name, value in part.items()} if isinstance(part, dict) else part.cpu()[:real]


def _where(condition: Tensor, a: Tree | Tensor, b: Tree | Tensor) -> Tree | Tensor:
    choose = partial(torch.where, condition)
    return tree.map(choose, a, b) if isinstance(a, dict) else choose(a, b)


def _part(state: ClientState, index: int | slice | None) -> ClientState:
    """The slice of a stacked state; with None, a stack of one."""
    return ClientState(*(tree.take(f, index) if isinstance(f, dict) else f[index] for f in state))


def _concatenate(states: list[ClientState]) -> ClientState:
    if len(states) == 1:
        return states[0]
    fields = zip(*states, strict=True)
    return ClientState(*(tree.concatenate(f) if isinstance(f[0], dict) else torch.cat(f) for f in fields))
