"""What is under way between the server and its clients where they do not work in rounds.

A broadcast lies here until all that it was sent to have answered. An answer is worked out some time between the moment
at which its flight was sent and the one at which it is taken in; which one makes no difference. All of it is kept on
disk like the clients' memories, so that a checkpoint costs an index, however many clients are at work.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tasks import tree
from tasks.train.memory import Shelf
from tasks.train.schedules import Flight
from tasks.tree import Tree


class InFlight:
    """The flights that are not taken in yet, with what they carry.

    Parameters
    ----------
    folder : where the trees are kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.waiting: dict[int, Flight] = {}
        """Sent, and not worked out."""
        self.answered: dict[int, Flight] = {}
        """Worked out, and not taken in."""
        self.ahead: set[int] = set()
        """Of those the ones that have not arrived: what their clients remember is not theirs yet."""
        self.shelves: dict[str, Shelf] = {}

    def send(self, flights: Sequence[Flight], shared: Tree, own: Tree) -> None:
        """Sends off ``flights`` of one version with its broadcast, and with what each gets for itself, stacked."""
        version = flights[0].version
        if version not in self._shelf("broadcasts", shared).slots:
            self._shelf("broadcasts", shared).put([version], tree.map(lambda value: value[None], shared))
        numbers = [flight.number for flight in flights]
        self._shelf("own", tree.map(lambda value: value[0], own)).put(numbers, own)
        self.waiting |= zip(numbers, flights, strict=True)

    def wave(self) -> list[Flight]:
        """What can be worked out now: of each client that is waited for its first flight."""
        first: dict[int, Flight] = {}
        for flight in self.waiting.values():
            first.setdefault(flight.client, flight)
        return list(first.values())

    def broadcasts(self, flights: Sequence[Flight]) -> Tree:
        """What each of ``flights`` was sent like all others of its version, stacked."""
        return self.shelves["broadcasts"].get([flight.version for flight in flights])

    def own(self, flights: Sequence[Flight]) -> Tree:
        """What each of ``flights`` was sent for itself, stacked."""
        return self.shelves["own"].get([flight.number for flight in flights])

    def answer(self, flights: Sequence[Flight], answers: Tree) -> None:
        """Keeps what ``flights`` bring back, stacked."""
        numbers = [flight.number for flight in flights]
        self._shelf("answers", tree.map(lambda value: value[0], answers)).put(numbers, answers)
        self.shelves["own"].drop(numbers)
        self.answered |= {number: self.waiting.pop(number) for number in numbers}
        self.ahead.update(numbers)

    def arrived(self, now: float, flights: Iterable[Flight]) -> list[Flight]:
        """Those whose answers are known and who have arrived by ``now``, or are among ``flights``; each once."""
        taken = {flight.number for flight in flights}
        there = [n for n in sorted(self.ahead) if self.answered[n].due <= now or n in taken]
        self.ahead.difference_update(there)
        return [self.answered[number] for number in there]

    def answers(self, flights: Sequence[Flight]) -> Tree:
        """What ``flights`` bring back, stacked."""
        return self.shelves["answers"].get([flight.number for flight in flights])

    def drop(self, flights: Sequence[Flight]) -> None:
        """Forgets ``flights``, which were taken in."""
        for flight in flights:
            del self.answered[flight.number]
        self.shelves["answers"].drop([flight.number for flight in flights])
        needed = {flight.version for part in (self.waiting, self.answered) for flight in part.values()}
        broadcasts = self.shelves["broadcasts"]
        broadcasts.drop([version for version in broadcasts.slots if version not in needed])

    def state(self) -> Tree:
        """The index of all that is under way, for a checkpoint."""
        parts = {"waiting": self.waiting.values(), "answered": self.answered.values()}
        tables = {name: _table(list(flights)) for name, flights in parts.items()}
        return tree.join(**tables, **{name: shelf.state() for name, shelf in self.shelves.items()})

    def flush(self) -> None:
        """Writes everything through to the files, before a checkpoint of :meth:`state` is written."""
        for shelf in self.shelves.values():
            shelf.flush()

    def commit(self) -> None:
        """Says that a checkpoint of the present :meth:`state` is safe."""
        for shelf in self.shelves.values():
            shelf.commit()

    def restore(self, state: Tree, now: float) -> None:
        """The inverse of :meth:`state`, at ``now`` on the clock."""
        self.waiting, self.answered = (_flights(tree.part(state, name)) for name in ("waiting", "answered"))
        self.ahead = {number for number, flight in self.answered.items() if flight.due > now}
        for name in dict.fromkeys(key.split("/")[0] for key in state):
            if name not in ("waiting", "answered"):
                self.shelves[name] = Shelf.restored(tree.part(state, name), self._file(name))

    def _shelf(self, name: str, like: Tree) -> Shelf:
        if name not in self.shelves:
            self.shelves[name] = Shelf(like, self._file(name))
        return self.shelves[name]

    def _file(self, name: str) -> Path:
        return self.folder / f"in-flight-{name}.rows"


WHOLE, SECONDS = ("number", "client", "turn", "version", "steps"), ("sent", "due")


def _table(flights: Sequence[Flight]) -> Tree:
    """The columns of ``flights``; -1 steps for None."""
    rows = [flight._replace(steps=-1 if flight.steps is None else flight.steps) for flight in flights]
    kinds = dict.fromkeys(WHOLE, torch.int64) | dict.fromkeys(SECONDS, torch.float64)
    return {name: torch.tensor([getattr(row, name) for row in rows], dtype=kind) for name, kind in kinds.items()}


def _flights(table: Tree) -> dict[int, Flight]:
    rows = zip(*(table[name].tolist() for name in Flight._fields), strict=True)
    flights = (Flight(*row) for row in rows)
    return {flight.number: flight._replace(steps=None if flight.steps < 0 else flight.steps) for flight in flights}
