"""What one core of this machine takes for the parts of a round, measured on tensors large enough to be rates."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.workloads import SEED
from tasks import keys, tree
from tasks.train.uplink import Chain, Codec
from tasks.train.uplink.dgc import DeepGradientCompression
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.sign import Sign
from tasks.train.uplink.topk import TopK
from tasks.tree import Tree

SIDE, MATRICES = 2048, 4
"""The message that is measured: so many square matrices."""
PASSES = 3
CHAINS: dict[str, tuple[Codec, ...]] = {
    "as it is": (),
    "quantize, 8 bits": (Quantize(bits=8),),
    "quantize, 4 bits": (Quantize(bits=4),),
    "sign": (Sign(),),
    "topk, 1 %": (TopK(density=0.01),),
    "dgc, 0.1 %": (DeepGradientCompression(density=0.001, warmup_rounds=0),),
}


class Coding(NamedTuple):
    """What a chain of codecs costs for each parameter: ``size`` bytes on the wire, ``encode`` and ``decode`` seconds.

    ``linear`` is the time a parameter takes in a message of :data:`MATRICES` matrices over that in a message of one:
    how well a rate describes it.
    """

    size: float
    encode: float
    decode: float
    linear: float


class Constants(NamedTuple):
    """Of one core. ``operations`` a second in training steps of a large network; seconds to ``add`` a parameter of a
    decoded upload to the sum; seconds to ``copy`` a byte of a message off the wire; and how uploads are coded."""

    operations: float
    add: float
    copy: float
    codings: dict[str, Coding]

    def content(self) -> dict[str, Any]:
        return self._asdict() | {"codings": {name: coding._asdict() for name, coding in self.codings.items()}}

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Constants":
        codings = {name: Coding(**coding) for name, coding in content["codings"].items()}
        return cls(**content | {"codings": codings})


def measure(side: int = SIDE, matrices: int = MATRICES, passes: int = PASSES) -> Constants:
    """The constants, taken with one thread; each is the median of ``passes``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, many = message(side, 1), message(side, matrices)
        total, count = tree.zeros_like(many), matrices * side**2
        packed = tree.pack(many)
        return Constants(
            operations=_operations(side, passes),
            add=seconds(lambda: tree.add(total, many, 0.5), passes) / count,
            copy=seconds(lambda: tree.unpack(packed), passes) / tree.nbytes(many),
            codings={name: coding(chain, one, many, passes) for name, chain in CHAINS.items()},
        )
    finally:
        torch.set_num_threads(threads)


def message(side: int, matrices: int) -> Tree:
    """An upload of normal noise, ``[side, side]`` a matrix."""
    generator = torch.Generator().manual_seed(SEED)
    return {str(i): torch.randn(side, side, generator=generator) for i in range(matrices)}


def coding(codecs: tuple[Codec, ...], one: Tree, many: Tree, passes: int) -> Coding:
    """What the chain takes for ``many`` matrices, beside ``one`` of them."""
    key = torch.tensor(keys.derive(SEED, "codec"))
    taken: list[tuple[float, float]] = []
    for upload in (one, many):
        chain, count = Chain(codecs, upload), tree.vector(upload).numel()
        memory = chain.memory()
        payload, _ = chain.encode(upload, memory, key)
        encode = seconds(lambda chain=chain, u=upload, m=memory: chain.encode(u, m, key), passes)
        decode = seconds(lambda chain=chain, p=payload: chain.decode(p), passes)
        taken.append((encode / count, decode / count))
    encode, decode = taken[1]
    return Coding(tree.nbytes(payload) / count, encode, decode, (encode + decode) / max(sum(taken[0]), 1e-15))


def seconds(work: Callable[[], object], passes: int) -> float:
    """The median of ``passes``, after one that does not count."""
    work()
    taken = []
    for _ in range(passes):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _operations(side: int, passes: int, batch: int = 64) -> float:
    """Floating-point operations a second of a step through a wide network: 6 for each weight and sample."""
    network = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(2)))
    x = torch.randn(batch, side, generator=torch.Generator().manual_seed(SEED)).requires_grad_()

    def step() -> Tensor:
        network.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        return loss

    return 6 * 2 * side**2 * batch / seconds(step, passes)
