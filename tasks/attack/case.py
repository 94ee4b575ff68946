"""What an attacker can see. Nothing in here leads to a private sample."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tasks import keys, tree
from tasks.attack import wire
from tasks.attack.defences import Defence
from tasks.models import Network
from tasks.partition.federation import Meta
from tasks.train.privacy import Mechanism, NoPrivacy
from tasks.train.transcript import Context
from tasks.train.uplink import Codec
from tasks.train.work import Setting, Work
from tasks.tree import Tree


class Public(NamedTuple):
    """Samples of the clients' distribution that the attacker owns; nobody trained on them."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Case:
    """One message, as a curious server has it, with all that is public about the run.

    Parameters
    ----------
    message : the message's label, such as ``round-00001-client-00017``.
    context : round, client, samples, local steps, batch size, learning rate.
    network, work : the public model and the public program of a client.
    data : what the samples are: kind, shape, classes, range of values.
    broadcast : everything that the client downloaded, ``model/...`` among it.
    delta : the change of the model that the server reads off the wire, after every defence.
    defence : what stood between the client and the wire; an attacker knows the method, not its random numbers.
    budget : gradient evaluations that may be spent.
    labels : the private labels ``[samples]``, for an attack that is assumed to know them; else None.
    public : samples of the attacker's own, for an attack that is assumed to have some.
    upload : everything that the server decodes, ``delta/...`` among it.
    payload : the tensors on the wire, still encoded; {} behind a defence, which would have changed them.
    declined : why the client sent nothing; then there is no ``delta`` either.
    uplink, privacy : the run's codecs and its mechanism of privacy, which the upload passed on its way.
    """

    message: str
    context: Context
    network: Network
    work: Work
    data: Meta
    broadcast: Tree
    delta: Tree
    defence: Defence
    budget: int
    seed: int
    labels: Tensor | None = None
    public: Public | None = None
    upload: Tree = field(default_factory=dict)
    payload: Tree = field(default_factory=dict)
    declined: str | None = None
    uplink: tuple[Codec, ...] = ()
    privacy: Mechanism = field(default_factory=NoPrivacy)

    @property
    def model(self) -> Tree:
        """The parameters that the client started from."""
        return tree.part(self.broadcast, "model")

    @property
    def gradient(self) -> Tree:
        """The mean gradient of the client's local steps, -delta / (lr * steps): exact after one step of plain SGD."""
        return tree.scale(self.delta, -1.0 / (self.context.lr * self.context.steps))

    @property
    def order(self) -> tuple[Tensor, ...]:
        """The rows of the client's samples in each of its steps, as far as one can know: how many, not which.

        Which candidate goes into which batch is a matter of naming within one pass; over several passes the attacker
        takes every pass to use the same batches.
        """
        return self.presumed(self.context.steps)

    def presumed(self, steps: int) -> tuple[Tensor, ...]:
        """:attr:`order` of a client that takes so many ``steps``."""
        size = self.context.batch_size or self.context.samples
        one_pass = torch.arange(self.context.samples).split(size)
        passes = -(-steps // len(one_pass))
        return (one_pass * passes)[:steps]

    def generator(self, *purpose: str) -> np.random.Generator:
        """Randomness of this case alone: the same for every defence, so that defences are compared on equal starts."""
        return keys.generator(self.seed, "attack", self.message, *purpose)

    def noise(self, count: int, *purpose: str) -> Tensor:
        """``count`` meaningless samples ``[count, *shape]``: uniform over the range, normal without one; of text, the
        first token over and over, the only one that every vocabulary has."""
        rng, shape = self.generator(*purpose), (count, *self.data.shape)
        if self.data.kind == "text":
            return torch.zeros(shape, dtype=torch.int64)
        drawn = rng.uniform(*self.data.range, shape) if self.data.range else rng.standard_normal(shape)
        return torch.from_numpy(drawn.astype(np.float32))

    def precise(self) -> Self:
        """The same case in double precision."""

        def double(values: Tree) -> Tree:
            return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}

        return replace(self, broadcast=double(self.broadcast), delta=double(self.delta))

    def sending(self, model: Tree, network: Network | None = None) -> Self:
        """The case of a server that sends ``model`` in place of the run's own; the answer is still to come.

        With another ``network``, whatever the method broadcasts beside the model is as in its first round, but for what
        does not depend on the network.
        """
        known = {name: value for name, value in self.broadcast.items() if not name.startswith("model/")}
        if network is None:
            return replace(self, broadcast=tree.join(model=model) | known, delta={}, upload={}, payload={})
        setting = Setting(self.data.clients, 1, max(self.context.round, 1))
        server = self.work.server_init(model, setting)
        request = self.work.request(server, torch.tensor([self.context.client]))
        fresh = request.known | request.shared | tree.take(request.kept | request.own, 0)
        kept = {
            n: v for n, v in known.items() if n.startswith("privacy/") or (n in fresh and fresh[n].shape == v.shape)
        }
        return replace(self, network=network, broadcast=fresh | kept, delta={}, upload={}, payload={})

    def simulate(self, x: Tensor, y: Tensor, order: tuple[Tensor, ...] | None = None) -> Tree:
        """The change of the model that an honest client with these samples would send; differentiable.

        Runs the public program of a client, step by step, so its learning rate, momentum, proximal term and number of
        local steps are accounted for. Unknown and taken as fresh: what the client remembers of earlier rounds.

        Parameters
        ----------
        x : ``[samples, *shape]``.
        y : class ids ``[samples]``, or a distribution over the classes for each sample, ``[samples, classes]``.
        order : the rows used in each step; :attr:`order` unless given.
        """
        shared, key = self.broadcast, torch.zeros((), dtype=keys.KEY)
        state = self.work.client_init(shared, shared, self.work.client_memory(shared))
        for rows in self.order if order is None else order:
            batch = {"x": x[rows], "y": y[rows], "weight": torch.ones(len(rows), dtype=x.dtype)}
            state, _ = self.work.client_step(self.network, state, batch, key)
        upload, _ = self.work.client_final(shared, state)
        return self._received(upload)

    @property
    def arrived(self) -> Tree:
        """Which entries of ``delta`` can tell of the samples, booleans: all but those that a codec or a defence left
        out, on which two unlike uploads do not differ."""
        ones, zeros = tree.map(torch.ones_like, self.upload), tree.map(torch.zeros_like, self.upload)
        return tree.map(torch.ne, self._received(ones), self._received(zeros))

    def _received(self, upload: Tree) -> Tree:
        """The change of the model that a simulated ``upload`` comes to, after what is no secret of its way."""
        codecs = [codec.at(self.context.coded) for codec in self.uplink]
        sent = self.work.change(wire.repeat(self.privacy, codecs, upload, self.upload, self.broadcast), self.broadcast)
        return self.defence.repeat({name: sent[name] for name in self.delta}, self.delta)


@dataclass(frozen=True)
class Release:
    """The model that the run released, and samples of which an attacker asks whether they were trained on.

    Parameters
    ----------
    model : the released parameters.
    x, y : the samples in question, members and others in random order, ``[candidates, *shape]`` and ``[candidates]``.
    public_x, public_y : samples of the same distribution that the attacker owns; none of them was trained on.
    """

    network: Network
    model: Tree
    data: Meta
    x: Tensor
    y: Tensor
    public_x: Tensor
    public_y: Tensor
    seed: int


Ask = Callable[[Case], Case]
"""The line of a malicious server to the client behind a case: what it sends goes in (:meth:`Case.sending`), and the
client's honest answer to that comes out, or the reason why it declined."""


@dataclass(frozen=True)
class View:
    """All that the attackers see under one defence. ``release`` is None where a defence of messages changes nothing;
    ``ask`` is there for servers that do not keep to the protocol."""

    cases: tuple[Case, ...]
    release: Release | None
    ask: Ask | None = None
