"""Partial information decomposition of disparities, and the frontier of what is attainable, against closed forms."""

import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks import params as schema
from tasks.aggregate.fairness import Frontier, decompose, information
from tasks.aggregate.stage import aggregate
from tasks.artifacts import read_json, read_tree, write_json, write_tree
from tasks.partition.federation import Federation
from tasks.tracking import Tracker


def joint(rule) -> np.ndarray:
    """P(s, z, y^) of uniform z and s and y^ = rule(z, s)."""
    table = np.zeros((2, 2, 2))
    for s in range(2):
        for z in range(2):
            table[s, z, rule(z, s)] += 0.25
    return table


def test_the_canonical_examples_have_their_bit_in_the_right_place():
    unique = decompose(joint(lambda z, s: z))
    assert unique == pytest.approx((1, 1, 1, 0, 0), abs=1e-7)
    masked = decompose(joint(lambda z, s: z ^ s))
    assert masked == pytest.approx((0, 1, 0, 0, 1), abs=1e-7)
    everywhere = np.zeros((2, 2, 2))
    everywhere[0, 0, 0] = everywhere[1, 1, 1] = 0.5
    assert decompose(everywhere) == pytest.approx((1, 0, 0, 1, 0), abs=1e-7)


def test_the_two_and_gates():
    gate = decompose(joint(lambda z, s: z & s))
    assert (gate.unique, gate.redundant, gate.masked) == pytest.approx((0.3113, 0, 0.1887), abs=1e-4)
    # Z = Y^ and S, with Y^ and S uniform.
    table = np.zeros((2, 2, 2))
    for s in range(2):
        for y in range(2):
            table[s, y & s, y] += 0.25
    other = decompose(table)
    assert (other.unique, other.redundant, other.masked) == pytest.approx((0, 0.3113, 0.5), abs=1e-4)


tables = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(12, 0.5)).reshape(3, 2, 2)
)


@settings(max_examples=40, deadline=None)
@given(p=tables)
def test_the_parts_add_up_none_is_negative_and_pinsker_holds(p):
    found = decompose(p)
    assert found.total == pytest.approx(found.unique + found.redundant, abs=1e-12)
    assert found.local == pytest.approx(found.unique + found.masked, abs=1e-12)
    assert min(found) >= -1e-9
    rate = p[:, :, 1].sum(0) / p.sum((0, 2))
    share = p.sum((0, 2))[1]
    assert abs(rate[1] - rate[0]) <= math.sqrt(found.total * math.log(2) / (2 * share * (1 - share))) + 1e-9


@settings(max_examples=15, deadline=None)
@given(p=tables)
def test_names_do_not_matter_and_neither_do_clients_that_are_alike(p):
    found = decompose(p)
    for other in (p[::-1], p[:, ::-1], p[:, :, ::-1], np.concatenate([p / 2, p / 2])):
        assert decompose(other) == pytest.approx(found, abs=1e-6)


def test_with_one_client_all_disparity_is_unique():
    p = np.random.default_rng(3).dirichlet(np.ones(4)).reshape(1, 2, 2)
    found = decompose(p)
    assert (found.redundant, found.masked) == pytest.approx((0, 0), abs=1e-8)
    assert found.unique == pytest.approx(information(p[0]), abs=1e-8)


def test_where_groups_are_spread_evenly_nothing_is_redundant():
    """I(Z; S) = 0 bounds the redundant part, so fairness within all clients is fairness for all."""
    rng = np.random.default_rng(5)
    rates = rng.random((4, 2))
    p = (
        np.stack([rates, 1 - rates], -1)
        * np.array([0.3, 0.7])[None, :, None]
        * rng.dirichlet(np.ones(4))[:, None, None]
    )
    found = decompose(p)
    assert found.redundant == pytest.approx(0, abs=1e-7)
    assert found.total <= found.local + 1e-9


def test_where_clients_add_nothing_to_the_prediction_nothing_is_masked():
    """Z - Y^ - S is a Markov chain."""
    rng = np.random.default_rng(6)
    both, given_prediction = rng.dirichlet(np.ones(4)).reshape(2, 2), rng.dirichlet(np.ones(3), 2)
    p = both[None] * given_prediction.T[:, None, :]
    assert decompose(p).masked == pytest.approx(0, abs=1e-7)


def scenario(name: str, a: float = 0.9) -> np.ndarray:
    """P(s, z, y) with P(Z = 1) = 1/2, P(Y = 1 | Z = 1) = 0.7 and P(Y = 1 | Z = 0) = 0.3."""
    p = np.zeros((2, 2, 2))
    for z in range(2):
        for y in range(2):
            both = 0.5 * (0.7 if y == z else 0.3)
            side = {"even": 0.5, "group": a if z else 1 - a, "label": a if y == z else 1 - a}[name]
            p[1, z, y], p[0, z, y] = both * side, both * (1 - side)
    return p


@pytest.mark.parametrize(
    ("name", "a", "expected"),
    [("even", 0.5, (0.8, 0.8, 0.8)), ("group", 0.9, (0.8, 0.96, 0.8)), ("label", 0.95, (0.8, 0.55, 0.55))],
)
def test_the_best_fair_accuracy_is_the_closed_form(name, a, expected):
    p = scenario(name, a)
    frontier, free = Frontier(p), 10.0
    limits = [(0.0, free), (free, 0.0), (0.0, 0.0)]
    assert [frontier.accuracy(*limit) for limit in limits] == pytest.approx(expected, abs=1e-6)
    # The linear program at 0 and the convex program just above it.
    assert frontier.accuracy(2e-9, free) == pytest.approx(expected[0], abs=1e-3)
    # 1 - min(p, 1 - p) |r1 - r0| globally, and the same in every client locally.
    rate = p[:, :, 1] / p.sum(2)
    within = p.sum(2).min(1) @ np.abs(rate[:, 1] - rate[:, 0])
    assert frontier.accuracy(free, 0.0) == pytest.approx(1 - within, abs=1e-6)


def test_more_room_never_costs_accuracy_and_the_frontier_is_concave():
    frontier = Frontier(scenario("group"))
    line = [frontier.accuracy(0.02 * step, 0.01 * step) for step in range(6)]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(line))
    assert all(b >= (a + c) / 2 - 1e-5 for a, b, c in zip(line, line[1:], line[2:], strict=False))
    assert frontier.accuracy(10, 10) == pytest.approx(1, abs=1e-7)


@pytest.fixture
def two_classes(partition, trained):
    """The artefacts of the small federation with labels that lean on a feature and on the group, and a model of it."""
    meta = read_json(partition / "meta.json")
    write_json(partition / "meta.json", meta | {"classes": 2, "class_names": ["no", "yes"]})
    for prefix in ("", "test_"):
        x = np.load(partition / f"{prefix}x.npy")
        np.save(partition / f"{prefix}y.npy", (x[:, 0] + 0.5 * x[:, 3] > 0).astype(np.int64))
    weights = torch.tensor([[0.0, 0, 0, 0], [1.0, 0.2, 0, 0.3]])
    write_tree(trained / "model.safetensors", {"1.weight": weights, "1.bias": torch.tensor([0.0, 0.1])})
    return partition.parent


def settings_with(points: int):
    section = {"evaluate": {"frontier": points}}
    sections = {"model": {"name": "logistic"}, "train": {"cohort": 5}, "aggregate": section}
    return schema.build({"partition": {"clients": 12}} | sections)


def test_what_the_server_makes_of_the_clients_counts_is_what_all_samples_in_one_place_say(two_classes):
    aggregate(settings_with(3), two_classes, Tracker("aggregate"))
    found = read_json(two_classes / "aggregate" / "fairness.json")
    federation, model = Federation.open(two_classes / "partition"), read_tree(two_classes / "train/model.safetensors")
    said = (torch.from_numpy(np.array(federation.x)) @ model["1.weight"].T + model["1.bias"]).argmax(1).numpy()
    pooled, counts = np.zeros((2, 2), int), np.zeros((12, 2, 2, 2), int)
    for client in range(12):
        for i in federation.indices[federation.offsets[client] : federation.offsets[client + 1]]:
            pooled[federation.groups[i], said[i]] += 1
            counts[client, federation.groups[i], federation.y[i], said[i]] += 1
    assert found["counts"] == counts.tolist()
    assert found["message_bytes"] == 32
    assert found["total"] == pytest.approx(information(pooled), abs=1e-12)
    assert found["accuracy"] == pytest.approx((said == federation.y).mean())
    rates = pooled[:, 1] / pooled.sum(1)
    assert found["parity"]["difference"] == pytest.approx(abs(rates[1] - rates[0]))
    assert found["bias"]["local"] == pytest.approx(12 * found["bias"]["total"])
    metrics = read_json(two_classes.parent / "metrics" / "aggregate.json")
    parts = ("unique", "redundant", "masked")
    assert metrics["fairness_global"] == found["total"]
    assert all(metrics[f"fairness_{part}"] == found[part] for part in ("local", *parts))


def test_clients_with_models_of_their_own_are_judged_by_those(two_classes):
    """Of two groups, half of the clients see the one in everybody, the others its opposite: a bit that cancels."""
    federation = Federation.open(two_classes / "partition")
    x = np.array(federation.x)
    x[:, 0] = np.where(federation.groups == 1, 1.0, -1.0)
    np.save(two_classes / "partition" / "x.npy", x)
    weights = torch.zeros(12, 2, 4)
    weights[:, 1, 0] = torch.tensor([1.0, -1.0]).repeat(6)
    write_tree(two_classes / "train" / "personal.safetensors", {"1.weight": weights, "1.bias": torch.zeros(12, 2)})
    aggregate(settings_with(0), two_classes, Tracker("aggregate"))
    found, counts = (read_json(two_classes / "aggregate" / "fairness.json")[name] for name in ("predictions", "counts"))
    assert found == "own"
    for client, table in enumerate(np.array(counts).sum(2)):
        other = 1 - np.eye(2, dtype=int) if client % 2 else np.eye(2, dtype=int)
        assert (table[other == 0] == 0).all()


def test_no_model_is_above_the_frontier_at_its_own_disparities(two_classes):
    aggregate(settings_with(3), two_classes, Tracker("aggregate"))
    found = read_json(two_classes / "aggregate" / "fairness.json")
    frontier = found["frontier"]
    assert found["accuracy"] <= frontier["best"] + 1e-5
    best = np.array(frontier["accuracy"])
    assert (np.diff(best, axis=0) >= -1e-5).all() and (np.diff(best, axis=1) >= -1e-5).all()
    # As much disparity as the labels have allows the labels.
    assert best[-1, -1] == pytest.approx(1, abs=1e-4) and best[0, 0] < 0.95


def test_without_a_grid_there_is_no_frontier(two_classes):
    aggregate(settings_with(0), two_classes, Tracker("aggregate"))
    assert read_json(two_classes / "aggregate" / "fairness.json")["frontier"] is None


def test_three_classes_are_not_assessed(trained):
    aggregate(settings_with(3), trained.parent, Tracker("aggregate"))
    assert not (trained.parent / "aggregate" / "fairness.json").exists()


def test_the_examples_of_the_page_on_fairness_are_parameters():
    page = (Path(__file__).resolve().parents[3] / "docs" / "fairness.md").read_text()
    blocks = [
        YAML(typ="safe").load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]
    assert [next(iter(block)) for block in blocks] == ["aggregate", "partition", "train"]
    for block in blocks:
        schema.build({"model": {"name": "logistic"}} | block | {"train": block.get("train", {}) | {"cohort": 2}})
