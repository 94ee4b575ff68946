"""The labels behind a gradient, from its last layer in closed form."""

import torch
from torch import Tensor

from tasks.attack import layers
from tasks.attack.case import Case

PROBES = 256
SCALES = 80


def counts(case: Case) -> Tensor | str:
    """How often each class stands behind a message, int64 ``[classes]``, or the reason why it cannot be told.

    With n_c of B samples of class c, the gradient by the last bias is db_c = mean p_c - n_c / B. Let q be the network's
    mean prediction on noise and suppose that every sample's p = (1 - a) onehot(y) + a q, with one a for all: 1 in a
    network that knows nothing yet, less the better it fits. Then db = a (q - n / B). Every class with a negative entry
    occurs; the others follow by largest remainders, for the a that explains db best.

    For one sample this is the rule of iDLG, and exact: p - onehot(y) is negative at y and nowhere else, whatever the
    activation. With a = 1 it is the rule of Geng et al.; that negative entries betray a class is used by Yin et al.

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, section 2.2; Geng et al.,
    "Towards General Deep Leakage in Federated Learning", 2021; Yin et al., "See through Gradients", CVPR 2021.
    """
    layer = layers.last(case, case.gradient)
    if isinstance(layer, str):
        return layer
    with torch.no_grad():
        q = case.network.apply(case.model, case.noise(PROBES, "label probes")).softmax(-1).mean(0).double()
    db, samples = layer.bias.double(), case.context.samples
    best, least = torch.zeros(len(db)), float("inf")
    for a in torch.logspace(-4, 0.1, SCALES, dtype=torch.float64):
        n = _whole(samples * (q - db / a), db < 0, samples)
        error = float((db - a * (q - n / samples)).square().sum())
        if error < least:
            best, least = n, error
    return best.long()


def labels(case: Case) -> Tensor | str:
    """The labels behind a message, sorted ``[samples]``: those it is assumed to know, or else those that it leaks."""
    if case.labels is not None:
        return case.labels
    found = counts(case)
    return found if isinstance(found, str) else torch.arange(len(found)).repeat_interleave(found)


def _whole(share: Tensor, occurs: Tensor, total: int) -> Tensor:
    """Whole numbers that add up to ``total``, near ``share``, at least 1 where a class ``occurs`` if there is room."""
    n = torch.zeros_like(share)
    for c in torch.argsort(share, descending=True)[:total]:
        n[c] = float(occurs[c])
    for _ in range(total - int(n.sum())):
        n[(share - n).argmax()] += 1
    return n
