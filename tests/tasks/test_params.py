"""`params.yaml` refuses what makes no sense and says where, what and how to mend it; what it accepts round-trips."""

import copy
import inspect
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from flows.cli import schemas
from tasks import params
from tasks.config import Config, Refused
from tasks.params import Params, ParamsRefused, build, load
from tasks.partition.splits import Dirichlet

ROOT = Path(__file__).resolve().parents[2]
FILE: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")


def edited(path: str, value: Any) -> dict[str, Any]:
    """The parameters of the repository with ``value`` at ``path``; ``a.0.b`` reaches into a list."""
    data = here = copy.deepcopy(FILE)
    *outer, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in outer:
        here = here[step] if isinstance(step, int) else here.setdefault(step, {})
    here[last] = value
    return data


def refusal(data: Any) -> list[str]:
    with pytest.raises(ParamsRefused) as refused:
        build(data, "some.yaml")
    assert str(refused.value).startswith("some.yaml: ")
    assert "fedloom list" in str(refused.value)
    return refused.value.problems


UNKNOWN_FIELDS = [
    ("sed", 1, "sed: unknown field; did you mean `seed`? (known: seed, partition, model, train"),
    ("partition.client", 5, "partition.client: unknown field; did you mean `clients`? (known: dataset, clients"),
    ("partition.split.alhpa", 1, "partition.split.alhpa: unknown field; did you mean `alpha`? (known: name, alpha)"),
    ("partition.dataset.size", 1, "partition.dataset.size: unknown field (known: name)"),
    ("model.widht", 1, "model.widht: unknown field; did you mean `width`?"),
    ("train.chort", 1, "train.chort: unknown field; did you mean `cohort`?"),
    ("train.algorithm.mu", 1, "train.algorithm.mu: unknown field"),
    ("train.algorithm.server.momentm", 0.9, "did you mean `momentum`? (known: name, lr, momentum)"),
    ("train.uplink", [{"name": "clip"}, {"name": "topk", "densty": 1}], "train.uplink[1].densty: unknown field; did"),
    ("train.engine.wrkers", 1, "train.engine.wrkers: unknown field; did you mean `workers`?"),
    ("train.transcript.round", [1], "train.transcript.round: unknown field; did you mean `rounds`?"),
    ("aggregate.registry.modell", "x", "aggregate.registry.modell: unknown field; did you mean `model`?"),
    ("attack.suite.0.restart", 1, "attack.suite[0].restart: unknown field; did you mean `restarts`?"),
    ("report.titel", "x", "report.titel: unknown field; did you mean `title`?"),
]  # fmt: skip
UNKNOWN_METHODS = [
    ("train.algorithm.name", "fedavgg", "train.algorithm.name = 'fedavgg': unknown method; did you mean `fedavg`?"),
    ("train.algorithm.name", 5, "train.algorithm.name = 5: unknown method (known: fedavg, fedprox, scaffold"),
    ("train.algorithm.name", None, "train.algorithm.name = None: unknown method (known: fedavg"),
    ("train.algorithm", {"lr": 0.1}, "train.algorithm: must be a mapping with a name, such as {name: fedavg} (known:"),
    ("train.algorithm", "scafold", "train.algorithm = 'scafold': must be a mapping with a name, such as {name: scaff"),
    ("train.uplink", ["sign"], "train.uplink[0] = 'sign': must be a mapping with a name, such as {name: sign} (known:"),
    ("train.algorithm.lr_schedule.name", "cosin", "did you mean `cosine`? (known: constant, exponential, step,"),
    ("attack.suite.1.name", "readout", "attack.suite[1].name = 'readout': unknown method; did you mean `read_out`?"),
    ("partition.dataset", {"name": "npz"}, "partition.dataset.path: is missing"),
    ("model", {"name": "custom"}, "model.path: is missing"),
]  # fmt: skip
WRONG_TYPES = [
    ("train.rounds", "16", "train.rounds = '16': must be a whole number"),
    ("train.rounds", 1.5, "train.rounds = 1.5: must be a whole number"),
    ("train.rounds", True, "train.rounds = True: must be a whole number"),
    ("train.rounds", None, "train.rounds = None: must be a whole number"),
    ("train.algorithm.lr", "0.1", "train.algorithm.lr = '0.1': must be a number"),
    ("train.algorithm.lr", float("nan"), "train.algorithm.lr = nan: must be a finite number"),
    ("train.algorithm.lr", float("inf"), "train.algorithm.lr = inf: must be a finite number"),
    ("train.uplink", {"name": "topk"}, "train.uplink: must be a list"),
    ("train.transcript.rounds", "last", "train.transcript.rounds = 'last': must be a list"),
    ("train.transcript.rounds", ["lst"], "train.transcript.rounds[0] = 'lst': must be a whole number or 'first' or"),
    ("train.engine.workers", "many", "train.engine.workers = 'many': must be a whole number or 'auto'"),
    ("train.engine.device", "gpu", "train.engine.device = 'gpu': must be 'auto', 'cpu' or 'cuda'"),
    ("train.early_stop", 5, "train.early_stop = 5: must be a mapping of patience, min_delta"),
    ("report.title", 5, "report.title = 5: must be text"),
    ("train", None, "train = None: must be a mapping of rounds, seconds, cohort"),
    ("attack", [], "attack: must be a mapping of suite, defences"),
]  # fmt: skip
OUT_OF_RANGE = [
    ("seed", -1, "seed = -1: must be greater than or equal to 0"),
    ("seed", 2**40, "seed = 1099511627776: must be less than 2147483648"),
    ("partition.clients", 0, "partition.clients = 0: must be greater than or equal to 1"),
    ("partition.test_fraction", 1.0, "partition.test_fraction = 1.0: must be less than or equal to 0.9"),
    ("train.algorithm.lr", 0, "train.algorithm.lr = 0: must be greater than 0"),
    ("train.algorithm.momentum", 1, "train.algorithm.momentum = 1: must be less than 1"),
    ("train.engine.workers", -1, "train.engine.workers = -1: must be greater than or equal to 0 or 'auto'"),
    ("train.engine.stack", 0, "train.engine.stack = 0: must be greater than or equal to 1 or 'auto'"),
    ("train.algorithm", {"name": "scaffold", "momentum": 0.9}, "train.algorithm.momentum = 0.9: must be less than or"),
    ("model", {"name": "mlp", "hidden": [8, 0]}, "model.hidden[1] = 0: must be greater than or equal to 1"),
    ("model", {"name": "cnn", "kernel": 4}, "model.kernel = 4: must be odd"),
    ("model", {"name": "resnet", "width": 16, "groups": 3}, "model: groups = 3 must divide width = 16"),
    ("model", {"name": "custom", "path": "mine"}, "model.path = 'mine': must be of the form package.module:Class"),
    ("attack.defences", [], "attack.defences: must have at least 1 entries"),
    ("attack.messages", 0, "attack.messages = 0: must be greater than or equal to 1 or 'all'"),
    ("partition.refine", [{"name": "x"}], "partition.refine[0].name = 'x': unknown method (known: pca,"),
    ("aggregate.registry.model", "-x", "aggregate.registry.model = '-x': must match pattern"),
]  # fmt: skip
CONFLICTS = [
    ("train.cohort", 101, "train.cohort = 101: must be at most partition.clients = 100"),
    ("train.transcript.rounds", [], "attack.suite: has attacks on recorded messages, but none is recorded: set"),
    ("train.transcript.clients", 0, "attack.suite: has attacks on recorded messages, but none is recorded: set"),
    ("train.transcript.rounds", [1, 900], "train.transcript.rounds[1] = 900: must lie between 1 and train.rounds ="),
    ("train.uplink", [{"name": "sign"}, {"name": "topk"}], "train.uplink[1].name = 'topk': cannot follow 'sign'"),
    ("train.privacy", {"name": "gaussian"}, "train.algorithm.weighting = 'samples': must be 'uniform' with train."),
    ("aggregate.merge", {"name": "trimmed_mean", "trim": 0.49}, "aggregate.merge"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    UNKNOWN_FIELDS + UNKNOWN_METHODS + WRONG_TYPES + OUT_OF_RANGE + CONFLICTS,
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_refused_with_its_place_value_and_what_is_allowed(path, value, expected):
    problems = refusal(edited(path, value))
    assert any(expected in problem for problem in problems), problems


def test_single_uploads_may_not_go_round_central_noise():
    data = edited("aggregate.merge", {"name": "median"})
    data["train"]["privacy"] = {"name": "gaussian"}
    data["train"]["algorithm"]["weighting"] = "uniform"
    (problem,) = refusal(data)
    assert problem.startswith("aggregate.merge.name = 'median': reads single uploads")


def test_all_mistakes_are_told_at_once():
    data = edited("train.chort", 1)
    data["train"]["algorithm"]["lr"] = -1
    data["seed"] = "0"
    assert len(refusal(data)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping with the sections seed, partition, model, train, aggregate, attack, report"),
        ("- seed\n- 1", "must be a mapping with the sections"),
        ("train: [", "is not YAML: expected the node content, but found '<stream end>' in line 1, column 9"),
        ("\tseed: 1", "cannot start any token in line 1, column 1"),
        ("seed: 0\nseed: 1", 'found duplicate key "seed" with value "1" (original value: "0") in line 2'),
        ("seed: !!python/object:os.system x", "could not determine a constructor"),
        ("seed: 2020-01-01", "seed = '2020-01-01': must be a number, text, a list or a mapping; a date needs quotes"),
        ("train: {uplink: [{name: 2020-01-01}]}", "train.uplink[0].name = '2020-01-01': must be"),
        ("? [1, 2]\n: 3", "the name of a field must be text"),
        ("seed: .nan", "seed = nan: must be a whole number"),
        ("seed: &a [*a]", "cannot be used (Circular reference"),
        ("\0", "is not YAML: unacceptable character"),
    ],
)
def test_a_file_that_is_no_set_of_parameters_is_refused_by_name(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Refused) as refused:
        load(path)
    assert str(refused.value).startswith(str(path))
    assert expected in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"absent\.yaml: does not exist\. Run in the folder"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(Refused, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "utf16.yaml").write_bytes("seed: 1".encode("utf-16"))
    with pytest.raises(Refused, match="is not YAML"):
        load(tmp_path / "utf16.yaml")


def valid(annotation: Any, limits: tuple[Any, ...] = ()) -> st.SearchStrategy:
    """Values that fit an annotation of the schema, as read from YAML."""
    kind = get_origin(annotation) or annotation
    return KINDS[next(known for known in KINDS if known is kind or _is_subclass(kind, known))](annotation, limits)


def _is_subclass(kind: Any, known: Any) -> bool:
    return known is Config and isinstance(kind, type) and issubclass(kind, Config)


def _text(_: Any, limits: tuple[Any, ...]) -> st.SearchStrategy:
    pattern = next((limit.pattern for limit in limits if getattr(limit, "pattern", None)), None)
    return st.from_regex(pattern, fullmatch=True) if pattern else st.text(max_size=10)


def _list(annotation: Any, limits: tuple[Any, ...]) -> st.SearchStrategy:
    inner = get_args(annotation)
    least = next((limit.min_length for limit in limits if isinstance(limit, bounds.MinLen)), 0)
    return st.lists(valid(inner[0]), min_size=least, max_size=3) if inner else st.just([])


def _annotated(annotation: Any, limits: tuple[Any, ...]) -> st.SearchStrategy:
    field = FieldInfo.from_annotation(annotation)
    return valid(field.annotation, (*limits, *field.metadata))


def _number(kind: type, limits: tuple[Any, ...]) -> st.SearchStrategy:
    low, high, open_low, open_high = -1000, None, False, False
    for limit in limits:
        if isinstance(limit, bounds.Ge | bounds.Gt):
            low, open_low = getattr(limit, "ge", getattr(limit, "gt", None)), isinstance(limit, bounds.Gt)
        if isinstance(limit, bounds.Le | bounds.Lt):
            high, open_high = getattr(limit, "le", getattr(limit, "lt", None)), isinstance(limit, bounds.Lt)
    high = low + 1000 if high is None else high
    if kind is int:
        return st.integers(low + open_low, high - open_high)
    return st.floats(low, high, exclude_min=open_low, exclude_max=open_high, allow_nan=False)


KINDS: dict[Any, Callable[[Any, tuple[Any, ...]], st.SearchStrategy]] = {
    Config: lambda cls, _: method(cls),
    bool: lambda *_: st.booleans(),
    types.NoneType: lambda *_: st.none(),
    int: _number,
    float: _number,
    str: _text,
    Path: lambda *_: st.text("abc./", min_size=1, max_size=5),
    dict: lambda *_: st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=2),
    tuple: _list,
    Annotated: _annotated,
    Literal: lambda literal, _: st.sampled_from(get_args(literal)),
    Union: lambda union, limits: st.one_of([valid(option, limits) for option in get_args(union)]),
    types.UnionType: lambda union, limits: st.one_of([valid(option, limits) for option in get_args(union)]),
}


def method(cls: type[Config]) -> st.SearchStrategy:
    """Mappings that build ``cls``: any of its fields given, and those that must be."""
    fields = {name: valid(field.annotation, tuple(field.metadata)) for name, field in cls.model_fields.items()}
    required = {name for name, field in cls.model_fields.items() if field.is_required() or name == "name"}
    optional = {name: value for name, value in fields.items() if name not in required}
    return st.fixed_dictionaries({name: fields[name] for name in required}, optional=optional)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=method(Params))
def test_what_is_accepted_comes_back_from_its_dump_and_the_rest_is_told_in_words(data):
    """Over the whole schema: no other exception, and a written-out run builds the same run again."""
    data.setdefault("partition", {})["clients"] = 5000
    data.get("train", {}).pop("transcript", None)
    try:
        built = build(data)
    except ParamsRefused as refused:
        assert all(problem.partition(": ")[2] for problem in refused.problems)
        return
    written = json.loads(json.dumps(built.model_dump(mode="json")))
    assert build(written) == built


SLOTS = params.methods()
METHODS = sorted({cls for found in SLOTS.values() for cls in found}, key=lambda cls: (cls.__module__, cls.__name__))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_comes_back_from_its_dump(cls, data):
    try:
        built = cls.model_validate_json(json.dumps(data.draw(method(cls))), strict=True)
    except ValidationError:
        return
    assert cls.model_validate_json(built.model_dump_json(), strict=True) == built


def test_the_file_of_the_repository_builds_and_says_what_its_comments_say():
    built = load(ROOT / "params.yaml")
    assert built.partition.clients == 100
    assert built.partition.split == Dirichlet(alpha=0.3)
    assert built.train.cohort <= built.partition.clients
    assert built.attack.needs_transcript


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_default_is_allowed_where_it_stands_and_may_be_left_out(cls):
    given = {name: "x:y" for name, field in cls.model_fields.items() if field.is_required()}
    built = cls(**given)
    assert cls.model_validate_json(built.model_dump_json(), strict=True) == built
    named = given | {"name": built.name}
    assert cls.model_validate_json(json.dumps(named), strict=True) == built


def test_an_empty_mapping_is_a_run_with_every_default():
    assert build({}) == Params()


def test_the_schemas_for_editors_are_current():
    for name, content in schemas().items():
        assert (ROOT / name).read_text() == content, f"{name} is out of date: run `fedloom schema`"


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_introduces_itself(cls):
    summary = (cls.__doc__ or "").strip().split("\n\n")[0]
    assert summary.rstrip().endswith((".", ":")), f"{cls.__name__} needs a docstring that starts with a sentence"
    assert cls.__doc__ is not Config.__doc__
    name = cls.model_fields["name"]
    assert get_args(name.annotation) == (name.default,)
    assert name.default == name.default.lower().strip()


PUBLISHED = [place for place in SLOTS if place.rpartition(".")[2] in ("algorithm", "uplink", "merge", "suite")]
UNPUBLISHED = ("final",)


@pytest.mark.parametrize("place", PUBLISHED)
def test_published_methods_name_their_source(place):
    names = {cls.model_fields["name"].default: (cls.__doc__ or "") + _module(cls) for cls in SLOTS[place]}
    assert not [name for name, said in names.items() if "Source:" not in said and name not in UNPUBLISHED]


def _module(cls: type) -> str:
    return inspect.getmodule(cls).__doc__ or ""


@pytest.mark.parametrize("place", SLOTS)
def test_names_are_unique_within_a_slot(place):
    names = [cls.model_fields["name"].default for cls in SLOTS[place]]
    assert len(set(names)) == len(names)


def test_every_field_says_what_it_is():
    """A section may leave that to the docstring of its class."""
    silent = [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in {Params, *(cls for found in params.places().values() for cls in found)}
        for name, field in cls.model_fields.items()
        if name != "name" and not field.description and not isinstance(field.default, Config)
    ]
    assert not silent
