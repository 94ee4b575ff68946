"""Local and global fairness of predictions, taken apart by partial information decomposition.

Z is a sensitive attribute, Y^ a prediction, S the client, all information in bits. The disparity over the population is
I(Z; Y^), within clients I(Z; Y^ | S), and

    I(Z; Y^) = unique + redundant        I(Z; Y^ | S) = unique + masked

Unique disparity is there globally and locally, redundant disparity only globally (it is explained by who is where), and
masked disparity only locally (it cancels in the population). The server needs a table of counts of every client.

Source: Hamman and Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
Information Decomposition", ICLR 2024; the decomposition is that of Bertschinger et al., "Quantifying Unique
Information", Entropy 2014.
"""

from typing import NamedTuple

import numpy as np
import torch

from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree

BITS = 1 / np.log(2)
NOTHING = 1e-9
"""Bits below which a disparity counts as none: there the constraint is linear, and the solver gets it as such."""


class Disparity(NamedTuple):
    """The parts, in bits. ``total`` is the global disparity, ``local`` the mean one within clients."""

    total: float
    local: float
    unique: float
    redundant: float
    masked: float


def contingency(network: Network, model: Tree, federation: Federation, clients: np.ndarray) -> np.ndarray:
    """How often each client has which group, label and prediction: int64 ``[clients, groups, classes, classes]``.

    These are the counts that a client would send after an evaluation on all its samples.
    """
    groups, classes = len(federation.meta.groups.values), federation.meta.classes
    counts = np.zeros((len(clients), groups, classes, classes), np.int64)
    for row, client in enumerate(clients):
        start, stop = federation.offsets[client], federation.offsets[client + 1]
        for first in range(start, stop, 8192):
            positions = np.array(federation.indices[first : min(first + 8192, stop)])
            with torch.no_grad():
                predicted = network.apply(model, torch.from_numpy(federation.x[positions])).argmax(1).numpy()
            np.add.at(counts[row], (federation.groups[positions], federation.y[positions], predicted), 1)
    return counts


def information(table: np.ndarray) -> float:
    """I(A; B) in bits of a table of probabilities or counts ``[a, b]``."""
    p = table / max(table.sum(), 1e-300)
    apart = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    there = p > 0
    return float((p[there] * np.log2(p[there] / apart[there])).sum())


def decompose(counts: np.ndarray) -> Disparity:
    """The disparities of predictions, from ``counts`` ``[clients, groups, predictions]``."""
    p = counts / counts.sum()
    total = information(p.sum(0))
    local = float(sum(client.sum() * information(client) for client in p if client.sum()))
    unique = min(_unique(p), total, local)
    return Disparity(total, local, unique, total - unique, local - unique)


def _unique(p: np.ndarray) -> float:
    """min over Q with P's margins Q(z, y^) and Q(z, s) of I_Q(Z; Y^ | S), for P ``[clients, groups, predictions]``.

    Up to constants that is the convex sum of Q(z, y^, s) log(Q(z, y^, s) / Q(y^, s))."""
    import cvxpy as cp

    clients, groups, predictions = p.shape
    q = [cp.Variable((clients, predictions), nonneg=True) for _ in range(groups)]
    margins = [cp.sum(q[z], axis=0) == p[:, z].sum(0) for z in range(groups)]
    margins += [cp.sum(q[z], axis=1) == p[:, z].sum(1) for z in range(groups)]
    together = sum(q)
    problem = cp.Problem(cp.Minimize(sum(cp.sum(cp.rel_entr(part, together)) for part in q)), margins)
    problem.solve(solver=cp.CLARABEL)
    joint = np.stack([np.clip(part.value, 0, None) for part in q], 1)
    return sum(float(client.sum()) * information(client) for client in joint if client.sum() > 0)


class Frontier:
    """The best accuracy that any prediction from label, client and group can have under limits of both disparities.

    minimise P(Y^ != Y) over P(Y^ = 1 | y, s, z)   subject to   I(Z; Y^) <= global, I(Z; Y^ | S) <= local

    A bound of the data, not of a model: without limits it is 1 (AGLFOP, the accuracy and global-local fairness
    optimality problem). For two classes.

    Parameters
    ----------
    counts : ``[clients, groups, labels]``, how often which label occurs where.
    """

    def __init__(self, counts: np.ndarray):
        self.p = counts / counts.sum()

    def accuracy(self, at_most_global: float, at_most_local: float) -> float:
        """The accuracy at these limits, in bits."""
        import cvxpy as cp

        clients, groups, _ = self.p.shape
        said = [[cp.Variable(groups) for _ in range(2)] for _ in range(clients)]
        limits = [bound for client in said for q in client for bound in (q >= 0, q <= 1)]
        # P(z, Y^ = 1, s) and P(z, s), one vector over the groups for each client.
        ones = [sum(cp.multiply(self.p[s, :, y], said[s][y]) for y in range(2)) for s in range(clients)]
        there = [self.p[s].sum(1) for s in range(clients)]
        limits += _at_most(sum(ones), sum(there), at_most_global)
        if at_most_local <= NOTHING:
            limits += [limit for s in range(clients) for limit in _at_most(ones[s], there[s], 0.0)]
        else:
            limits.append(sum(_bits(ones[s], there[s]) for s in range(clients)) <= at_most_local)
        wrong = sum(self.p[s, :, 0] @ said[s][0] + self.p[s, :, 1] @ (1 - said[s][1]) for s in range(clients))
        return 1 - float(cp.Problem(cp.Minimize(wrong), limits).solve(solver=cp.CLARABEL))


def _at_most(ones, there: np.ndarray, limit: float) -> list:
    """That I(Z; Y^) is at most ``limit``; at 0 all groups have the same rate of ones, which is linear."""
    import cvxpy as cp

    if limit > NOTHING:
        return [_bits(ones, there) <= limit]
    return [ones * float(there.sum()) == there * cp.sum(ones)]


def _bits(ones, there: np.ndarray):
    """The sum of p log(p / (p(z) p(y^))) in bits: p ``ones`` and ``there - ones``, not normalised."""
    import cvxpy as cp

    share = there / there.sum() if there.sum() else there
    parts = (cp.rel_entr(part, share * cp.sum(part)) for part in (ones, there - ones))
    return BITS * sum(cp.sum(part) for part in parts)
