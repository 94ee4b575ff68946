"""Every split is an exact partition, and each is the one that its paper describes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.index import filled, indexed
from tasks.partition.splits import (
    Classes,
    Column,
    Dirichlet,
    Division,
    DualDirichlet,
    Groups,
    Iid,
    Quantity,
    Sensitive,
    Shards,
)


def labels(samples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, samples)


def table(owner: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The label histogram of every client, counted one sample at a time."""
    counts = np.zeros((owner.max() + 1, y.max() + 1), int)
    for client, label in zip(owner, y, strict=True):
        counts[client, label] += 1
    return counts


divisions = st.one_of(
    st.just(Iid()),
    st.floats(1e-3, 1e6).map(lambda alpha: Dirichlet(alpha=alpha)),
    st.tuples(st.floats(1e-2, 1e6), st.floats(1e-2, 1e6)).map(lambda a: DualDirichlet(alpha=a[0], size_alpha=a[1])),
    st.integers(1, 3).map(lambda n: Shards(shards_per_client=n)),
    st.integers(1, 4).map(lambda n: Classes(classes_per_client=n)),
    st.floats(0, 1).map(lambda s: Groups(groups=((0, 1), (1, 2)), shared=s)),
    st.floats(0, 10).map(lambda a: Quantity(exponent=a)),
    st.sampled_from(["label", "site"]).map(lambda by: Column(by=by)),
    st.builds(
        Sensitive,
        scenario=st.sampled_from(["even", "attribute", "agreement"]),
        alpha=st.floats(0, 1),
        swap=st.floats(0, 1),
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    division=divisions,
    y=st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array),
    clients=st.integers(1, 30),
    smallest=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_sample_has_one_owner_and_every_client_its_minimum(division, y, clients, smallest, seed):
    columns = {"site": generator(seed, "site").integers(0, 9, len(y)).astype(str)}
    columns["sex"] = generator(seed, "sex").choice(["f", "m"], len(y))
    try:
        owner = division.assign(y, columns, clients, generator(seed, "split"))
        owner, _ = filled(owner, clients, smallest, generator(seed, "fill"))
    except Refused as refused:
        assert refused.where.startswith("params.yaml: partition.")
        return
    index = indexed(owner, clients, seed % 10 / 10, generator(seed, "order"))
    assert np.array_equal(np.sort(index.indices), np.arange(len(y)))
    owned = np.diff(index.offsets)
    assert index.offsets[0] == 0 and index.offsets[-1] == len(y) and len(owned) == clients
    assert owned.min() >= smallest
    assert (index.train_sizes >= 1).all() and (index.train_sizes <= owned).all()
    for client in range(clients):
        mine = index.indices[index.offsets[client] : index.offsets[client + 1]]
        assert (owner[mine] == client).all()


def test_only_a_column_tells_how_many_clients_there_are():
    from tasks.params import ParamsRefused, build, counted

    y = np.array([0, 0, 1, 2, 2])
    assert Column().natural(y, {}) == 3
    assert Column(by="site").natural(y, {"site": np.array(["a", "b", "a", "b", "a"])}) == 2
    with pytest.raises(ParamsRefused, match=r"partition\.clients = None: split 'iid' needs their number"):
        build({"partition": {"clients": None, "split": {"name": "iid"}}})
    params = build({"partition": {"clients": None, "split": {"name": "column"}}, "train": {"cohort": 3}})
    assert counted(params, 5).partition.clients == 5
    with pytest.raises(ParamsRefused, match=r"train.cohort = 3: must be at most partition.clients = 2"):
        counted(params, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=36, max_size=150), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_the_minimum_is_met_by_the_fewest_moves_from_the_largest(owner, smallest, seed):
    owner = np.array(owner)
    after, moved = filled(owner, 12, smallest, generator(seed, "fill"))
    before, sizes = np.bincount(owner, minlength=12), np.bincount(after, minlength=12)
    assert moved == (after != owner).sum() == np.maximum(smallest - before, 0).sum()
    assert np.array_equal(sizes[before < smallest], np.full((before < smallest).sum(), smallest))
    # The naive way: one sample at a time from the client that is the largest at that moment.
    naive = before.copy()
    for _ in range(moved):
        naive[naive.argmax()] -= 1
    expected = np.sort(np.where(before < smallest, smallest, naive))
    assert np.array_equal(np.sort(sizes), expected)


def test_the_same_key_gives_the_same_split_and_another_key_another():
    y = labels(500, 10)
    for division in (Iid(), Dirichlet(), DualDirichlet(), Shards(), Classes(), Quantity()):
        draws = [division.assign(y, {}, 20, generator(seed, "split")) for seed in (1, 1, 2)]
        assert np.array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])


def test_iid_sizes_differ_by_one_at_most_and_labels_by_chance_alone():
    y = labels(20_003, 4)
    counts = table(Iid().assign(y, {}, 20, generator(0)), y)
    assert np.ptp(counts.sum(1)) <= 1
    # Four classes in 20 clients of 1000: 60 degrees of freedom (57 exactly), whose 1e-6 quantile is far below 140.
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / len(y)
    assert ((counts - expected) ** 2 / expected).sum() < 140


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    clients, alpha, classes = 10, 0.5, 400
    y = np.repeat(np.arange(classes), 500)
    shares = table(Dirichlet(alpha=alpha).assign(y, {}, clients, generator(0)), y).T / 500
    # Var p = (1/m)(1 - 1/m) / (m alpha + 1): Kotz, Balakrishnan and Johnson, Continuous Multivariate Distributions.
    assert shares.mean() == pytest.approx(1 / clients)
    assert shares.var() == pytest.approx((1 / clients) * (1 - 1 / clients) / (clients * alpha + 1), rel=0.05)


def test_dirichlet_becomes_equal_shares_as_alpha_grows_and_one_owner_a_class_as_it_falls():
    y = np.repeat(np.arange(10), 1000)
    equal = table(Dirichlet(alpha=1e6).assign(y, {}, 10, generator(0)), y)
    assert abs(equal - 100).max() <= 2
    single = table(Dirichlet(alpha=1e-3).assign(y, {}, 10, generator(3)), y)
    assert (single.max(0) >= 990).mean() >= 0.9


def test_dual_dirichlet_has_one_knob_for_sizes_and_one_for_classes():
    y = np.repeat(np.arange(4), [1000, 2000, 3000, 4000])
    even = table(DualDirichlet(alpha=1e6, size_alpha=1e6).assign(y, {}, 10, generator(0)), y)
    assert (np.abs(even - np.array([100, 200, 300, 400])) <= 0.02 * even).all()
    # Sizes alone: everyone has the mix of all data, and shares have the moments of Dir(1) over 10 clients.
    owners = [DualDirichlet(alpha=1e6, size_alpha=1.0).assign(y, {}, 10, generator(seed)) for seed in range(200)]
    shares = np.array([np.bincount(owner, minlength=10) for owner in owners]) / len(y)
    assert shares.var() == pytest.approx(0.1 * 0.9 / 11, rel=0.1)
    counts = table(owners[0], y)
    assert (np.abs(counts - counts.sum(1, keepdims=True) * [0.1, 0.2, 0.3, 0.4]) <= 0.02 * counts + 1).all()
    # Classes alone: the less concentrated, the more of a client's data are of its largest class.
    purity = [_purity(DualDirichlet(alpha=alpha, size_alpha=1e6), y) for alpha in (0.01, 0.5, 100.0)]
    assert purity[0] > 0.95 and purity[0] > purity[1] + 0.1 and purity[1] > purity[2] + 0.1 and purity[2] < 0.5


def _purity(division: Division, y: np.ndarray) -> float:
    """The mean share of the largest class among the clients that have anything."""
    counts = table(division.assign(y, {}, 50, generator(0)), y)
    held = counts[counts.sum(1) > 0]
    return float((held.max(1) / held.sum(1)).mean())


def test_two_shards_a_client_are_two_stretches_of_the_sorted_labels():
    # With 10 equal classes, 100 clients and 200 shards no shard crosses a class: two classes a client at most.
    y = np.repeat(np.arange(10), 600)
    counts = table(Shards(shards_per_client=2).assign(y, {}, 100, generator(0)), y)
    assert (counts.sum(1) == 60).all()
    assert set(np.unique(counts)) <= {0, 30, 60}


def test_more_shards_than_samples_are_refused_with_the_largest_number_that_works():
    y = labels(100, 3)
    Shards(shards_per_client=10).assign(y, {}, 10, generator(0))
    with pytest.raises(Refused, match=r"params.yaml: partition.split.shards_per_client = 11: .*110 shards.*At most 10"):
        Shards(shards_per_client=11).assign(y, {}, 10, generator(0))


@settings(max_examples=60, deadline=None)
@given(clients=st.integers(1, 40), classes=st.integers(2, 12), held=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_each_client_holds_exactly_k_classes_and_each_class_is_shared_out_equally(clients, classes, held, seed):
    y = np.repeat(np.arange(classes), 3 * 40)
    division = Classes(classes_per_client=held)
    if held > classes or held * clients < classes:
        with pytest.raises(Refused, match="classes_per_client"):
            division.assign(y, {}, clients, generator(seed))
        return
    counts = table(division.assign(y, {}, clients, generator(seed)), y)
    assert ((counts > 0).sum(1) == held).all()
    for shares in counts.T:
        assert np.ptp(shares[shares > 0]) <= 1


def test_all_classes_for_everyone_gives_everyone_the_same_histogram():
    y = np.repeat(np.arange(5), 40)
    assert (table(Classes(classes_per_client=5).assign(y, {}, 8, generator(0)), y) == 5).all()


def test_quantities_follow_the_power_law():
    y = labels(100_000, 2)
    sizes = np.sort(np.bincount(Quantity(exponent=1.5).assign(y, {}, 50, generator(0))))[::-1]
    law = np.arange(1, 51) ** -1.5
    assert np.abs(sizes - law / law.sum() * len(y)).max() <= 1
    equal = np.bincount(Quantity(exponent=0).assign(y, {}, 50, generator(0)))
    assert np.ptp(equal) <= 1


def test_a_column_gives_each_value_to_one_client_and_fewer_clients_whole_groups():
    site = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 20 + ["d"] * 10)
    y = labels(110, 2)
    owner = Column(by="site").assign(y, {"site": site}, 4, generator(0))
    assert [len(np.unique(owner[site == s])) for s in "abcd"] == [1] * 4 and len(np.unique(owner)) == 4
    merged = Column(by="site").assign(y, {"site": site}, 2, generator(0))
    assert [len(np.unique(merged[site == s])) for s in "abcd"] == [1] * 4
    # a and d go to one client, b and c to the other: as even as whole groups can be here.
    assert np.bincount(merged).tolist() == [60, 50]
    with pytest.raises(Refused, match=r"params.yaml: partition.clients = 5: .*4 values.*Set it to 4"):
        Column(by="site").assign(y, {"site": site}, 5, generator(0))
    with pytest.raises(Refused, match=r"partition.split.by = 'town'.*label, site"):
        Column(by="town").assign(y, {"site": site}, 2, generator(0))


def test_too_many_clients_for_the_samples_are_refused():
    with pytest.raises(Refused, match=r"params.yaml: partition.min_size = 2: .*= 120 is above the 100"):
        filled(np.zeros(100, int), 60, 2, generator(0))


def test_the_validation_part_is_a_random_part_of_each_client():
    owner = np.zeros(1000, int)
    index = indexed(owner, 1, 0.25, generator(0))
    assert index.train_sizes.tolist() == [750]
    # Were the order kept, the validation part would be the last quarter, with a mean position of 875.
    assert index.indices[750:].mean() == pytest.approx(500, abs=60)


def test_one_class_and_one_client_are_no_special_case():
    for division in (Iid(), Dirichlet(), Shards(), Classes(classes_per_client=1), Quantity(), Column()):
        assert isinstance(division, Division)
        assert (division.assign(np.zeros(7, int), {}, 1, generator(0)) == 0).all()


def test_groups_hold_their_classes_and_share_the_rest():
    y = np.repeat(np.arange(4), 120)
    held = table(Groups(groups=((0, 1), (1, 2)), shared=0.25).assign(y, {}, 4, generator(0, "split")), y)
    # A quarter of 120 over four clients; the rest over the two clients of one group, or over all where both hold it.
    assert (np.abs(held[:, 3] - 30) <= 1).all(), "a class of no group is everybody's"
    assert (np.abs(held[:, 1] - 30) <= 1).all(), "and so is one that all groups hold"
    assert (np.abs(held[[0, 2], 0] - (7.5 + 45)) <= 1).all() and (np.abs(held[[1, 3], 0] - 7.5) <= 1).all()


def test_groups_that_share_all_have_equal_histograms():
    y = np.repeat(np.arange(3), 40)
    held = table(Groups(groups=((0,), (1,)), shared=1).assign(y, {}, 5, generator(1, "split")), y)
    assert (held == 8).all()


def test_groups_of_classes_that_are_not_there_are_refused():
    with pytest.raises(Refused, match=r"partition\.split\.groups = 9: the data have no such class"):
        Groups(groups=((0, 9),)).assign(np.array([0, 1]), {}, 2, generator(0, "split"))


def census(count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Labels and an attribute of two values, each pair of which occurs in another number."""
    z = np.arange(count) % 3 == 0
    return (np.arange(count) % 7 < np.where(z, 4, 2)).astype(int), np.where(z, "m", "f")


def sensitive(scenario: str, clients: int = 2, alpha: float = 0.9, swap: float = 0.0) -> np.ndarray:
    y, sex = census()
    chosen = Sensitive(scenario=scenario, alpha=alpha, swap=swap)
    return chosen.assign(y, {"sex": sex}, clients, generator(3, "split"))


def test_spread_evenly_every_client_has_the_same_share_of_every_group_and_label():
    y, sex = census()
    both = 2 * (sex == "m") + y
    for clients in (2, 5):
        held = table(sensitive("even", clients), both)
        assert np.ptp(held, axis=0).max() <= 1


@pytest.mark.parametrize("clients", [2, 5])
def test_each_half_of_the_clients_has_its_share_of_a_group_or_of_those_in_which_group_and_label_agree(clients):
    y, sex = census()
    z, first = (sex == "m").astype(int), -(-clients // 2)
    for scenario, belongs in (("attribute", z), ("agreement", z ^ y)):
        half = (sensitive(scenario, clients) >= first).astype(int)
        for value in (0, 1):
            # Rounded once for each of the two cells that the value is made of.
            at_home, wanted = (half[belongs == value] == value).sum(), 0.9 * (belongs == value).sum()
            assert abs(at_home - wanted) <= 1
        assert (np.bincount(half, weights=belongs == half) > 0).all()
    # Inside a half clients are alike.
    held = table(sensitive("attribute", clients), 2 * z + y)
    assert np.ptp(held[:first], axis=0).max() <= 1 and np.ptp(held[first:], axis=0).max() <= 1


def test_the_last_swap_keeps_all_sizes_and_leaves_no_client_without_a_group():
    _, sex = census()
    whole = sensitive("attribute", alpha=1.0)
    assert [np.unique(sex[whole == client]).tolist() for client in (0, 1)] == [["f"], ["m"]]
    mixed = sensitive("attribute", alpha=1.0, swap=0.03)
    assert np.bincount(mixed).tolist() == np.bincount(whole).tolist()
    smaller = np.bincount(whole).min()
    assert [(mixed[sex == value] != client).sum() for client, value in enumerate("fm")] == [round(0.03 * smaller)] * 2


def test_an_attribute_that_is_not_there_or_has_more_values_is_refused():
    y, sex = census()
    with pytest.raises(Refused, match=r"split\.attribute = 'age': is no column of the dataset: it has sex"):
        Sensitive(attribute="age").assign(y, {"sex": sex}, 2, generator(0))
    with pytest.raises(Refused, match=r"needs two values of column 'sex', which has 3"):
        Sensitive().assign(y, {"sex": np.arange(len(y)) % 3}, 2, generator(0))
    with pytest.raises(Refused, match=r"split\.scenario = 'agreement': needs two values of the label, which has 3"):
        Sensitive(scenario="agreement").assign(np.arange(len(y)) % 3, {"sex": sex}, 2, generator(0))
    with pytest.raises(Refused, match=r"partition\.clients = 1"):
        Sensitive().assign(y, {"sex": sex}, 1, generator(0))
