"""Overrides: what a pipeline, the command line and the form of the Prefect UI change in the file."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.overrides import apply, merge, parse
from tasks import params
from tasks.config import Refused

ROOT = Path(__file__).resolve().parents[2]
FILE = (ROOT / "params.yaml").read_text()


def changed(changes: dict) -> params.Params:
    document = YAML(typ="safe").load(FILE)
    apply(changes, document)
    return params.build(document)


def test_a_new_method_keeps_what_it_inherits_and_drops_what_is_merely_called_the_same():
    prox = changed({"train": {"algorithm": {"name": "fedprox", "mu": 0.5}}}).train.algorithm
    file = changed({}).train.algorithm
    assert (prox.lr, prox.lr_schedule, prox.epochs, prox.mu) == (file.lr, file.lr_schedule, file.epochs, 0.5)
    # `width` of a cnn counts channels; an mlp has no such field, and nothing of the cnn's is left.
    assert changed({"model": {"name": "mlp"}}).model == params.build({"model": {"name": "mlp"}}).model


def test_a_list_is_replaced_whole():
    uplink = changed({"train": {"uplink": [{"name": "sign"}]}}).train.uplink
    assert [codec.name for codec in uplink] == ["sign"]


def test_comments_and_order_of_the_file_survive():
    document = YAML().load(FILE)
    apply({"train": {"rounds": 7}}, document)
    from io import StringIO

    text = StringIO()
    YAML().dump(document, text)
    lines, expected = text.getvalue().splitlines(), FILE.splitlines()
    assert "  rounds: 7" in lines
    assert [line for line in lines if line.startswith("#")] == [line for line in expected if line.startswith("#")]


def test_assignments_are_yaml_and_the_later_one_counts():
    assert parse(["train.rounds=5", "train.uplink=[{name: sign}]", "model.name=mlp"]) == {
        "train": {"rounds": 5, "uplink": [{"name": "sign"}]},
        "model": {"name": "mlp"},
    }
    assert merge({"train": {"rounds": 5, "cohort": 3}}, {"train": {"rounds": 6}}) == {
        "train": {"rounds": 6, "cohort": 3}
    }


@pytest.mark.parametrize("text", ["train.rounds", "=3", "train..rounds=3", "train.rounds=[", "a=1 a.b=2"])
def test_a_malformed_assignment_is_refused(text):
    with pytest.raises(Refused, match="--set"):
        parse(text.split())
