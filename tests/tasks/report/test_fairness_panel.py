"""The panel on fairness says which part of the disparity is there, and what no method can do better."""

import numpy as np
import pytest

from tasks.aggregate.fairness import Frontier, decompose
from tasks.artifacts import write_json
from tasks.report.diagnostics.fairness import fairness
from tasks.report.run import Run
from tests.tasks.report.conftest import Document


def found(counts: np.ndarray, frontier: dict | None = None) -> dict:
    """What the aggregate stage writes, of ``counts`` ``[clients, groups, predictions]``."""
    return {
        "predictions": "released",
        "attribute": "sex",
        "groups": ["f", "m"],
        "clients": list(range(len(counts))),
        "samples": int(counts.sum()),
        "message_bytes": 32,
        **decompose(counts)._asdict(),
        "bias": {"total": 1e-4, "local": 2e-4},
        "accuracy": 0.7,
        "parity": {"rates": [0.1, 0.9], "difference": 0.8, "local_difference": 0.1},
        "frontier": frontier,
    }


@pytest.fixture
def shown(params, tmp_path):
    def document(content: dict) -> Document:
        (tmp_path / "aggregate").mkdir(exist_ok=True)
        write_json(tmp_path / "aggregate" / "fairness.json", content)
        panel = fairness(Run(params, tmp_path))
        return Document(f"<html><body>{panel.html()}</body></html>")

    return document


APART = np.array([[[95, 5], [5, 5]], [[5, 5], [5, 95]]])
CROSSED = np.array([[[90, 10], [10, 90]], [[10, 90], [90, 10]]])
CALM = np.array([[[50, 50], [50, 50]], [[50, 50], [50, 50]]])


def test_each_part_is_told_where_it_is_and_not_where_it_is_not(shown):
    local, overall = "locally fair does not imply globally fair", "globally fair does not imply locally fair"
    assert local in shown(found(APART)).text
    assert "with its own model" not in shown(found(APART)).text
    assert "with its own model" in shown(found(APART) | {"predictions": "own"}).text
    text = shown(found(CROSSED)).text
    assert overall in text and local not in text
    text = shown(found(CALM)).text
    assert "None to speak of" in text and local not in text and overall not in text


def test_the_best_accuracy_under_each_limit_is_that_of_the_frontier(shown):
    labels = np.array([[[60, 40], [30, 10]], [[20, 20], [10, 90]]])
    frontier = Frontier(labels)
    axes = np.linspace(0, decompose(labels).total, 2), np.linspace(0, decompose(labels).local, 2)
    best = [[frontier.accuracy(g, c) for c in axes[1]] for g in axes[0]]
    content = {"total": axes[0].tolist(), "local": axes[1].tolist(), "accuracy": best, "best": 0.9}
    document = shown(found(APART, content))
    _, rows = document.table("Best accuracy")
    assert rows["no limit"] == ["100 %"] or rows["no limit"] == ["100.0 %"]
    assert rows["neither"] == [f"{100 * best[0][0]:.1f} %"]
    assert rows["none over all samples"] == [f"{100 * best[0][1]:.1f} %"]
    assert "the predictions have 70.0 %" in document.text
    assert len(document.all("svg")) == 2


def test_data_without_groups_have_no_such_panel(finished, params):
    assert fairness(Run(params, finished / "artifacts")) is None
