"""The rule: what it compares, by how much, within which limits, and what it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.promotion.rule import Promotion

share = st.floats(0, 1)


@given(new=share, standing=share, margin=st.floats(0, 0.5))
def test_better_is_by_more_than_the_margin(new, standing, margin):
    found = Promotion(margin=margin).judge({"aggregate.accuracy": new}, {"accuracy": standing, "loss": 1.0})
    assert found.promoted == (new - standing > margin)
    assert (found.new, found.standing) == (new, standing)
    assert ("not better than" in found.reason) != found.promoted


@given(new=share, standing=share)
def test_less_loss_is_better(new, standing):
    found = Promotion(metric="loss").judge({"aggregate.loss": new}, {"accuracy": 1.0, "loss": standing})
    assert found.promoted == (new < standing)


def test_the_first_has_to_keep_the_limits_alone():
    numbers = {"aggregate.accuracy": 0.1, "train.epsilon": 8.0}
    assert Promotion(at_most={"train.epsilon": 8}).judge(numbers, None).promoted
    found = Promotion(at_most={"train.epsilon": 7.9}).judge(numbers, None)
    assert not found.promoted and found.reason == "train.epsilon = 8 is above 7.9"


def test_every_reason_is_given_and_an_unknown_number_keeps_no_limit():
    rule = Promotion(at_most={"train.epsilon": 8, "attack.messages.none.recovered": 0.5}, at_least={"a.b": 0.6})
    numbers = {"aggregate.accuracy": 0.5, "train.epsilon": None, "a.b": 0.5, "attack.messages.none.recovered": 0.5}
    found = rule.judge(numbers, {"accuracy": 0.7, "loss": 0.1})
    assert not found.promoted
    assert found.reason.split("; ") == [
        "its accuracy of 0.5000 on the test set is not better than the champion's 0.7000 there",
        "train.epsilon is not known, and must not be above 8",
        "a.b = 0.5 is below 0.6",
    ]


def test_what_cannot_be_compared_is_not_promoted():
    found = Promotion().judge({"aggregate.accuracy": 0.9}, "version 3, whose shape is another")
    assert not found.promoted and found.standing is None
    assert "cannot be compared with the champion, version 3, whose shape" in found.reason
    assert not Promotion().judge({}, None).promoted
    broken = Promotion(metric="loss").judge({"aggregate.loss": 1.0}, {"accuracy": 0.1, "loss": None})
    assert not broken.promoted and "whose loss there is not finite" in broken.reason


def test_only_figures_on_the_test_set_are_compared():
    with pytest.raises(ValidationError):
        Promotion(metric="clients_mean")
