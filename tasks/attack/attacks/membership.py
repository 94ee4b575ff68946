"""Membership inference on the released model."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, vmap

from tasks import keys, models, tree
from tasks.attack.attacks.attack import Attack, Family
from tasks.attack.case import Release, View
from tasks.attack.guesses import Suspicion
from tasks.models import Network
from tasks.tree import Tree

MOMENTUM = 0.9
CHUNK = 1024
WATCHED = 256
"""Samples on which shadows are compared with the released model after each pass."""


class Membership(Attack):
    """Asks of samples whether the released model was trained on them, by its loss and by comparison with shadow models.

    Loss threshold: the smaller the loss, the likelier a member. LiRA: phi = log(p_y / (1 - p_y)) of a sample is
    compared with its values under shadow models that were (in) and that were not (out) trained on it,

    online:   log N(phi; mean_in, var_in) - log N(phi; mean_out, var_out)
    offline:  (phi - mean_out) / sd_out

    with one variance for all samples, as few shadows cannot tell more. Shadows start from the run's initial model and
    train on random halves of the candidates and the attacker's own samples, each half and its complement, until their
    mean phi is the released model's. Which candidates are members is used nowhere.

    Source: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, adversary 2; Carlini et al., "Membership
    Inference Attacks From First Principles", IEEE S&P 2022, algorithm 1 and section VI-C.
    """

    name: Literal["membership"] = "membership"
    family: ClassVar[Family] = "inference"
    assumes: ClassVar[str] = "the samples in question with their labels, and others of the same distribution"
    shadows: int = Field(16, ge=0, multiple_of=2, description="shadow models of LiRA; 0 for the loss threshold alone")
    mode: Literal["online", "offline"] = Field("online", description="whether shadows that saw the sample are used too")
    epochs: int = Field(20, ge=1, description="most passes of a shadow over its half")
    batch_size: int = Field(64, ge=1, description="samples a step of a shadow")
    lr: float = Field(0.05, gt=0, description="learning rate of a shadow; momentum 0.9")

    def run(self, view: View) -> Iterator[Suspicion]:
        if view.release is None:
            return
        losses, _ = models.score(view.release.network, view.release.model, view.release.x, view.release.y)
        yield Suspicion("loss_threshold", -losses, 0)
        if self.shadows:
            yield self._lira(view.release)

    def _lira(self, release: Release) -> Suspicion:
        x, y = torch.cat([release.x, release.public_x]), torch.cat([release.y, release.public_y])
        halves = _halves(len(y), self.shadows, release.seed)
        shadows, steps = self._train(release, x, y, halves)
        asked = slice(len(release.y))
        seen = torch.zeros(self.shadows, len(y), dtype=torch.bool)
        seen.scatter_(1, halves, torch.ones_like(halves, dtype=torch.bool))
        confidence = torch.stack([_confidence(release.network, each, release.x, release.y) for each in _each(shadows)])
        own = _confidence(release.network, release.model, release.x, release.y)
        scores = likelihood_ratio(own, confidence, seen[:, asked], self.mode)
        return Suspicion("lira", scores, steps * self.shadows)

    def _train(self, release: Release, x: Tensor, y: Tensor, halves: Tensor) -> tuple[Tree, int]:
        """All shadows as one stacked model; returns it, and the steps that each took."""
        network = release.network

        def mean_loss(params: Tree, x: Tensor, y: Tensor) -> Tensor:
            return network.losses(params, x, y).mean()

        slope = vmap(grad(mean_loss))
        # The candidates are in random order, so the first of them stand for all.
        few, labels = x[:WATCHED], y[:WATCHED]
        fitted = float(_confidence(network, release.model, few, labels).mean())
        shadows = tree.map(torch.clone, tree.repeat(network.parameters, len(halves)))
        moments = tree.zeros_like(shadows)
        rng, steps = keys.generator(release.seed, "attack", "shadow batches"), 0
        for _ in range(self.epochs):
            shuffle = torch.from_numpy(rng.permuted(halves.numpy(), axis=1))
            for rows in shuffle.split(self.batch_size, 1):
                moments = tree.add(slope(shadows, x[rows], y[rows]), moments, MOMENTUM)
                shadows, steps = tree.add(shadows, moments, -self.lr), steps + 1
            confidence = torch.stack([_confidence(network, each, few, labels).mean() for each in _each(shadows)])
            if float(confidence.mean()) >= fitted:
                break
        return shadows, steps


def likelihood_ratio(own: Tensor, shadows: Tensor, seen: Tensor, mode: Literal["online", "offline"]) -> Tensor:
    """LiRA's score of each candidate ``[candidates]``, larger for likelier members.

    Parameters
    ----------
    own : logit-scaled confidence of the released model, ``[candidates]``.
    shadows : the same under each shadow model, ``[shadows, candidates]``.
    seen : whether the shadow was trained on the candidate, ``[shadows, candidates]``; half of each column.
    """
    mean_in, var_in = _normal(shadows, seen)
    mean_out, var_out = _normal(shadows, ~seen)
    if mode == "offline":
        return (own - mean_out) / var_out.sqrt()
    inside = torch.distributions.Normal(mean_in, var_in.sqrt()).log_prob(own)
    return inside - torch.distributions.Normal(mean_out, var_out.sqrt()).log_prob(own)


def _normal(values: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the ``used`` values of each column, and one unbiased variance around these means for all columns."""
    count = used.sum(0)
    mean = (values * used).sum(0) / count
    spread = ((values - mean).square() * used).sum() / (count - 1).sum().clamp(min=1)
    return mean, spread.clamp(min=1e-6)


def _halves(samples: int, shadows: int, seed: int) -> Tensor:
    """Rows of random halves of the samples and of their complements, ``[shadows, samples // 2]``."""
    rng = keys.generator(seed, "attack", "shadow halves")
    even = samples - samples % 2
    mixed = torch.stack([torch.from_numpy(rng.permutation(samples)[:even]) for _ in range(shadows // 2)])
    return torch.cat(mixed.chunk(2, dim=1))


@torch.no_grad()
def _confidence(network: Network, params: Tree, x: Tensor, y: Tensor) -> Tensor:
    """log(p_y / (1 - p_y)) of each sample ``[samples]``, without the cancellation of 1 - p_y."""
    found = []
    for inputs, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        scores = network.apply(params, inputs).double()
        own = scores.gather(-1, labels[:, None])[:, 0]
        others = scores.scatter(-1, labels[:, None], -torch.inf).logsumexp(-1)
        found.append(own - others)
    return torch.cat(found)


def _each(stacked: Tree) -> Iterator[Tree]:
    return (tree.take(stacked, i) for i in range(len(next(iter(stacked.values())))))
