"""The card's numbers are those of their definitions, computed another way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from tasks.keys import generator
from tasks.partition.card import LISTED, SHOWN, Card, jensen_shannon, measure
from tasks.partition.index import indexed
from tasks.partition.picture import draw


def card_of(owner: np.ndarray, y: np.ndarray, classes: int) -> Card:
    return measure(y, indexed(owner, int(owner.max()) + 1, 0.1, generator(0)), classes)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 10**6))
def test_numbers_agree_with_scipy_and_with_counting_by_hand(clients, classes, seed):
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(clients), rng.integers(0, clients, 60)])
    y = rng.integers(0, classes, len(owner))
    card = card_of(owner, y, classes)
    counts = np.array([[((owner == c) & (y == k)).sum() for k in range(classes)] for c in range(clients)])
    p = counts / counts.sum(1, keepdims=True)
    assert np.array_equal(card.counts, counts) and np.array_equal(card.labels, counts.sum(0))
    assert card.total_variation == pytest.approx(np.abs(p - counts.sum(0) / len(y)).sum(1) / 2)
    assert card.effective_classes == pytest.approx(np.exp([entropy(row) for row in p]))
    pairs = [[jensenshannon(a, b, base=2) ** 2 for b in p] for a in p]
    assert np.allclose(card.divergence, np.nan_to_num(pairs), atol=1e-9)
    sizes = counts.sum(1)
    assert card.gini == pytest.approx(np.abs(sizes[:, None] - sizes).sum() / (2 * clients * sizes.sum()))


def test_the_ends_of_the_scales():
    alike = card_of(np.repeat(np.arange(4), 10), np.tile(np.arange(5), 8), 5).numbers()
    assert alike["label_divergence"] == alike["total_variation"] == alike["size_gini"] == 0
    assert alike["effective_classes"] == pytest.approx(5)
    apart = card_of(np.repeat(np.arange(4), 10), np.repeat(np.arange(4), 10), 4).numbers()
    assert apart["label_divergence"] == 1 and apart["total_variation"] == 0.75 and apart["effective_classes"] == 1


def test_divergence_is_symmetric_and_bounded():
    divergence = jensen_shannon(np.random.default_rng(0).integers(0, 5, (30, 4)) + np.eye(30, 4, dtype=int))
    assert np.allclose(divergence, divergence.T) and np.allclose(np.diag(divergence), 0)
    assert divergence.min() >= 0 and divergence.max() <= 1


def test_counting_in_blocks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    owner, y = np.concatenate([np.arange(50), rng.integers(0, 50, 500)]), rng.integers(0, 7, 550)
    whole = card_of(owner, y, 7)
    monkeypatch.setattr("tasks.partition.card.CELLS", 20)
    assert card_of(owner, y, 7).content() == whole.content()


def test_the_card_of_many_clients_and_classes_stays_small():
    owner = np.arange(30_000)
    card = card_of(owner, owner % 500, 500)
    assert len(card.shown) == SHOWN and len(card.sizes) == 30_000
    listed = card.content()["label_histograms"]
    assert len(listed) * 500 <= LISTED
    assert all(sum(map(int, row.split())) == 1 for row in listed.values())


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (7, 3), (30, 15), (300, 100)])
def test_the_picture_is_the_same_bytes_and_shows_every_class(tmp_path, clients, classes):
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(clients), rng.integers(0, clients, 2000)])
    card = card_of(owner, rng.integers(0, classes, len(owner)), classes)
    names = tuple(f"a class named {k}" for k in range(classes))
    for name in ("a.svg", "b.svg"):
        draw(card, names, "title", tmp_path / name)
    first = (tmp_path / "a.svg").read_text()
    assert first == (tmp_path / "b.svg").read_text()
    assert "<svg" in first and "date" not in first.lower()
