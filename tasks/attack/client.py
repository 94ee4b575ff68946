"""An honest client, played once more on its private batch: for a model that it was never sent, or another protocol."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks import keys, tree
from tasks.models import Network
from tasks.train.engine import batches
from tasks.train.engine.program import Client, blank
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Context
from tasks.train.uplink import Chain
from tasks.train.work import Work, rebased
from tasks.tree import Tree


class Reply(NamedTuple):
    """A message: what is publicly known of it, the tensors on the wire, and what the server decodes."""

    context: Context
    payload: Tree
    upload: Tree


@dataclass(frozen=True)
class HonestClient:
    """Does what the settings say on whatever it is sent: the same batches, mechanism and codecs as in the run.

    Sent the recorded broadcast, it gives the recorded message again, up to rounding, where it remembered nothing of
    earlier rounds and all random choices are those of a round's first exchange.

    Parameters
    ----------
    train, seed : the settings of the run.
    context : of its recorded message.
    samples : ``x``, ``y`` and, where the data have groups, ``group`` of its training samples: private.
    order : the rows of these that each recorded step used, ``[steps, batch]``, -1 as padding.
    """

    train: TrainSettings
    seed: int
    context: Context
    samples: Tree
    order: Tensor

    @property
    def x(self) -> Tensor:
        return self.samples["x"]

    @property
    def y(self) -> Tensor:
        return self.samples["y"]

    def answer(self, network: Network, work: Work, broadcast: Tree) -> Reply:
        """The message with which it answers ``broadcast``, having done ``work`` on ``network``."""
        memory = work.client_memory(broadcast)
        key = keys.each(keys.derive(self.seed, "round", self.context.keyed, 0), np.array([self.context.client]))
        order = self.order if work.batches == self.train.algorithm.batches else self._order(work, key)
        key, state = torch.tensor(key[0]), work.client_init(broadcast, broadcast, memory)
        for s, rows in enumerate(order):
            used = rows[rows >= 0]
            batch = tree.take(self.samples, used) | {"weight": torch.ones(len(used))}
            state, _ = work.client_step(network, state, batch, keys.fold(key, -s))
        codecs = [codec.at(self.context.coded) for codec in self.train.uplink]
        chain = Chain(codecs, blank(work, broadcast, broadcast, self.train.privacy).upload)
        with torch.no_grad():
            sent = Client(self.train, work, chain).send(broadcast, state, chain.memory(), memory, key)
        context = replace(
            self.context,
            steps=len(order),
            epochs=int(work.batches.passes(len(self.y))),
            batch_size=work.batches.size,
            bytes=tree.nbytes(sent["payload"]) + tree.nbytes(sent["note"]),
        )
        return Reply(context, sent["payload"], rebased(chain.decode(sent["payload"]), broadcast, -1))

    def _order(self, work: Work, key: np.ndarray) -> Tensor:
        """The rows of each step of other work, ``[steps, batch]``."""
        positions, _ = batches.order(work.batches, np.array([len(self.y)]), key)
        return torch.from_numpy(positions[0])
