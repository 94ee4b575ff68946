"""Which sample a client looks at in which step: drawn for a whole stack of clients at once, from each client's key."""

import numpy as np

from tasks import keys
from tasks.train.work import Batches


def order(
    batches: Batches, sizes: np.ndarray, own: np.ndarray, steps: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The batches of some clients.

    Parameters
    ----------
    batches : how each client goes through its data.
    sizes : samples of each client, ``[clients]``.
    own : each client's key for this round, int64 ``[clients]``.
    steps : how many local steps each takes, int64 ``[clients]``, if not as many as ``batches`` says.

    Returns
    -------
    positions : int64 ``[clients, steps, batch]``, positions within the client's samples, -1 where there is none: in the
        ragged last batch of a pass, and in steps that a small client does not take.
    steps : int64 ``[clients]``, local steps of each client.
    """
    longest = int(sizes.max(initial=0))
    width = min(batches.size or longest, longest)
    passes = -(-sizes // max(width, 1))
    if steps is None:
        steps = batches.epochs * passes if batches.count is None else np.full(len(sizes), batches.count)
    positions = np.full((len(sizes), int(steps.max(initial=0)), width), -1, np.int64)
    valid = np.arange(longest) < sizes[:, None]
    for epoch in range(int((-(-steps // passes)).max(initial=0))):
        shuffled = keys.shuffles(own + np.int64(epoch), longest)
        shuffled[~valid] = np.iinfo(np.uint64).max
        ranked = np.where(valid, np.argsort(shuffled, axis=1, kind="stable"), -1)
        most = int(passes.max(initial=0))
        padded = np.pad(ranked, ((0, 0), (0, most * width - longest)), constant_values=-1)
        clients, step = np.nonzero(np.arange(most) < np.minimum(passes, steps - epoch * passes)[:, None])
        positions[clients, epoch * passes[clients] + step] = padded.reshape(len(sizes), most, width)[clients, step]
    return positions, steps
