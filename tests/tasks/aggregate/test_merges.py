import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tree
from tasks.aggregate.merges.final import Final
from tasks.aggregate.merges.geometric_median import GeometricMedian, distances
from tasks.aggregate.merges.krum import Krum, square_distances
from tasks.aggregate.merges.mean import Mean
from tasks.aggregate.merges.median import Median
from tasks.aggregate.merges.single import Single
from tasks.aggregate.merges.trimmed_mean import TrimmedMean
from tasks.aggregate.merges.variance_corrected import VarianceCorrected

ROBUST = [
    Median(),
    TrimmedMean(trim=0.25),
    Krum(byzantine=2),
    Krum(byzantine=2, multi=4),
    GeometricMedian(),
]
COMBINATIONS = [Mean(), *ROBUST]


def named(merge):
    return f"{merge.name}-{getattr(merge, 'multi', '')}"


def deltas(n, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "w": scale * torch.randn(n, 3, 4, generator=draw, dtype=torch.float64),
        "b": scale * torch.randn(n, 2, generator=draw, dtype=torch.float64),
    }


def flat(stacked):
    return np.concatenate([value.reshape(len(value), -1).numpy() for value in stacked.values()], 1)


def one(merge, stacked, weights=None):
    """The combination as one vector."""
    n = len(next(iter(stacked.values())))
    return tree.vector(merge.combine(stacked, torch.ones(n) if weights is None else weights)).numpy()


def naive_krum(points, f, m):
    scores = []
    for i, point in enumerate(points):
        others = sorted(float(((point - other) ** 2).sum()) for j, other in enumerate(points) if j != i)
        scores.append(sum(others[: len(points) - f - 2]))
    return points[np.argsort(scores, kind="stable")[:m]].mean(0)


def naive_trimmed(points, k):
    return np.array([np.mean(sorted(column)[k : len(column) - k]) for column in points.T])


@pytest.mark.parametrize("n", [5, 8, 13])
def test_each_agrees_with_a_naive_implementation(n):
    stacked, weights = deltas(n, n), torch.arange(1.0, n + 1, dtype=torch.float64)
    points = flat(stacked)
    same = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(one(Mean(), stacked, weights), np.average(points, 0, weights.numpy()), **same)
    np.testing.assert_allclose(one(Median(), stacked, weights), np.median(points, 0), **same)
    np.testing.assert_allclose(one(TrimmedMean(trim=0.2), stacked), naive_trimmed(points, -(-n // 5)), **same)
    for m in (1, 3):
        np.testing.assert_allclose(one(Krum(byzantine=1, multi=m), stacked), naive_krum(points, 1, m), **same)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(0, 1000))
def test_nothing_near_the_geometric_median_has_a_smaller_total_distance(n, seed):
    stacked = deltas(n, seed)
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    merge = GeometricMedian(iterations=2000, tolerance=1e-12)
    center = merge.combine(stacked, weights)
    least = (weights * distances(stacked, center)).sum()
    for other in range(20):
        nudge = tree.take(deltas(1, seed + other, scale=1e-2), 0)
        assert (weights * distances(stacked, tree.add(center, nudge))).sum() >= least - 1e-7


def test_the_geometric_median_of_points_on_a_line_is_their_weighted_median():
    along = torch.tensor([0.0, 1.0, 2.0, 5.0, 50.0], dtype=torch.float64)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    stacked = {"w": along[:, None] * direction}
    merge = GeometricMedian(iterations=5000, tolerance=0.0)
    np.testing.assert_allclose(one(merge, stacked), 2.0 * direction, atol=1e-4)
    heavy = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(one(merge, stacked, heavy), 5.0 * direction, atol=1e-4)


@pytest.mark.parametrize("size", [1e3, 1e9, 1e18])
@pytest.mark.parametrize("merge", ROBUST, ids=named)
def test_two_arbitrary_outliers_of_nine_cannot_carry_it_off_but_the_mean_they_can(merge, size):
    honest = deltas(7)
    wild = tree.map(lambda v: size * torch.sign(v), deltas(2, 5))
    stacked = tree.map(lambda a, b: torch.cat([a, b]).float(), honest, wild)
    reach = np.abs(flat(honest)).max()
    assert np.abs(one(merge, stacked)).max() <= 2 * reach
    assert np.abs(one(Mean(), stacked)).max() > 0.1 * size


def test_the_geometric_median_breaks_down_only_at_half_of_the_weight():
    honest, wild = deltas(6), tree.map(lambda v: 1e8 + v, deltas(5, 1))
    stacked = tree.map(lambda a, b: torch.cat([a, b]), honest, wild)
    assert np.abs(one(GeometricMedian(iterations=1000), stacked)).max() < 100
    corrupt_majority = torch.tensor([1.0] * 6 + [2.0] * 5)
    assert np.abs(one(GeometricMedian(iterations=1000), stacked, corrupt_majority)).max() > 1e7


def test_krum_releases_one_of_the_inliers_and_multi_krum_averages_none_but_those():
    honest, wild = deltas(7, scale=0.1), tree.map(lambda v: v + 3, deltas(2, 3, scale=0.01))
    stacked = tree.map(lambda a, b: torch.cat([b[:1], a, b[1:]]), honest, wild)
    picked = one(Krum(byzantine=2), stacked)
    assert (np.abs(flat(honest) - picked).max(1) == 0).any()
    np.testing.assert_allclose(one(Krum(byzantine=2, multi=7), stacked), flat(honest).mean(0), atol=1e-12)


def test_krum_distances_of_almost_equal_uploads_do_not_cancel():
    base = torch.full((1, 1000), 1e3)
    stacked = {"w": torch.cat([base, base + 1e-3])}
    exact = ((stacked["w"][1].double() - stacked["w"][0].double()) ** 2).sum()
    assert square_distances(stacked)[0, 1] == pytest.approx(exact.item(), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(9)), st.integers(0, 100))
def test_the_order_of_the_clients_is_of_no_matter(order, seed):
    stacked, weights = deltas(9, seed), torch.arange(1.0, 10.0, dtype=torch.float64)
    shuffled = tree.take(stacked, torch.tensor(order))
    for merge in COMBINATIONS:
        there, here = one(merge, shuffled, weights[list(order)]), one(merge, stacked, weights)
        np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("merge", COMBINATIONS, ids=named)
def test_moving_and_stretching_all_uploads_moves_and_stretches_the_combination(merge):
    stacked = deltas(9)
    shifted = tree.map(lambda v: 3 * v + 7, stacked)
    np.testing.assert_allclose(one(merge, shifted), 3 * one(merge, stacked) + 7, rtol=1e-5)


def test_trimming_nothing_is_the_mean_and_trimming_all_but_the_middle_the_median():
    stacked = deltas(9)
    np.testing.assert_allclose(one(TrimmedMean(trim=0), stacked), one(Mean(), stacked), atol=1e-12)
    np.testing.assert_allclose(one(TrimmedMean(trim=0.4), stacked), one(Median(), stacked), atol=1e-12)


@pytest.mark.parametrize(("trim", "uploads", "dropped"), [(0.07, 100, 7), (0.1, 10, 1), (0.1, 11, 2), (0.3, 10, 3)])
def test_the_share_to_trim_is_rounded_up_but_not_by_floating_point(trim, uploads, dropped):
    assert TrimmedMean(trim=trim).dropped(uploads) == dropped


@pytest.mark.parametrize(
    ("merge", "few", "field"),
    [
        (TrimmedMean(trim=0.4), 4, "aggregate.merge.trim = 0.4"),
        (Krum(byzantine=2), 6, "aggregate.merge.byzantine = 2"),
        (Krum(byzantine=1, multi=5), 5, "aggregate.merge.multi = 5"),
    ],
)
def test_impossible_settings_are_refused_with_the_field_and_possible_ones_are_not(merge, few, field):
    (problem,) = merge.conflicts(few)
    assert problem.startswith(field)
    assert not list(merge.conflicts(few + 1))


def test_a_merge_is_one_server_step_of_size_1_and_leaves_what_nobody_uploads():
    start = {"w": torch.randn(3, 4).double(), "b": torch.randn(2).double()}
    final = {"w": torch.zeros(3, 4).double(), "b": torch.zeros(2).double(), "frozen": torch.ones(1)}
    stacked, weights = deltas(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    merged = Mean().merge(final, start, stacked, weights)
    torch.testing.assert_close(
        merged["w"], start["w"] + (weights.double() / 10)[:, None, None].mul(stacked["w"]).sum(0)
    )
    assert merged["frozen"] is final["frozen"]
    assert list(merged) == list(final)
    assert Final().merge(final, {}, {}, torch.empty(0)) is final


def test_a_single_merge_counts_every_model_once_and_the_corrected_one_keeps_their_variances():
    models = {"w": torch.randn(6, 50, 40, generator=torch.Generator().manual_seed(0)), "b": torch.randn(6, 40)}
    plain, corrected = Single().fuse(models), VarianceCorrected().fuse(models)
    for name, value in models.items():
        torch.testing.assert_close(plain[name], value.mean(0))
    assert torch.equal(plain["b"], corrected["b"])
    torch.testing.assert_close(corrected["w"].mean(), plain["w"].mean())
    wanted = models["w"].flatten(1).var(1, correction=0).mean()
    torch.testing.assert_close(corrected["w"].var(correction=0), wanted, rtol=1e-5, atol=0)
    assert float(plain["w"].var(correction=0)) == pytest.approx(float(wanted) / 6, rel=0.1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    for merge, merged in ((Single(), plain), (VarianceCorrected(), corrected)):
        for name, value in merge.fuse(tree.take(models, order)).items():
            torch.testing.assert_close(value, merged[name])


def test_equal_models_merge_to_themselves():
    one = {"w": torch.randn(5, 4), "b": torch.randn(4)}
    for merge in (Single(), VarianceCorrected()):
        for name, value in merge.fuse(tree.repeat(one, 7)).items():
            torch.testing.assert_close(value, one[name], rtol=1e-6, atol=1e-7)
