"""The recorded messages of a run: what an eavesdropper or a curious server had, and apart from it the private batches.

``Transcript.open(path).messages`` are what an attack may read. ``private`` is for the code that scores an attack, and a
test of the house sees to it that no other module calls it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks import artifacts
from tasks.train.uplink import Chain, Codec
from tasks.train.work import rebased
from tasks.tree import Tree, part


@dataclass(frozen=True)
class Context:
    """What is publicly known of one message.

    ``samples`` the client trained on, in ``steps`` local steps over ``epochs`` passes of batches of ``batch_size`` at
    learning rate ``lr``; ``bytes`` on the wire. Where clients do not work in rounds, ``round`` is the server's step in
    which it was taken in, ``turn`` says how often the client had been called, and ``sent_in`` in which round it was.
    """

    round: int
    client: int
    samples: int
    steps: int
    epochs: int
    batch_size: int
    lr: float
    bytes: int
    turn: int | None = None
    sent_in: int | None = None

    @property
    def keyed(self) -> int:
        """What the client's random choices follow from."""
        return self.turn or self.round

    @property
    def coded(self) -> int:
        """The round by which its codecs went."""
        return self.sent_in or self.round


@dataclass(frozen=True)
class Message:
    """One client's upload of one round, as it crossed the wire, and the broadcast that it answers."""

    folder: Path
    context: Context

    @property
    def label(self) -> str:
        return f"round-{self.context.round:05d}-client-{self.context.client:05d}"

    def broadcast(self) -> Tree:
        """Everything this client downloaded: ``model/...`` and what the method sent along."""
        shared = artifacts.read_tree(_round(self.folder, self.context.round) / "broadcast.safetensors")
        own = _round(self.folder, self.context.round) / f"own-{self.context.client:05d}.safetensors"
        return shared | (artifacts.read_tree(own) if own.exists() else {})

    def model(self) -> Tree:
        """The parameters that the client started from."""
        return part(self.broadcast(), "model")

    def payload(self) -> Tree:
        """The tensors on the wire, still encoded."""
        path = _round(self.folder, self.context.round) / f"client-{self.context.client:05d}.safetensors"
        return artifacts.read_tree(path)

    def upload(self, uplink: Sequence[Codec]) -> Tree:
        """The payload decoded with the public ``uplink`` chain: ``delta/...`` is the change of the model."""
        like = artifacts.read_tree(self.folder / "template.safetensors")
        decoded = Chain([codec.at(self.context.coded) for codec in uplink], like).decode(self.payload())
        return rebased(decoded, self.broadcast(), -1)


class Transcript:
    """The messages that a training run recorded under ``folder``."""

    def __init__(self, folder: Path, messages: list[Message]):
        self.folder, self.messages = folder, messages

    @classmethod
    def open(cls, folder: Path) -> "Transcript":
        rows = artifacts.read_json(folder / "index.json")
        return cls(folder, [Message(folder, Context(**row)) for row in rows])

    def private(self, message: Message) -> Tree:
        """The batch behind a message: ``x`` and ``y`` of the client's training samples, ``group`` where the data have
        groups, and ``order`` ``[steps, batch]`` with the positions that each step used, -1 as padding. For scoring
        alone."""
        return artifacts.read_tree(self.folder / "private" / f"{message.label}.safetensors")


class Recorder:
    """Writes a transcript, message by message, into ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def template(self, like: Tree) -> None:
        """The names and shapes of an upload: public, and needed to decode one."""
        artifacts.write_tree(self.folder / "template.safetensors", like)

    def broadcast(self, round_: int, shared: Tree) -> None:
        artifacts.write_tree(_round(self.folder, round_) / "broadcast.safetensors", shared)

    def message(self, context: Context, payload: Tree, own: Tree, private: Tree) -> None:
        folder, client = _round(self.folder, context.round), f"{context.client:05d}"
        artifacts.write_tree(folder / f"client-{client}.safetensors", payload)
        if own:
            artifacts.write_tree(folder / f"own-{client}.safetensors", own)
        message = Message(self.folder, context)
        artifacts.write_tree(self.folder / "private" / f"{message.label}.safetensors", private)
        known = {name: value for name, value in asdict(context).items() if value is not None}
        artifacts.write_json(folder / f"client-{client}.json", known)

    def close(self) -> None:
        """Writes the index of what was recorded."""
        rows = [artifacts.read_json(path) for path in sorted(self.folder.glob("round-*/client-*.json"))]
        artifacts.write_json(self.folder / "index.json", rows)


def _round(folder: Path, round_: int) -> Path:
    return folder / f"round-{round_:05d}"
