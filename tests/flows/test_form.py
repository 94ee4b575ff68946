"""The form of a deployment: it shows what is, and what is changed in it is what the run changes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from flows import checkout, form, pipelines
from flows.overrides import apply
from tasks import params

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = YAML(typ="safe").load(ROOT / "params.yaml")
SETTINGS = params.build(DOCUMENT)
SCHEMA = {"type": "object", "properties": form.properties("default", SETTINGS)}
VALIDATOR = Draft202012Validator(SCHEMA)


def changed(changes: dict[str, Any]) -> params.Params:
    document = YAML(typ="safe").load(ROOT / "params.yaml")
    apply(changes, document)
    return params.build(document)


def sent(schema: dict[str, Any]) -> Any:
    """What a browser sends back of a form that nobody has touched: every default."""
    if schema.get("type") != "object":
        return schema["default"]
    fields = schema["properties"].items()
    return {name: sent(field) for name, field in fields if "default" in field or field.get("properties")}


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *outer, last = path.split(".")
    here = tree
    for step in outer:
        here = here[step]
    here[last] = value
    return tree


@pytest.mark.parametrize("name", pipelines.load(ROOT))
def test_a_form_left_as_it_is_changes_nothing(name):
    settings = checkout.resolve(ROOT, pipelines.load(ROOT)[name].changes)
    schema = form.properties(name, settings)
    untouched = sent(schema["overrides"])
    assert form.differing(untouched, form.shown(settings)) == {}
    assert not list(Draft202012Validator({"properties": schema}).iter_errors({"overrides": untouched}))


@given(rounds=st.integers(1, 10**6), lr=st.floats(0.001, 1.0), method=st.sampled_from(["fedprox", "scaffold"]))
def test_what_is_changed_in_the_form_is_what_differs_in_the_run(rounds, lr, method):
    typed = sent(SCHEMA["properties"]["overrides"])
    for path, value in {
        "train.rounds": rounds,
        "train.algorithm.name": method,
        "train.algorithm.lr": lr,
        "train.uplink": [{"name": "sign"}],
    }.items():
        put(typed, path, value)
    assert not list(VALIDATOR.iter_errors({"overrides": typed}))
    train = changed(form.differing(typed, form.shown(SETTINGS))).train
    assert (train.rounds, train.algorithm.name, train.algorithm.lr) == (rounds, method, lr)
    assert [codec.name for codec in train.uplink] == ["sign"]
    # What the new method has in common with the old one stays, and nothing else is touched.
    assert train.algorithm.lr_schedule == SETTINGS.train.algorithm.lr_schedule
    assert train.cohort == SETTINGS.train.cohort


def test_a_browser_writes_a_whole_number_without_a_point():
    typed = put(sent(SCHEMA["properties"]["overrides"]), "train.algorithm.server.lr", 1)
    assert form.differing(typed, form.shown(SETTINGS)) == {}


def test_the_fields_carry_bounds_help_and_the_names_of_all_methods():
    sections = SCHEMA["properties"]["overrides"]["properties"]
    assert list(sections) == list(params.Params.model_fields)
    rounds = sections["train"]["properties"]["rounds"]
    assert (rounds["default"], rounds["minimum"], rounds["description"]) == (200, 1, "steps of the server")
    known = params.methods()
    for path, place in [("train", "algorithm"), ("partition", "split"), ("aggregate", "merge")]:
        names = [cls.model_fields["name"].default for cls in known[f"{path}.{place}"]]
        assert sections[path]["properties"][place]["properties"]["name"]["enum"] == names
    suite = [cls.model_fields["name"].default for cls in known["attack.suite"]]
    assert sections["attack"]["properties"]["suite"]["items"]["properties"]["name"]["enum"] == suite


@pytest.mark.parametrize(
    "typed",
    [
        {"train": {"ruonds": 3}},
        {"train": {"rounds": 0}},
        {"train": {"rounds": "many"}},
        {"train": {"algorithm": {"name": "fedavgg"}}},
        {"train": {"algorithm": {"name": "fedavg", "lr": -1.0}}},
        {"train": {"uplink": [{"name": "sing"}]}},
        {"model": {"name": "cnn", "wdith": 3}},
        {"trian": {}},
    ],
)
def test_the_form_refuses_what_the_file_refuses(typed):
    assert list(VALIDATOR.iter_errors({"overrides": typed}))
    with pytest.raises(params.ParamsRefused):
        changed(typed)


def test_fields_of_another_method_are_admitted_with_its_name():
    typed = {"train": {"algorithm": {"name": "fedprox", "mu": 0.5}}, "aggregate": {"registry": None}}
    assert not list(VALIDATOR.iter_errors({"overrides": {"train": typed["train"]}}))
    assert changed({"train": typed["train"]}).train.algorithm.mu == 0.5
