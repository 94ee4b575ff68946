"""Learning to invert: a network from updates to samples, trained on the attacker's own samples."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vmap

from tasks import tree
from tasks.attack.attacks.attack import Family, Inversion
from tasks.attack.case import Case, View
from tasks.attack.guesses import Guess, Reconstruction
from tasks.tree import Tree

CHUNK = 64


class LearningToInvert(Inversion):
    """Simulates the updates of batches of its own samples, and trains a network that gives the samples back.

    min over h of E || h(u(x)) - x ||^2, of a batch with its samples in the order that fits best

    u is what the public method sends for x on this broadcast, after what is public of a defence; both u and x are
    centred, and u scaled. Trained once for all messages that share a broadcast and a number of samples, and of which
    the same entries arrived. It needs no label and no gradient through the network, so that a network without smooth
    slopes is no defence.

    Source: Wu et al., "Learning to Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning", UAI
    2023, eq. (3) and (4).
    """

    name: Literal["learning_to_invert"] = "learning_to_invert"
    family: ClassVar[Family] = "generation"
    assumes: ClassVar[str] = "the number of samples and of local steps, and samples of the same distribution"
    inputs: int = Field(1000, ge=1, description="random combinations of the update's entries that the network sees")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((300, 300), description="widths of the network; paper 3000")
    examples: int = Field(2000, ge=2, description="batches of the attacker's own samples to train on")
    epochs: int = Field(30, ge=1, description="passes over them; paper 200, and 5000 for several samples")
    batch_size: int = Field(64, ge=1, description="examples a step; paper 256")
    lr: float = Field(1e-3, gt=0, description="step of Adam; paper 1e-4")

    def obstacle(self, case: Case) -> str | None:
        return super().obstacle(case) or (None if case.public else "it needs samples of its own to train on")

    def run(self, view: View) -> Iterator[Guess]:
        trained: dict[tuple, Callable[[Tensor], Tensor]] = {}
        for case in view.cases:
            if turned := self.turned_down(case):
                yield turned
                continue
            context = case.context
            kind = (context.samples, context.steps, context.batch_size, _digest(case.broadcast), _digest(case.arrived))
            if kind not in trained:
                trained[kind] = self._train(case)
            low, high = case.data.range or (-torch.inf, torch.inf)
            x = trained[kind](tree.vector(case.delta)[None])[0].clamp(low, high)
            yield Reconstruction(case, x.reshape(-1, *case.data.shape), None, self.examples * len(case.order))

    def _train(self, case: Case) -> Callable[[Tensor], Tensor]:
        """The inverse: from updates ``[n, entries]`` to samples ``[n, samples, features]``."""
        samples, rng = case.context.samples, case.generator(self.name)
        rows = torch.from_numpy(rng.integers(len(case.public.y), size=(self.examples, samples)))
        u = torch.cat([self._updates(case, part) for part in rows.split(CHUNK)])
        x = case.public.x.flatten(1)
        centre, (mean, deviation) = x.mean(0), (u.mean(0), u.std(0))
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1.0 / deviation, 0.0)
        mixed = torch.from_numpy(rng.standard_normal((u.shape[1], self.inputs)).astype("float32")) / u.shape[1] ** 0.5
        read = scale[:, None] * mixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(1 << 62)))
            widths = (self.inputs, *self.hidden)
            hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
            network = nn.Sequential(*hidden, nn.Linear(widths[-1], samples * x.shape[1]))

        def inverse(u: Tensor) -> Tensor:
            return network((u - mean) @ read).unflatten(1, (samples, -1)) + centre

        adam = torch.optim.Adam(network.parameters(), self.lr)
        for _ in range(self.epochs):
            for some in torch.from_numpy(rng.permutation(self.examples)).split(self.batch_size):
                adam.zero_grad()
                _loss(inverse(u[some]), x[rows[some]]).backward()
                adam.step()
        return torch.no_grad()(inverse)

    @torch.no_grad()
    def _updates(self, case: Case, rows: Tensor) -> Tensor:
        """What clients with the public samples at ``rows`` ``[n, samples]`` would send, ``[n, entries]``."""
        return vmap(lambda x, y: tree.vector(case.simulate(x, y)))(case.public.x[rows], case.public.y[rows])


def _digest(values: Tree) -> bytes:
    """What tells ``values`` from others of the same names and shapes."""
    return hashlib.sha256(tree.pack(values).data).digest()


def _loss(guess: Tensor, x: Tensor) -> Tensor:
    """The mean squared error of ``[n, samples, features]``, each sample against the guess that is assigned to it."""
    if x.shape[1] == 1:
        return (guess - x).square().mean()
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x, guess).square() / x.shape[2]
    pairs = [linear_sum_assignment(each) for each in cost.detach().numpy()]
    taken = torch.stack([torch.from_numpy(columns) for _, columns in pairs])
    return cost.gather(2, taken[:, :, None]).mean()
