"""What a server can ask of clients, and what it gets back: the language between a method and the engine.

Client work is a fold over batches, written for ONE client as three pure functions (init, step, final). The engine
decides how many clients run at once, where, and in which order; the work cannot tell.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks import tree
from tasks.models import Network
from tasks.tree import Tree

NOTHING: Tree = {}
Numbers = int | np.ndarray


class Batches(NamedTuple):
    """How a client goes through its data: ``epochs`` passes in a fresh random order, ``size`` samples a step.

    A ``size`` of 0 means all samples in one step. The last batch of a pass may be smaller; none is dropped. With
    ``count`` the passes go on until so many steps are taken, be it in the middle of one, whatever ``epochs`` says; for
    several clients it may be an array, one a client.
    """

    epochs: int
    size: int
    count: Numbers | None = None

    # Each of a number of samples, or of an array of such numbers, one a client.

    def steps(self, samples: Numbers) -> Numbers:
        """Local steps of a client with ``samples`` samples."""
        return self.epochs * self._pass(samples) if self.count is None else self.count + 0 * samples

    def passes(self, samples: Numbers) -> Numbers:
        """Passes that are begun by a client with ``samples`` samples."""
        return -(-self.steps(samples) // self._pass(samples))

    def seen(self, samples: Numbers) -> Numbers:
        """Samples that such a client goes through in all, each as often as it comes up."""
        whole, steps = divmod(self.steps(samples), self._pass(samples))
        return whole * samples + np.minimum(steps * self.size, samples)

    def _pass(self, samples: Numbers) -> Numbers:
        """Steps of one pass over ``samples`` samples."""
        return -(-samples // (self.size or np.maximum(samples, 1)))


class ClientState(NamedTuple):
    """One client in the middle of its work.

    ``params`` what it trains; ``start`` the model it was sent; ``optimizer`` the local optimiser's moments; ``shared``
    and ``own`` what it downloaded; ``memory`` what it kept from its last participation; ``steps`` done so far.
    """

    params: Tree
    start: Tree
    optimizer: Tree
    shared: Tree
    own: Tree
    memory: Tree
    steps: Tensor


class Work(Protocol):
    """Something clients can do: local training, a gradient at a point, a statistic of their data.

    ``name`` tells apart what clients remember of one kind of work from what they remember of another.
    """

    name: str

    @property
    def batches(self) -> Batches: ...

    def client_memory(self, shared: Tree) -> Tree:
        """What a client that was never called before remembers."""

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState: ...

    def client_step(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[ClientState, Tree]:
        """One step. ``batch`` has ``x`` ``[batch, *shape]``, ``y`` ``[batch]`` and ``weight`` ``[batch]``, which is 0
        on padding and 1 elsewhere; in training also ``group`` ``[batch]`` where the data have groups. Tensors in,
        tensors out: no Python branch on a tensor's value. The metrics are scalars, among them ``loss``."""

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        """``(upload, memory)``: what it sends, and what it keeps."""

    def client_sent(self, shared: Tree, memory: Tree, arrived: Tree) -> Tree:
        """What it keeps of ``memory`` now that it knows as what its upload will have ``arrived``: the codecs and the
        mechanism's clipping are public."""

    def weights(self, samples: Tensor) -> Tensor:
        """Each client's weight in the mean, from its number of samples ``[clients]``."""


class Links(NamedTuple):
    """Where there is no server: how many others each client sends its upload to, and how many uploads it receives,
    int64 ``[clients]``; ``elsewhere`` is how many are received by clients that take no part in the round."""

    sent: Tensor
    received: Tensor
    elsewhere: int = 0


class Exchange(NamedTuple):
    """A request to the clients of a round.

    ``shared`` goes to every client; ``own`` is stacked, one slice a client, for what differs between them. ``known``
    and ``kept`` are the same two for what clients have already, from earlier messages or by themselves: it does not
    travel. To its work a client's own entry takes the place of a shared one of the same name. ``each``: every upload is
    wanted by itself, not only their sum. ``links``: where uploads go, if not to a server. An entry ``reference/...``
    among ``own`` or ``kept`` is the model from which receivers count a change, see :func:`rebased`.
    """

    work: Work
    shared: Tree
    own: Tree = NOTHING
    known: Tree = NOTHING
    kept: Tree = NOTHING
    each: bool = False
    links: Links | None = None


class Uploads(NamedTuple):
    """The clients' answers, decoded, as the server has them.

    ``total`` is the weighted sum of the accepted uploads, ``weight`` the sum of their weights, ``count`` their number.
    Where the exchange asked for ``each`` there are, in the order of ``clients``, the stacked uploads and their
    ``weights`` ``[clients]``, 0 where rejected.
    """

    clients: Tensor
    total: Tree
    weight: Tensor
    count: int
    each: Tree = NOTHING
    weights: Tensor | None = None

    def mean(self) -> Tree:
        """The weighted mean of the accepted uploads."""
        return tree.scale(self.total, 1.0 / self.weight)


class Setting(NamedTuple):
    """What a method may know of the run it is part of.

    ``draw`` gives other weights for the same network, by number, each as random as those that the run starts from;
    ``coded`` says whether uploads pass codecs.
    """

    clients: int
    cohort: int
    rounds: int
    seed: int = 0
    draw: Callable[[int], Tree] | None = None
    coded: bool = False


def rebased(upload: Tree, broadcast: Tree, by: int) -> Tree:
    """``upload`` with its change counted from ``reference/...`` in ``broadcast``, where there is one, in place of the
    model that the client started from (``by`` = 1), or back again (``by`` = -1).

    That is what a codec works on where those who receive a message know an older model than its sender started from.
    """
    model, reference = tree.part(broadcast, "model"), tree.part(broadcast, "reference")
    gap = tree.join(delta={name: model[name] - value for name, value in reference.items()})
    return upload | {name: upload[name] + by * value for name, value in gap.items() if name in upload}


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of ``values`` ``[batch]`` over the samples that are no padding."""
    return torch.dot(values, weight) / weight.sum()
