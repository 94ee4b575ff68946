"""How long messages are, and how long clients take, as far as it is known before anything is learnt."""

from collections.abc import Sequence

import numpy as np
import torch

from tasks import keys, tree
from tasks.config import Refused
from tasks.partition.federation import Federation
from tasks.train.engine.program import blank
from tasks.train.schedules import Fleet
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Chain, Codec
from tasks.train.work import Exchange
from tasks.tree import Tree


class Traffic:
    """The messages of a method whose every exchange is like ``request``.

    Parameters
    ----------
    train, seed, data : the run.
    request : to one client, at the start of the run.
    guard : what is broadcast of the privacy mechanism.
    """

    def __init__(self, train: TrainSettings, seed: int, data: Federation, request: Exchange, guard: Tree):
        self.train, self.seed, self.data = train, seed, data
        self.down = self.length(request, guard, 1)
        broadcast = request.known | request.shared | tree.join(privacy=guard)
        own = tree.map(lambda value: value[0], request.kept | request.own)
        self.broadcast = broadcast | own
        self.like = blank(request.work, broadcast, own, train.privacy).upload
        self.weights = request.work.weights(torch.from_numpy(np.array(data.sizes))).double().numpy()
        everyone = np.arange(data.clients)
        self.speeds = train.devices.speeds(everyone, seed, data.clients)
        self._up: dict[tuple[Codec, ...], int] = {}

    @staticmethod
    def length(request: Exchange, guard: Tree, clients: int) -> int:
        """Bytes down to one client."""
        return tree.nbytes(request.shared) + tree.nbytes(guard) + tree.nbytes(request.own) // clients

    def codecs(self, version: int) -> tuple[Codec, ...]:
        """The uplink of those that are sent this version of the model."""
        return tuple(codec.at(version + 1) for codec in self.train.uplink)

    def up(self, version: int) -> int:
        """Bytes of an upload of those that are sent this version of the model."""
        codecs = self.codecs(version)
        if codecs not in self._up:
            chain = Chain(codecs, self.like)
            payload, _ = chain.encode(self.like, chain.memory(), torch.tensor(0))
            self._up[codecs] = tree.nbytes(payload)
        return self._up[codecs]

    def expect(self, found: int, known: int) -> None:
        """Refuses a message that is not as long as was known."""
        if found != known:
            allowed = f"sends {found} bytes where its first message had {known}, so that arrivals cannot be foretold"
            raise Refused("train.algorithm.name", self.train.algorithm.name, allowed, "Use the schedule sync")

    def steps(self, clients: np.ndarray, given: Sequence[int | None]) -> np.ndarray:
        """Local steps, int64 ``[clients]``."""
        usual = self.train.algorithm.batches.steps(self.data.sizes[clients])
        pairs = zip(usual.tolist(), given, strict=True)
        return np.array([own if count is None else count for own, count in pairs], np.int64)

    def seconds(self, clients: np.ndarray, turns: np.ndarray, version: int, steps: Sequence[int | None]) -> np.ndarray:
        """Seconds from dispatch to arrival ``[clients]``; turn 0 stands for a client's usual pace."""
        batches = self.train.algorithm.batches._replace(count=self.steps(clients, steps))
        seen = batches.seen(self.data.sizes[clients])
        speeds = type(self.speeds)(*(column[clients] for column in self.speeds))
        speeds = self.train.devices.varied(speeds, clients, turns, self.seed)
        return speeds.seconds(seen, np.array(self.down), np.array(self.up(version)))

    def draw(self, idle: np.ndarray, count: int, number: int) -> np.ndarray:
        """So many of the ``idle`` clients, for the flights from ``number`` on."""
        rng = keys.generator(self.seed, "flight", number)
        return idle[self.train.sampling.draw(self.data.sizes[idle], count, rng)]

    def fleet(self) -> Fleet:
        """The clients at the start of the run."""
        train = self.train
        return Fleet(self.weights, self.seconds, train.cohort, train.rounds, train.seconds, self.draw)
