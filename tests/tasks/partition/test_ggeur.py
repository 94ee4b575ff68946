"""GGEUR: what is pooled is exact, what is drawn has its covariance, what was measured stays, what is sent counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import tree
from tasks.artifacts import read_tree
from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.index import indexed
from tasks.partition.refine import GGEUR, Partitioned, Wire
from tasks.partition.refine.ggeur import guide
from tasks.partition.refine.moments import Moments


def parted(x: np.ndarray, y: np.ndarray, owner: np.ndarray, validation: float = 0.0) -> Partitioned:
    index = indexed(owner, int(owner.max()) + 1, validation, generator(0, "order"))
    return Partitioned(x.astype(np.float32), y, x[:3].astype(np.float32), index, "table", int(y.max()) + 1)


def drawn(clients: int = 4, classes: int = 3, each: int = 8, p: int = 5, seed: int = 0, **more) -> Partitioned:
    """Every client with as many samples of every class, each class with a shape of its own."""
    rng = np.random.default_rng(seed)
    y, owner = np.tile(np.arange(classes), clients * each), np.repeat(np.arange(clients), classes * each)
    shapes = rng.normal(size=(classes, p, p))
    x = np.einsum("ni,nij->nj", rng.normal(size=(len(y), p)), shapes[y]) + 3 * rng.normal(size=(classes, p))[y]
    return parted(x, y, owner, **more)


def refine(method: GGEUR, data: Partitioned, folder: Path, key: int = 7) -> tuple[Partitioned, Wire]:
    wire = Wire(folder / "exchange", data.clients)
    return method.refine(data, key, wire), wire


def of(data: Partitioned, client: int, c: int) -> np.ndarray:
    """A client's training samples of a class."""
    mine = data.train(client)
    return data.x[mine[data.y[mine] == c]]


def made(data: Partitioned) -> np.ndarray:
    return data.x[len(data.y) - data.synthetic :]


def dense(triangle: torch.Tensor) -> np.ndarray:
    p = int(np.sqrt(2 * len(triangle)))
    full = np.zeros((p, p))
    full[np.triu_indices(p)] = triangle
    return full + np.triu(full, 1).T


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(1, 6), st.integers(0, 10**6))
def test_pooled_moments_are_those_of_all_samples(sizes, p, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + rng.normal(size=p) for n in sizes]
    first, *others = (Moments.of(part) for part in parts)
    for other in others:
        first = first | other
    every = np.concatenate(parts)
    assert first.n == len(every)
    np.testing.assert_allclose(first.mean, every.mean(0), atol=1e-10)
    np.testing.assert_allclose(first.covariance, np.cov(every.T, bias=True).reshape(p, p), atol=1e-10)


def test_what_the_server_sends_is_the_covariance_of_all_training_samples(tmp_path):
    data = drawn(validation=0.25)
    refine(GGEUR(min_count=1), data, tmp_path)
    sent, trained = read_tree(tmp_path / "exchange" / "broadcast.safetensors"), data.index.indices[data.trains]
    for c in range(3):
        every = data.x[trained[data.y[trained] == c]].astype(np.float64)
        np.testing.assert_allclose(dense(sent["sigma/covariance"][c]), np.cov(every.T, bias=True), rtol=1e-5, atol=1e-5)
    # What validates and what tests could be anything.
    x = data.x.copy()
    x[data.index.indices[~data.trains]] = 1e6
    other = replace(data, x=x, test_x=data.test_x + 1e6)
    refine(GGEUR(min_count=1), other, tmp_path / "other")
    again = read_tree(tmp_path / "other" / "exchange" / "broadcast.safetensors")
    assert torch.equal(sent["sigma/covariance"], again["sigma/covariance"])


def lonely(tmp_path: Path, **knobs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1e5 draws around a single sample: the draws, the sample, and the covariance of the class."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) * 0.5
    data = parted(x, np.zeros(400, np.int64), np.array([0] + [1] * 399))
    filled, _ = refine(GGEUR(n_target=100_001, draws=100_000, min_count=1, **knobs), data, tmp_path)
    noisy = filled.x[filled.train(0)[1:]]
    return noisy, x[0], np.cov(x.T, bias=True)


@pytest.mark.parametrize("scale", ["sqrt", "linear"])
def test_draws_around_a_sample_have_its_mean_and_the_covariance_of_the_class(tmp_path, scale):
    noisy, z, sigma = lonely(tmp_path, eig_scale=scale)
    wanted = sigma if scale == "sqrt" else sigma @ sigma
    n = len(noisy)
    assert n == 100_000
    assert (np.abs(noisy.mean(0) - z) < 4 * np.sqrt(np.diag(wanted) / n)).all()
    # The variance of an entry of a covariance of normal samples.
    error = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / n)
    assert (np.abs(np.cov(noisy.T.astype(np.float64)) - wanted) < 4 * error).all()


def test_the_largest_pairs_alone_leave_the_other_directions_as_they_are(tmp_path):
    noisy, z, sigma = lonely(tmp_path, top_q=2)
    values, vectors = np.linalg.eigh(sigma)
    along = (noisy - z) @ vectors
    assert np.abs(along[:, :2]).max() < 1e-4
    np.testing.assert_allclose(along[:, 2:].var(0), values[2:], rtol=0.05)


def test_the_largest_eigenvalues_are_stretched_and_not_the_smallest(tmp_path):
    noisy, z, sigma = lonely(tmp_path, stretch=[9.0, 4.0])
    values, vectors = np.linalg.eigh(sigma)
    np.testing.assert_allclose(((noisy - z) @ vectors).var(0), values * [1, 1, 4, 9], rtol=0.05)


def test_isotropic_noise_has_the_same_total_variance(tmp_path):
    noisy, z, sigma = lonely(tmp_path, noise="isotropic")
    np.testing.assert_allclose(np.cov((noisy - z).T), np.trace(sigma) / 4 * np.eye(4), atol=0.03 * np.trace(sigma))


@pytest.mark.parametrize("around", ["own", "prototypes", "own_and_prototypes"])
def test_measured_samples_survive_and_classes_are_filled_to_the_target(tmp_path, around):
    rng = np.random.default_rng(3)
    y, owner = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    y[owner == 0] = 0
    data = parted(rng.normal(size=(200, 3)), y, owner, validation=0.2)
    filled, _ = refine(GGEUR(n_target=12, around=around, min_count=2), data, tmp_path)
    assert filled.synthetic > 0
    assert np.array_equal(filled.x[:200], data.x) and np.array_equal(filled.y[:200], data.y)
    for client in range(5):
        kept = filled.train(client)
        assert np.array_equal(kept[kept < 200], data.train(client))
        start, stop = data.index.offsets[client : client + 2]
        held_out = data.index.indices[start + data.index.train_sizes[client] : stop]
        stop = filled.index.offsets[client + 1]
        assert np.array_equal(filled.index.indices[stop - len(held_out) : stop], held_out)
        for c in range(4):
            n = len(of(data, client, c))
            assert len(of(filled, client, c)) == (0 if around == "own" and n == 0 else max(n, 12))
    assert np.array_equal(np.sort(filled.index.indices), np.arange(len(filled.y)))


def test_without_a_shape_samples_are_duplicated(tmp_path):
    data = drawn(each=6)
    data.x[:] = 5.0 * data.y[:, None]
    filled, _ = refine(GGEUR(n_target=30), data, tmp_path)
    new = len(filled.y) - filled.synthetic
    assert np.array_equal(filled.x[new:], np.repeat(5.0 * filled.y[new:, None], 5, 1).astype(np.float32))


def test_with_nothing_to_fill_the_data_are_the_very_same(tmp_path):
    data = drawn(each=8)
    assert refine(GGEUR(n_target=8), data, tmp_path)[0] is data
    assert refine(GGEUR(n_target=8, around="own_and_prototypes"), data, tmp_path)[0] is data


def test_a_deficit_up_to_the_number_of_samples_uses_each_at_most_once(tmp_path):
    data = drawn(clients=1, classes=1, each=20)
    filled, _ = refine(GGEUR(n_target=35, noise="none"), data, tmp_path)
    assert len(np.unique(made(filled), axis=0)) == 15
    more, _ = refine(GGEUR(n_target=55, noise="none"), data, tmp_path)
    assert len(made(more)) == 35 and len(np.unique(made(more), axis=0)) <= 20


def test_prototypes_are_the_means_that_clients_sent(tmp_path):
    data = drawn(each=8)
    means = {(k, c): of(data, k, c).astype(np.float64).mean(0) for k in range(4) for c in range(3)}
    pooled, _ = refine(GGEUR(n_target=60, around="prototypes", noise="none"), data, tmp_path)
    mixed, _ = refine(GGEUR(n_target=60, around="own_and_prototypes", noise="none"), data, tmp_path)
    for k in range(4):
        for c in range(3):
            own = of(data, k, c)
            every = np.array([means[other, c] for other in range(4)], np.float32)
            found = np.unique(of(pooled, k, c)[8:], axis=0)
            np.testing.assert_allclose(found, np.unique(every, axis=0), rtol=1e-6)
            # Around own samples and around what the others sent; never around what one sent oneself.
            for z in of(mixed, k, c)[8:]:
                near = np.abs(np.concatenate([own, np.delete(every, k, 0)]) - z).max(1)
                assert near.min() < 1e-6 and np.abs(every[k] - z).max() > 1e-3


def test_turning_all_features_turns_the_shape(tmp_path):
    data = drawn(each=12)
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0].astype(np.float32)
    method = GGEUR(n_target=20, min_count=1)
    plain, _ = refine(method, data, tmp_path / "a")
    turned, _ = refine(method, replace(data, x=data.x @ q), tmp_path / "b")
    first, second = (read_tree(tmp_path / name / "exchange" / "broadcast.safetensors") for name in ("a", "b"))
    still, _ = refine(GGEUR(n_target=20, min_count=1, noise="none"), data, tmp_path / "c")
    for c in range(3):
        np.testing.assert_allclose(
            dense(second["sigma/covariance"][c]), q.T @ dense(first["sigma/covariance"][c]) @ q, atol=1e-4
        )
        root, other = (method.root(tree.take(tree.part(sent, "sigma"), c)) for sent in (first, second))
        rows = np.flatnonzero(plain.y == c)
        rows = rows[rows >= len(data.y)]
        # The same normal vectors, turned with the features, give the same samples, turned.
        normal = (plain.x[rows] - still.x[rows]) @ np.linalg.inv(root)
        again = (turned.x[rows] - still.x[rows] @ q) @ np.linalg.inv(other)
        np.testing.assert_allclose(again, normal, atol=2e-3)
        samples = still.x[rows] @ q + (normal @ q) @ other
        np.testing.assert_allclose(samples, plain.x[rows] @ q, atol=2e-3)


def test_every_client_draws_from_a_key_of_its_own(tmp_path):
    data = drawn(each=8)
    filled, _ = refine(GGEUR(n_target=12), data, tmp_path)
    again, _ = refine(GGEUR(n_target=12), data, tmp_path)
    assert np.array_equal(filled.x, again.x)
    noise = [of(filled, k, 0)[8:] - of(refine(GGEUR(n_target=12, noise="none"), data, tmp_path)[0], k, 0)[8:]
             for k in range(4)]  # fmt: skip
    assert min(np.abs(noise[0] - other).max() for other in noise[1:]) > 0.1
    other_seed, _ = refine(GGEUR(n_target=12), data, tmp_path, key=8)
    assert not np.array_equal(filled.x, other_seed.x)


@pytest.mark.parametrize(("around", "top_q"), [("own", None), ("prototypes", None), ("own", 2)])
def test_the_wire_costs_what_the_formula_says(tmp_path, around, top_q):
    clients, classes, p = 4, 3, 5
    data = drawn(clients, classes, p=p)
    _, wire = refine(GGEUR(around=around, top_q=top_q), data, tmp_path)
    assert (wire.up == classes * (8 + 4 * p + 2 * p * (p + 1))).all()
    shape = 2 * p * (p + 1) * classes if top_q is None else 4 * top_q * (p + 1) * classes
    # Besides the prototypes, how many there are of each class.
    prototypes = 4 * p * classes * clients + 8 * classes if around == "prototypes" else 0
    assert (wire.down == shape + prototypes).all()
    files = sorted((tmp_path / "exchange").glob("client-*"))
    assert [tree.nbytes(read_tree(file)) for file in files] == wire.up.tolist()
    assert wire.total.bytes_up == wire.up.sum() and wire.total.bytes_down == clients * (shape + prototypes)


def uneven() -> Partitioned:
    """Clients with 1, 2, 3 and 9 samples of the one class."""
    owner = np.repeat(np.arange(4), (1, 2, 3, 9))
    return parted(np.random.default_rng(2).normal(size=(15, 6)), np.zeros(15, np.int64), owner)


def test_one_or_two_samples_can_be_read_out_of_what_was_sent(tmp_path):
    data = uneven()
    _, wire = refine(GGEUR(min_count=1), data, tmp_path)
    assert wire.exposed.tolist() == [1, 2, 0, 0]
    assert wire.notes == {"statistics": 4, "withheld_statistics": 0, "of_one_sample": 1, "of_two_samples": 1}
    one, two = (read_tree(tmp_path / "exchange" / f"client-0000{k}.safetensors") for k in (0, 1))
    assert np.array_equal(one["mean"].numpy(), of(data, 0, 0))
    values, vectors = np.linalg.eigh(dense(two["covariance"][0]))
    apart = np.sqrt(values[-1]) * vectors[:, -1]
    guess = np.array([two["mean"][0].numpy() + apart, two["mean"][0].numpy() - apart])
    truth = of(data, 1, 0)
    np.testing.assert_allclose(guess[guess[:, 0].argsort()], truth[truth[:, 0].argsort()], atol=1e-5)


@pytest.mark.parametrize(("least", "sent", "exposed"), [(1, 4, 3), (2, 3, 2), (3, 2, 0), (10, 0, 0)])
def test_what_has_too_few_samples_is_not_sent(tmp_path, least, sent, exposed):
    data = uneven()
    filled, wire = refine(GGEUR(min_count=least, around="prototypes", n_target=20), data, tmp_path)
    assert wire.notes["statistics"] == sent and wire.notes["withheld_statistics"] == 4 - sent
    assert wire.total.exposed_samples == exposed
    answer = read_tree(tmp_path / "exchange" / "broadcast.safetensors")
    assert len(answer["prototypes"]) == answer["holders"].sum() == sent
    assert filled.index.train_sizes.tolist() == ([20] * 4 if sent else [1, 2, 3, 9])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.floats(0.05, 1.0))
def test_the_guides_are_the_fewest_that_hold_the_share(counts, threshold):
    counts = np.array(counts)[:, None]
    chosen = guide(counts, threshold)[:, 0]
    held, total = counts[chosen, 0], counts.sum()
    assert held.sum() >= threshold * total and (held > 0).all()
    if len(held):
        assert held.sum() - held.min() < threshold * total
        assert counts[~chosen, 0].max(initial=0) <= held.min()


def test_only_guides_shape_the_noise(tmp_path):
    data = drawn(clients=2, classes=1, each=10)
    big = data.x[data.train(1)]
    data = parted(np.concatenate([data.x, big + 40]), np.zeros(30, np.int64), np.repeat([0, 1], (10, 20)))
    refine(GGEUR(guide_threshold=0.6), data, tmp_path)
    sent = read_tree(tmp_path / "exchange" / "broadcast.safetensors")
    alone = np.cov(data.x[data.train(1)].T.astype(np.float64), bias=True)
    np.testing.assert_allclose(dense(sent["sigma/covariance"][0]), alone, rtol=1e-4, atol=1e-4)


def test_what_makes_no_sense_is_refused(tmp_path):
    data = drawn()
    grouped = replace(data, groups=np.zeros(len(data.y), np.int64))
    with pytest.raises(Refused, match="belongs to no group"):
        refine(GGEUR(around="prototypes"), grouped, tmp_path)
    with pytest.raises(Refused, match="there are 5 features"):
        refine(GGEUR(top_q=6), data, tmp_path)
    with pytest.raises(ValidationError, match="must be at most 10 x draws"):
        GGEUR(n_target=5001)


def test_a_sample_made_around_another_is_of_its_group(tmp_path):
    data = drawn(clients=2, classes=2, each=6)
    data = replace(data, groups=data.y * 10)
    filled, _ = refine(GGEUR(n_target=30), data, tmp_path)
    assert np.array_equal(filled.groups, filled.y * 10)
