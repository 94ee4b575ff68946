"""What a client does to its upload before it crosses the wire, as a chain of codecs.

A codec is written for ONE client, in tensor operations that ``torch.func.vmap`` can stack: no Python branch on a
tensor's value, and shapes that depend on the shapes of the input alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from tasks import keys, tree
from tasks.config import Config
from tasks.tree import Tree


class Codec(Config):
    """One link of the chain.

    ``encode`` splits a tree into what it *carries* on to the next codec (floating point, one tensor a name) and what
    goes onto the wire beside it: indices, scales, packed bits. ``decode`` is its inverse, up to what the codec loses.

    What a client remembers from one upload to the next is the codec's too: ``recall`` puts it into the upload, ``keep``
    says what is left once the message is on its way. Here they are error feedback, for the codecs that ask for it.
    """

    name: str

    def at(self, round_: int) -> "Codec":
        """The codec as it is in ``round_``, a public number from 1 on. Its memory has the same shapes in all rounds."""
        return self

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        """``(carried, side)`` of ``values``; ``key`` an int64 scalar tensor, this client's and this round's own."""
        raise NotImplementedError

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        """The tree that ``encode`` was given, as far as it can be known. ``like`` has its names, shapes and dtypes."""
        raise NotImplementedError

    def memory(self, like: Tree) -> Tree:
        """What a client that was never called before remembers; {} if the codec remembers nothing."""
        return tree.zeros_like(like) if self.feeds_back else {}

    def recall(self, upload: Tree, memory: Tree) -> tuple[Tree, Tree]:
        """``(values, memory)``: what to encode in the upload's place, and the memory as ``keep`` will find it."""
        return (tree.add(upload, memory) if memory else upload), memory

    def keep(self, memory: Tree, values: Tree, side: Tree, arrived: Tree) -> Tree:
        """What the client remembers after ``values`` were encoded, with ``side`` beside them, and will be read as
        ``arrived``. Asked only of a codec that has a memory."""
        return tree.subtract(values, arrived)

    @property
    def feeds_back(self) -> bool:
        """Whether what the wire lost is added to this client's next upload (error feedback)."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a client's upload has something of its earlier ones in it."""
        return self.feeds_back

    @property
    def packs(self) -> bool:
        """Whether what it carries are packed integers, so that no codec can follow."""
        return False

    def conflicts(self, before: Sequence["Codec"], after: Sequence["Codec"], use: "Use") -> Iterator[str]:
        """Why this codec makes no sense with the codecs ``before`` and ``after`` it, or for this ``use``."""
        yield from ()


class Use(NamedTuple):
    """What a codec has to know of the run whose uploads it encodes."""

    local_momentum: float = 0.0
    server_momentum: float = 0.0
    decay: float = 0.0
    """The local weight decay, which would gather momentum without being a gradient."""
    accumulates: bool = False
    """Whether uploads are added up beside the model too."""
    one_round: bool = False
    """Whether an entry of an upload belongs to its own round, and is another quantity in the next."""


PLAIN = Use()


def check_chain(codecs: Sequence[Codec], use: Use = PLAIN) -> Iterator[str]:
    """What is wrong with ``codecs`` in this order, each problem with its path in `params.yaml`."""
    for i, (before, after) in enumerate(itertools.pairwise(codecs)):
        if before.packs:
            yield (
                f"train.uplink[{i + 1}].name = {after.name!r}: cannot follow {before.name!r}, which leaves packed bits "
                f"and no numbers to work on; put {after.name!r} before it, or take one of the two out"
            )
    for i, codec in enumerate(codecs):
        if use.one_round and codec.remembers:
            mend = "set error_feedback: false" if codec.feeds_back else "take it out"
            yield (
                f"train.uplink[{i}].name = {codec.name!r}: adds what was left out of earlier uploads, which with this "
                f"train.algorithm belonged to their own rounds and is noise in another; {mend}"
            )
        for reason in codec.conflicts(codecs[:i], codecs[i + 1 :], use):
            yield f"train.uplink[{i}].name = {codec.name!r}: {reason}"


class Chain:
    """Codecs one after another: a client's way onto the wire, and the server's way back.

    Error feedback measures what is lost on the whole way from its codec to the wire and back, so a quantiser behind a
    sparsifier is corrected too: with e the memory and D(E(.)) the round trip, it sends E(u + e) and keeps
    e' = u + e - D(E(u + e)) (Seide et al., Interspeech 2014; Stich et al., NeurIPS 2018, algorithm 1).

    Parameters
    ----------
    codecs : in the order in which an upload passes them.
    like : a tree with the names, shapes and dtypes of one client's upload.
    """

    def __init__(self, codecs: Sequence[Codec], like: Tree):
        self.codecs = tuple(codecs)
        self.likes = [like]
        for codec in self.codecs:
            first = next(iter(self.likes[-1].values()))
            carried, _ = codec.encode(tree.zeros_like(self.likes[-1]), first.new_zeros((), dtype=keys.KEY))
            self.likes.append(carried)

    def memory(self) -> Tree:
        """What a client that was never called before remembers."""
        fresh = {str(i): codec.memory(self.likes[i]) for i, codec in enumerate(self.codecs)}
        return tree.join(**fresh)

    def encode(self, upload: Tree, memory: Tree, key: Tensor) -> tuple[Tree, Tree]:
        """``(payload, memory)``: exactly the tensors that cross the wire, and what this client keeps."""
        return self._encode(0, upload, memory, key)

    def decode(self, payload: Tree) -> Tree:
        """The upload as the server reads it off the wire."""
        return self._decode(0, payload)

    def _encode(self, i: int, values: Tree, memory: Tree, key: Tensor) -> tuple[Tree, Tree]:
        if i == len(self.codecs):
            return {f"body/{name}": value for name, value in values.items()}, {}
        codec = self.codecs[i]
        values, kept = codec.recall(values, tree.part(memory, str(i)))
        carried, side = codec.encode(values, keys.fold(key, i))
        payload, later = self._encode(i + 1, carried, memory, key)
        payload |= {f"{i}/{name}": value for name, value in side.items()}
        if kept:
            kept = codec.keep(kept, values, side, self._decode(i, payload))
        return payload, {f"{i}/{name}": value for name, value in kept.items()} | later

    def _decode(self, i: int, payload: Tree) -> Tree:
        if i == len(self.codecs):
            return tree.part(payload, "body")
        return self.codecs[i].decode(self._decode(i + 1, payload), tree.part(payload, str(i)), self.likes[i])
