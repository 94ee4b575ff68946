"""Deep gradient compression: a sparsifier that knows about momentum."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.train.uplink.codec import Codec, Use
from tasks.train.uplink.sparse import Thinned, narrow, scatter, widen
from tasks.tree import Tree


class DeepGradientCompression(Thinned):
    """Adds uploads up under a momentum of the client's own, and sends of each tensor the few entries that grew largest.

    u <- m u + g                    (Nesterov: u <- m (u + g), and u + g in place of u below)
    v <- v + u
    send the k = ceil(density n) entries of largest |v_i| of the n in a tensor; where one was sent, v_i = u_i = 0

    g is the upload: a step's gradient times -lr, or what many local steps changed. Momentum is applied before entries
    are held back, so one that waits loses none of it; forgetting u where it was sent keeps stale momentum from carrying
    on. With density 1 this is SGD without momentum, and with momentum again if ``momentum_masking`` is off. Tensors of
    few dimensions (biases, norms) are sent whole, with plain momentum. A client that is not called keeps its u and v.

    During the warm-up the density falls through the values of ``warmup``. Local clipping is a ``clip`` before it: of
    norm thr sqrt(N) for a threshold thr on the mean of N clients' uploads, which is the paper's thr / sqrt(N) for
    gradients that are already divided by N. This is the momentum of the whole run: there must be no other, on the
    clients or on the server, and no weight decay that would gather it. With momentum 0 it is gradient dropping (Aji and
    Heafield, EMNLP 2017), which goes with any. Made for uploads that hold a change of the model and nothing else: with
    momentum they must not be added up beside the model too, as those of `scaffold` and `fedspeed` are.

    Source: Lin et al., "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training", ICLR
    2018, section 3.2 (momentum correction, local clipping), section 3.3 (factor masking, warm-up), algorithm 4.
    """

    name: Literal["dgc"] = "dgc"
    density: float = Field(0.001, gt=0, le=1, description="share of a tensor's entries that are sent, at least one (r)")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the uploads (m)")
    nesterov: bool = Field(False, description="Nesterov's momentum in place of the heavy ball's")
    momentum_masking: bool = Field(True, description="forget the momentum of an entry that was sent")
    warmup_rounds: int = Field(4, ge=0, description="rounds of warm-up, 5 to 20 % of the run")
    dense_below: int = Field(2, ge=0, description="tensors of fewer dimensions than this are sent whole")

    @property
    def remembers(self) -> bool:
        return True

    def kept(self, entries: int) -> int:
        return max(1, math.ceil(self.density * entries - 1e-9))  # the product of, say, 0.07 and 100 is above 7

    def memory(self, like: Tree) -> Tree:
        return tree.join(velocity=tree.zeros_like(like), waiting=tree.zeros_like(self.split(like)[0]))

    def recall(self, upload: Tree, memory: Tree) -> tuple[Tree, Tree]:
        velocity, waiting = tree.part(memory, "velocity"), tree.part(memory, "waiting")
        if self.nesterov:
            velocity = tree.map(lambda u, g: self.momentum * (u + g), velocity, upload)
            step = tree.add(velocity, upload)
        else:
            velocity = step = tree.map(lambda u, g: self.momentum * u + g, velocity, upload)
        waiting = tree.map(lambda v, u: v + u, waiting, step)
        return step | waiting, tree.join(velocity=velocity, waiting=waiting)

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        flat = tree.map(lambda v: v.reshape(-1), self.split(values)[0])
        index = tree.map(lambda v: v.abs().topk(self.kept(v.numel())).indices.sort().values, flat)
        carried = values | tree.map(lambda v, i: v.gather(0, i), flat, index)
        return carried, tree.map(lambda i, v: narrow(i, v.numel()), index, flat)

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        return carried | {name: scatter(carried[name], widen(i), like[name]) for name, i in side.items()}

    def keep(self, memory: Tree, values: Tree, side: Tree, arrived: Tree) -> Tree:
        velocity, waiting = tree.part(memory, "velocity"), tree.part(memory, "waiting")
        held = tree.map(lambda i, v: 1 - scatter(torch.ones_like(i), widen(i), v), side, waiting)
        if self.momentum_masking:
            velocity = velocity | tree.map(torch.mul, held, velocity)
        return tree.join(velocity=velocity, waiting=tree.map(torch.mul, held, waiting))

    def conflicts(self, before: Sequence[Codec], after: Sequence[Codec], use: Use) -> Iterator[str]:
        if self.momentum and use.local_momentum:
            yield f"has the run's momentum already; set train.algorithm.momentum = {use.local_momentum:g} to 0"
        if self.momentum and use.server_momentum:
            yield f"has the run's momentum already; set that of train.algorithm.server, {use.server_momentum:g}, to 0"
        if self.momentum and use.decay:
            yield f"would give weight decay momentum too; set train.algorithm.weight_decay = {use.decay:g} to 0"
        if self.momentum and use.accumulates:
            yield (
                "would give momentum to uploads that this train.algorithm adds up beside the model too; set its own "
                f"momentum = {self.momentum:g} to 0"
            )
        if scattered := [codec.name for codec in before if isinstance(codec, Thinned)]:
            yield f"cannot follow {scattered[0]!r}, which sends other entries each time: there is nothing to add up"
        yield from super().conflicts(before, after, use)
