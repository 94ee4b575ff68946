"""What a schedule did, read off its steps."""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.train.schedules.fleet import Step


def arrivals(steps: Sequence[Step]) -> Iterator[dict[str, float]]:
    """One row for each upload that was taken in: by which step, of whom, how old, when sent and arrived, its weight."""
    for step in steps:
        for flight, staleness, weight in zip(step.flights, step.staleness, step.weights / step.over, strict=True):
            yield {
                "step": step.number,
                "seconds": step.seconds,
                "client": flight.client,
                "turn": flight.turn,
                "version": flight.version,
                "staleness": int(staleness),
                "local_steps": flight.steps,
                "sent": flight.sent,
                "arrived": flight.due,
                "weight": float(weight),
            }


def review(steps: Sequence[Step], weights: np.ndarray, cohort: int) -> dict[str, float | None]:
    """A schedule in a few numbers.

    ``schedule_bias`` says how far the objective that it minimises is from the one that was meant, whose ``weights`` are
    p_i up to a constant. ``idle`` is the share of the time in which those ``cohort`` clients that should be at
    work were not.
    """
    ages = np.concatenate([step.staleness for step in steps]) if steps else np.zeros(0)
    end = steps[-1].seconds if steps else 0.0
    worked = sum(min(flight.due, end) - flight.sent for step in steps for flight in step.sent)
    return {
        "schedule_bias": bias(steps, weights),
        "staleness": float(ages.mean()) if len(ages) else None,
        "max_staleness": int(ages.max()) if len(ages) else None,
        "idle": max(1.0 - worked / (cohort * end), 0.0) if end else None,
    }


def bias(steps: Sequence[Step], weights: np.ndarray) -> float:
    """max_i |d_i f_i - p_i|, where d_i f_i is the share that client i had of all weight that was given.

    Source: Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates", JMLR 24, 2023: a schedule minimises sum_i d_i f_i L_i.
    """
    given = np.zeros(len(weights))
    for step in steps:
        np.add.at(given, [flight.client for flight in step.flights], step.weights / step.over)
    return float(np.abs(given / (given.sum() or 1.0) - weights / weights.sum()).max())
