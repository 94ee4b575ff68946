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

import warnings
from typing import NamedTuple

import numpy as np
import torch

from tasks.models import Network
from tasks.partition.federation import Federation
from tasks.tree import Tree

BITS = 1 / np.log(2)
NOTHING = 1e-9
"""Bits below which a disparity counts as none: there the constraint is linear, and the solver gets it as such."""


SLACK = 1e-5
"""Bits by which the solver's minimum may be above a bound that it cannot exceed."""

MOST_CLIENTS = 100
"""For more clients no frontier is drawn: it would take longer than the rest of the stage."""


class Disparity(NamedTuple):
    """The parts, in bits. ``total`` is the global disparity, ``local`` the mean one within clients."""

    total: float
    local: float
    unique: float
    redundant: float
    masked: float


def assessed(
    network: Network, model: Tree, federation: Federation, clients: np.ndarray, points: int, own: Tree | None = None
) -> dict:
    """The fairness of ``model``, or of the clients' ``own`` models, for people and machines to read, for two classes.

    ``own`` are all clients' models, stacked, where the training left each client one. ``points`` limits of either
    disparity make up the frontier, from none to as much as the labels or the model have.
    """
    counts = contingency(network, model, federation, clients, own)
    said, labels, n = counts.sum(2), counts.sum(3), counts.sum()
    found, accuracy = decompose(said), float(np.trace(counts.sum((0, 1))) / n)
    rates = said[:, :, 1].sum(0) / np.maximum(said.sum((0, 2)), 1)
    apart = np.array([_gap(client) for client in said])
    # Of independent samples the estimate of I(A; B) is so much too high on average, to first order.
    bias = (said.shape[1] - 1) / (2 * n * np.log(2))
    frontier = None
    if points and len(clients) <= MOST_CLIENTS:
        frontier = _frontier(Frontier(labels), decompose(labels), found, points)
    return {
        "attribute": federation.meta.groups.name,
        "groups": federation.meta.groups.values,
        "predictions": "own" if own else "released",
        "clients": clients.tolist(),
        "samples": int(n),
        "counts": counts.tolist(),
        "message_bytes": counts[0].astype(np.int32).nbytes,
        **found._asdict(),
        "bias": {"total": float(bias), "local": float(bias * (said.sum((1, 2)) > 0).sum())},
        "accuracy": accuracy,
        "parity": {
            "rates": rates.tolist(),
            "difference": _gap(said.sum(0)),
            "local_difference": float(apart @ said.sum((1, 2)) / n),
        },
        "frontier": frontier,
    }


def _gap(counts: np.ndarray) -> float:
    """The largest difference between two groups' rates of the second class, of ``counts`` ``[groups, 2]``."""
    there = counts[counts.sum(1) > 0]
    return float(np.ptp(there[:, 1] / there.sum(1))) if len(there) else 0.0


def _frontier(frontier: "Frontier", labels: Disparity, found: Disparity, points: int) -> dict:
    axes = [np.linspace(0, max(pair), points) for pair in zip(labels[:2], found[:2], strict=True)]
    best = [[frontier.accuracy(g, c) for c in axes[1]] for g in axes[0]]
    own = frontier.accuracy(found.total, found.local)
    return {"total": axes[0].tolist(), "local": axes[1].tolist(), "accuracy": best, "best": own}


def contingency(
    network: Network, model: Tree, federation: Federation, clients: np.ndarray, own: Tree | None = None
) -> np.ndarray:
    """How often each client has which group, label and prediction: int64 ``[clients, groups, classes, classes]``.

    Predictions are those of ``model``, or of each client's slice of ``own``.

    These are the counts that a client would send after an evaluation on all its measured samples.
    """
    groups, classes = len(federation.meta.groups.values), federation.meta.classes
    counts = np.zeros((len(clients), groups, classes, classes), np.int64)
    for row, client in enumerate(clients):
        predicts = {name: value[int(client)] for name, value in own.items()} if own else model
        mine = np.array(federation.indices[federation.offsets[client] : federation.offsets[client + 1]])
        mine = mine[federation.measured(mine)]
        for first in range(0, len(mine), 8192):
            positions = mine[first : first + 8192]
            with torch.no_grad():
                predicted = network.apply(predicts, torch.from_numpy(federation.x[positions])).argmax(1).numpy()
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
    unique = _unique(p)
    if unique > min(total, local) + SLACK:
        raise ArithmeticError(f"the solver stopped short: {unique} bits are unique of {total} global and {local} local")
    unique = min(unique, total, local)
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
        # Cells of a size of 1 or so, however many clients: the solver is at its best with those.
        self.p = counts / counts.mean()

    def accuracy(self, at_most_global: float, at_most_local: float) -> float | None:
        """The accuracy at these limits, in bits; None where the solver finds none."""
        import cvxpy as cp

        there = self.p.sum(2)
        said = [cp.Variable(there.shape, nonneg=True) for _ in range(2)]
        ones = sum(cp.multiply(self.p[:, :, y], said[y]) for y in range(2))  # P(s, z, Y^ = 1)
        limits = [q <= 1 for q in said]
        limits += _at_most(cp.sum(ones, axis=0, keepdims=True), there.sum(0, keepdims=True), at_most_global)
        limits += _at_most(ones, there, at_most_local)
        wrong = cp.sum(cp.multiply(self.p[:, :, 0], said[0]) + cp.multiply(self.p[:, :, 1], 1 - said[1]))
        problem = cp.Problem(cp.Minimize(wrong), limits)
        with warnings.catch_warnings():
            # It stops a little short of its own accuracy where a limit is just slack, which is closer than is shown.
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            try:
                problem.solve(solver=cp.CLARABEL)
            except cp.SolverError:
                return None
        # The last digits differ from machine to machine.
        return None if problem.value is None else round(1 - float(problem.value / self.p.sum()), 6)


def _at_most(ones, there: np.ndarray, limit: float) -> list:
    """That I(Z; Y^ | row) is at most ``limit``, of P(row, z, Y^ = 1) and P(row, z), up to a factor.

    At 0 all groups of a row have the same rate of ones, which is linear."""
    import cvxpy as cp

    whole = there.sum(1, keepdims=True)
    share = np.divide(there, whole, out=np.zeros_like(there), where=whole > 0)
    even = cp.multiply(share, cp.sum(ones, axis=1, keepdims=True) @ np.ones((1, there.shape[1])))
    if limit <= NOTHING:
        return [ones == even]
    return [BITS * cp.sum(cp.rel_entr(ones, even) + cp.rel_entr(there - ones, there - even)) <= limit * there.sum()]
