"""A replication's file: what it may say, and the arithmetic by which a claim is judged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML
from scipy import stats

from flows import cells, claims
from flows.claims import Claim, Estimate, Inequality, Replication
from flows.measures import Budget, Final, Leakage, Number, Outputs, Reach
from tasks.artifacts import write_json, write_lines
from tasks.config import Refused
from tasks.partition.federation import Federation
from tasks.partition.stage import partition
from tasks.tracking import Tracker

ROOT = Path(__file__).resolve().parents[2]
SLUGS = claims.slugs(ROOT)
NO_BUDGET = Budget()
FILE = """
paper: {authors: A, title: B, venue: C, where: D}
scaled: smaller
arms: {baseline: {}, method: {train: {algorithm: {name: fedprox}}}}
metrics: {accuracy: {name: final, column: test_accuracy}}
claims: [{that: method.accuracy >= baseline.accuracy}]
"""


def values(**metrics: float) -> dict[tuple[str, str], float]:
    """``a_x=1`` as the metric x of arm a."""
    return {tuple(name.split("_")): value for name, value in metrics.items()}


def replication(**changes) -> Replication:
    document = YAML(typ="safe", pure=True).load(FILE) | changes
    return Replication.model_validate_json(json.dumps(document), strict=True)


number = st.floats(-1e3, 1e3)


@given(a=number, b=number, c=number)
@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("a.x >= b.x + 0.5 * c.x", lambda a, b, c: a - (b + 0.5 * c)),
        ("a.x - -b.x < c.x / 4", lambda a, b, c: c / 4 - (a - -b)),
        ("max(a.x, b.x) > min(b.x, c.x, 2)", lambda a, b, c: max(a, b) - min(b, c, 2)),
        ("abs(a.x - b.x) <= 0.02", lambda a, b, c: 0.02 - abs(a - b)),
    ],
)
def test_an_inequality_is_the_arithmetic_it_is_written_as(text, margin, a, b, c):
    inequality = Inequality.parse(text)
    found = inequality.margin(values(a_x=a, b_x=b, c_x=c))
    assert found == margin(a, b, c)
    assert inequality.holds(found) == (found > 0 if ">=" not in text and "<=" not in text else found >= 0)


def test_a_tie_holds_unless_the_inequality_is_strict():
    same = [values(a_x=0.7, b_x=0.7)]
    assert Claim(that="a.x >= b.x").judge(same).holds
    assert Claim(that="a.x <= b.x").judge(same).holds
    assert not Claim(that="a.x > b.x").judge(same).holds
    assert not Claim(that="a.x >= b.x + 1e-9").judge(same).holds


@pytest.mark.parametrize(
    "text",
    [
        "a.x", "a.x == b.x", "1 < a.x < 2", "a.x >= __import__('os').getpid()", "a.x >= b.y.z", "a.x >= True",
        "a.x >= b", "a.x >= 'b'", "a.x >= b.x ** 2", "a.x >= max(b.x)", "a.x >= abs(b.x, 1)", "a.x >= len(b.x)",
        "a.x >= max(*b.x)", "a.x >=", "a.x >= b.x if 1 else 2",
    ],
)  # fmt: skip
def test_anything_but_a_comparison_of_metrics_is_refused(text):
    with pytest.raises(ValidationError):
        Claim(that=text)


def test_on_the_mean_it_is_the_metrics_that_are_averaged():
    """A ratio of means is not the mean of ratios, and the better of two grids is chosen once, not seed by seed."""
    ratio = Claim(that="a.x / b.x >= 2").judge([values(a_x=1, b_x=1), values(a_x=5, b_x=2)])
    assert ratio.holds
    assert ratio.margin.mean == 0.0
    assert ratio.margins == [-1.0, 0.5]
    seeds = [values(a_x=0.9, b_x=0.1, c_x=0.5), values(a_x=0.1, b_x=0.9, c_x=0.5)]
    assert Claim(that="max(a.x, b.x) >= c.x").judge(seeds).margin.mean == 0.0


def test_a_claim_on_every_seed_fails_with_one_of_them():
    seeds = [values(a_x=1.0, b_x=0.0), values(a_x=1.0, b_x=0.0), values(a_x=0.0, b_x=0.1)]
    assert Claim(that="a.x > b.x").judge(seeds).holds
    assert not Claim(that="a.x > b.x", on="every_seed").judge(seeds).holds


def test_a_level_that_was_never_reached_counts_as_infinitely_far():
    reached = values(a_x=10, b_x=math.inf)
    assert Claim(that="a.x < b.x").judge([reached, values(a_x=20, b_x=30)]).holds
    # One seed in which the method never gets there, and no mean may hide it.
    assert not Claim(that="a.x < b.x").judge([reached, values(a_x=math.inf, b_x=30)]).holds
    assert not Claim(that="a.x <= b.x").judge([values(a_x=math.inf, b_x=math.inf)]).holds
    assert not Claim(that="a.x / b.x >= 0").judge([values(a_x=1, b_x=0)]).holds


@given(st.lists(st.integers(-1000, 1000).map(lambda count: count / 100), min_size=2, max_size=8))
def test_the_interval_is_that_of_students_t(found):
    mean, low, high = Estimate.of(found)
    if len(set(found)) > 1:
        expected = stats.t.interval(0.95, len(found) - 1, loc=sum(found) / len(found), scale=stats.sem(found))
        assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert low <= mean <= high
    assert Estimate.of(found[:1])[1:] == (None, None)
    assert Estimate.of([*found, math.inf])[1:] == (None, None)


# What a run left behind


@pytest.fixture
def run(tmp_path) -> Path:
    """Five rounds, evaluated in every second."""
    accuracy = [None, 0.4, None, 0.8, 0.6]
    rows = [
        {"round": i + 1, "test_accuracy": value, "total_bytes_up": 10 * (i + 1), "total_bytes_down": 5 * (i + 1)}
        for i, value in enumerate(accuracy)
    ]
    (tmp_path / "artifacts" / "train").mkdir(parents=True)
    write_lines(tmp_path / "artifacts" / "train" / "history.jsonl", rows)
    write_json(tmp_path / "artifacts" / "train" / "summary.json", {"a": {"b": 3, "c": "text"}})
    (tmp_path / "metrics").mkdir()
    write_json(tmp_path / "metrics" / "attack.json", {"messages": {"none": {"psnr": 21.5}}})
    return tmp_path


def test_metrics_are_read_off_the_history(run):
    outputs = Outputs(run, NO_BUDGET)
    assert Final(column="test_accuracy").read(outputs) == 0.6
    assert Final(column="test_accuracy", last=2).read(outputs) == pytest.approx(0.7)
    assert Final(column="test_accuracy", last=9, statistic="max").read(outputs) == 0.8
    assert Final(column="test_accuracy", round=4).read(outputs) == 0.8
    assert Final(column="test_accuracy", round=3, last=2).read(outputs) == 0.4
    assert Reach(column="test_accuracy", level=0.5).read(outputs) == 4
    assert Reach(column="test_accuracy", level=0.5, of="bytes").read(outputs) == 60
    assert Reach(column="test_accuracy", level=0.65, window=2).read(outputs) == 5
    assert Reach(column="test_accuracy", level=0.9).read(outputs) == math.inf
    assert Reach(column="test_accuracy", level=0.5, direction="down").read(outputs) == 2
    assert Number(stage="train", file="summary.json", field="a.b").read(outputs) == 3
    assert Leakage().read(outputs) == 21.5


def test_what_a_method_told_of_its_state_is_read_like_the_history(run):
    told = [{"round": 0, "spread": 9.0}, {"round": 2, "spread": 0.5}, {"round": 4, "spread": 0.7, "other": 1.0}]
    write_lines(run / "artifacts" / "train" / "diagnostics.jsonl", told)
    outputs = Outputs(run, NO_BUDGET)
    assert Final(column="spread").read(outputs) == 0.7
    assert Final(column="spread", last=99, statistic="min").read(outputs) == 0.5
    assert Reach(column="other", level=1.0).read(outputs) == 4
    assert Final(column="test_accuracy").read(outputs) == 0.6


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Final(column="test_acuracy"), "did you mean `test_accuracy`"),
        (Final(column="test_accuracy", round=1), "has no value"),
        (Number(stage="train", file="summary.json", field="a.d"), "has no 'd' there"),
        (Number(stage="train", file="summary.json", field="a.c"), "is no number"),
        (Reach(column="test_accuracy", level=0.1, of="queries"), "total_queries"),
    ],
)
def test_what_is_not_there_is_said(run, metric, said):
    with pytest.raises(Refused, match=said):
        metric.read(Outputs(run, NO_BUDGET))


def test_rows_beyond_the_budget_do_not_count(run):
    within = Outputs(run, Budget(of="bytes_up", amount=45))
    assert Final(column="test_accuracy", statistic="max", last=9).read(within) == 0.8
    assert Final(column="test_accuracy").read(Outputs(run, Budget(of="bytes_up", amount=35))) == 0.4


def test_arms_that_did_not_spend_the_same_are_refused(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    rows = [{"round": 3, "total_bytes_up": 39}, {"round": 4, "total_bytes_up": 48}]
    write_lines(other / "artifacts" / "train" / "history.jsonl", rows)

    def check(budget: Budget) -> None:
        budget.check({"method": [Outputs(run, budget)], "baseline": [Outputs(other, budget)]})

    for budget in (Budget(), Budget(of="bytes_up"), Budget(of="bytes_up", amount=50)):
        with pytest.raises(Refused, match="did not spend the same"):
            check(budget)
    check(Budget(of="bytes_up", tolerance=0.05))
    check(Budget(of="bytes_up", amount=45, tolerance=0.15))


# The file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"baseline": {}, "metod": {}}}, "needs one called `method`; did you mean `metod`"),
        ({"claims": [{"that": "method.acuracy >= baseline.accuracy"}]}, "unknown metric; did you mean `accuracy`"),
        ({"claims": [{"that": "methd.accuracy >= baseline.accuracy"}]}, "unknown arm; did you mean `method`"),
        ({"claims": [{"that": "1 >= 0"}]}, "compares numbers alone"),
        ({"seeds": [0, 1, 0]}, "one is there twice"),
        ({"about": ["train.algorithm.fedporx"]}, "did you mean `train.algorithm.fedprox`"),
        ({"arms": {"baseline": {}, "method": {}, "partition": {}}}, "give the arm another name"),
        (
            {"budget": {"of": "bytes", "amount": 9}, "metrics": {"accuracy": {"name": "leakage"}}},
            "more than budget.amount",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes, said):
    assert any(said in problem for problem in replication(**changes).conflicts())


def test_a_file_is_refused_with_every_problem_and_its_place(tmp_path):
    folder = tmp_path / claims.FOLDER
    folder.mkdir()
    (folder / "toy.yaml").write_text(FILE.replace("name: final", "name: finale").replace("scaled", "scald"))
    with pytest.raises(Refused) as refused:
        claims.load(tmp_path, "toy")
    for said in (
        "metrics.accuracy.name = 'finale'",
        "did you mean `final`",
        "scald: unknown field",
        "scaled: is missi",
    ):
        assert said in str(refused.value)
    with pytest.raises(Refused, match="did you mean `toy`"):
        claims.load(tmp_path, "toi")


@pytest.mark.parametrize("text", ["0,0", "1,-2", "a", "1;2"])
def test_seeds_are_different_whole_numbers(text):
    assert claims.seeds("3, 4,5") == (3, 4, 5)
    assert claims.seeds("") == ()
    with pytest.raises(Refused, match="different whole numbers"):
        claims.seeds(text)


@pytest.mark.parametrize("slug", SLUGS)
def test_every_replication_of_the_house_can_be_run(slug):
    """Its file is sound, every arm makes parameters that hold together, and seeds are several."""
    found = claims.load(ROOT, slug)
    assert len(found.seeds) >= 3
    for arm in found.arms:
        assert cells.settings(slug, found, arm, found.seeds[0]).seed == found.seeds[0]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_data_of_every_replication_are_enough_for_its_clients(slug, tmp_path):
    found = claims.load(ROOT, slug)
    if refused := cells.lacking(ROOT, slug, found):
        pytest.skip(str(refused))
    arms = (cells.settings(slug, found, arm, found.seeds[0]) for arm in found.arms)
    # What clients are made of, before anything is refined, which may take minutes.
    divided = {one.partition.model_copy(update={"refine": ()}): one for one in arms}
    for number, (section, one) in enumerate(divided.items()):
        place = tmp_path / str(number) / "artifacts"
        partition(one.model_copy(update={"partition": section}), place, Tracker("partition"))
        assert np.diff(Federation.open(place / "partition").offsets).min() >= section.min_size
