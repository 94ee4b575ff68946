"""What the run itself does to an upload on its way to the server, as far as it is no secret."""

from collections.abc import Iterable
from functools import singledispatch

from torch import Tensor

from tasks import tree
from tasks.train.privacy import Mechanism
from tasks.train.privacy.noise import Noised
from tasks.train.uplink import Clip, Codec, RandomK
from tasks.train.uplink.clip import clip
from tasks.train.uplink.sparse import Thinned
from tasks.train.work import rebased
from tasks.tree import Tree


def repeat(privacy: Mechanism, uplink: Iterable[Codec], simulated: Tree, received: Tree, broadcast: Tree) -> Tree:
    """The ``simulated`` upload with what is public of the way of the ``received`` one: clipping, and which entries a
    codec left out, which shows in the message. Noise, signs and rounding are not repeated. Differentiable."""
    if isinstance(privacy, Noised):
        simulated = privacy.clipping.clip(simulated, privacy.clipped_at(tree.part(broadcast, "privacy")))
    simulated = rebased(simulated, broadcast, 1)
    # In the precision of the wire, in which an entry that did not arrive is 0 to the last bit.
    received = rebased(received, tree.map(Tensor.float, broadcast), 1)
    for codec in uplink:
        simulated = passed(codec, simulated, received)
    return rebased(simulated, broadcast, -1)


@singledispatch
def passed(codec: Codec, simulated: Tree, received: Tree) -> Tree:
    """What ``codec`` does to a ``simulated`` upload, where the server decoded ``received``."""
    return simulated


@passed.register
def _(codec: Clip, simulated: Tree, received: Tree) -> Tree:
    return clip(simulated, codec.norm)


@passed.register
def _(codec: Thinned, simulated: Tree, received: Tree) -> Tree:
    thinned, _ = codec.split(simulated)
    return simulated | tree.map(lambda mine, theirs: mine * (theirs != 0), thinned, received)


@passed.register
def _(codec: RandomK, simulated: Tree, received: Tree) -> Tree:
    masked = passed.dispatch(Thinned)(codec, simulated, received)
    thinned = codec.split(masked)[0] if codec.unbiased else {}
    return masked | tree.map(lambda value: value * (value.numel() / codec.kept(value.numel())), thinned)
