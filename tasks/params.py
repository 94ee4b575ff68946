"""The typed schema of `params.yaml`: what one run does, refused before anything runs where it makes no sense.

:func:`load` reads and checks a file, :func:`build` checks a dictionary. The objects they give are the ones that do the
work: ``params.train.algorithm`` IS the algorithm. A mistake is explained with its place, what was found, what is
allowed, and the nearest name that exists.
"""

import difflib
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tasks.aggregate.settings import AggregateSettings
from tasks.attack.settings import AttackSettings
from tasks.config import Config, Refused
from tasks.models import Model
from tasks.models.architectures import CNN
from tasks.partition.settings import PartitionSettings
from tasks.report.settings import ReportSettings
from tasks.train.algorithms import FedAvg
from tasks.train.privacy.central import Central
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Use, check_chain

FILE = "params.yaml"


class Params(Config):
    """What one run of the pipeline does."""

    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random choice of the run")
    partition: PartitionSettings = Field(PartitionSettings(), description="stage 1: the data and who has which")
    model: Model = Field(CNN(), description="the network that is trained")
    train: TrainSettings = Field(TrainSettings(), description="stage 2: how it is trained")
    aggregate: AggregateSettings = Field(
        AggregateSettings(), description="stage 3: what is released, and how good it is"
    )
    attack: AttackSettings = Field(AttackSettings(), description="stage 4: what can be read back out of the messages")
    report: ReportSettings = Field(ReportSettings(), description="stage 5: the page to read")


class ParamsRefused(Refused):
    """Everything that is wrong with some parameters, one problem a line."""

    def __init__(self, file: str, problems: list[str]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(
            file,
            None,
            f"{count}{listed}\nMend {file}; `fedloom list` names the methods, `fedloom show NAME` explains one",
        )


def load(path: Path | str = FILE) -> Params:
    """The parameters in a YAML file.

    Raises
    ------
    ParamsRefused
        With every problem at once, each with its path in the file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(
            str(path), None, "does not exist", "Run in the folder that has it, or name it with --params"
        ) from None
    except OSError as error:
        raise Refused(str(path), None, f"cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise Refused(str(path), None, f"is not YAML: {_syntax(error)}") from None
    return build(data, str(path))


def build(data: Any, file: str = FILE) -> Params:
    """The parameters in ``data``, as read from YAML; ``file`` names their source in what is refused."""
    if not isinstance(data, dict):
        raise ParamsRefused(file, ["must be a mapping with the sections " + ", ".join(Params.model_fields)])
    try:
        # JSON mode is strict about types ("16" is no number) but takes YAML's lists where a field is a tuple.
        params = Params.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ParamsRefused(file, explained(error, data)) from None
    except TypeError:
        raise ParamsRefused(file, [next(_foreign(data, ""))]) from None
    except ValueError as error:
        raise ParamsRefused(file, [f"cannot be used ({error})"]) from None
    problems = list(conflicts(params))
    if problems:
        raise ParamsRefused(file, problems)
    return params


def conflicts(params: Params) -> Iterator[str]:
    """What is wrong between fields that are fine one by one."""
    train = params.train
    # Where only the data know how many there are, `counted` asks again.
    clients = params.partition.clients or train.cohort
    yield from _misfits(params)
    if train.cohort > clients:
        yield f"train.cohort = {train.cohort}: must be at most partition.clients = {clients}"
    yield from train.seed_model.conflicts(params.partition.public)
    for i, round_ in enumerate(train.transcript.rounds):
        if isinstance(round_, int) and not 1 <= round_ <= train.rounds:
            yield f"train.transcript.rounds[{i}] = {round_}: must lie between 1 and train.rounds = {train.rounds}"
    records = bool(train.transcript.rounds and train.transcript.clients)
    if params.attack.needs_transcript and not records:
        yield (
            "attack.suite: has attacks on recorded messages, but none is recorded: set train.transcript.rounds "
            "(for instance [first, last]) and train.transcript.clients, or take those attacks out"
        )
    yield from check_chain(train.uplink, _use(train.algorithm))
    promised = train.privacy.target_delta(clients) is not None
    yield from params.partition.conflicts(promised)
    if promised and params.model.start.reads(params.partition.dataset):
        yield (
            "model.start.dataset: may hold samples of the federation, read out of reach of train.privacy, so that "
            "epsilon would promise too much; use other data (of an idx file, other rows)"
        )
    yield from train.schedule.conflicts(train, clients)
    yield from train.algorithm.conflicts(params.model.name)
    if train.algorithm.single_uploads and isinstance(train.privacy, Central):
        yield (
            f"train.privacy.name = {train.privacy.name!r}: its noise is on the sum of the uploads, and the server of "
            f"train.algorithm.name = {train.algorithm.name!r} reads every one of them; use local"
        )
    yield from train.privacy.conflicts(train.algorithm.weighting, train.sampling.name, train.cohort)
    yield from train.topology.conflicts(train, clients)
    yield from params.aggregate.conflicts(train)
    yield from params.attack.conflicts(train)


def counted(params: Params, clients: int) -> Params:
    """``params`` with the ``clients`` that the partition has, where they leave their number to the data.

    Raises ``ParamsRefused`` where the rest does not go with that many.
    """
    if params.partition.clients is not None:
        return params
    params = params.model_copy(update={"partition": params.partition.model_copy(update={"clients": clients})})
    problems = list(conflicts(params))
    if problems:
        raise ParamsRefused(FILE, problems)
    return params


def _use(algorithm: FedAvg) -> Use:
    return Use(
        algorithm.momentum,
        algorithm.server.momentum,
        algorithm.weight_decay,
        algorithm.accumulates,
        algorithm.one_round_uploads,
    )


def _misfits(params: Params) -> Iterator[str]:
    """What cannot take the kind of samples that the dataset has, or those that they are refined to."""
    dataset, skew, model = params.partition.dataset, params.partition.skew, params.model
    has = f"dataset {dataset.name!r} has {' or '.join(dataset.kinds)} data"
    if not set(dataset.kinds) & set(skew.kinds):
        yield f"partition.skew.name = {skew.name!r}: {has}; it works on {' and '.join(skew.kinds)} data"
    kinds = params.partition.kinds
    if not kinds & set(model.reads):
        fitting = _names([other for other in methods()["model"] if kinds & set(other.reads)])
        made = "" if kinds == set(dataset.kinds) else f", refined to {' or '.join(kinds)} data"
        yield f"model.name = {model.name!r}: {has}{made}; use {', '.join(fitting)}"


def explained(error: ValidationError, data: Any, root: type[Config] = Params) -> list[str]:
    """The problems of a validation of ``root``, where a value that fits no member of a union is one problem."""
    reasons: dict[str, list[str]] = {}
    for detail in error.errors():
        place, reason = explain(dict(detail), data, root)
        reasons.setdefault(place, []).append(reason)
    return [f"{place}: {_joined(list(dict.fromkeys(found)))}" for place, found in reasons.items()]


def _joined(reasons: list[str]) -> str:
    return " or ".join(reasons[:1] + [reason.removeprefix("must be ") for reason in reasons[1:]])


WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "none_required": "null",
}
"""pydantic's kinds of errors in the words of YAML."""


def explain(detail: dict[str, Any], data: Any, root: type[Config] = Params) -> tuple[str, str]:
    """One of pydantic's errors: its place with the value, and what is allowed there, with the nearest name."""
    path, owner, options = _place(detail["loc"], data, root)
    kind, context, found = detail["type"], detail.get("ctx", {}), detail["input"]
    found = str(found) if isinstance(found, Path) else found
    place = path if isinstance(found, dict | list) or kind == "extra_forbidden" else f"{path} = {found!r}"
    if kind == "union_tag_invalid":
        named = found["name"]
        hint = _nearest(named, _names(options)) if isinstance(named, str) else _known(_names(options))
        return f"{path}.name = {named!r}", f"unknown method{hint}"
    if kind == "extra_forbidden":
        allowed = f"unknown field{_nearest(str(detail['loc'][-1]), list(owner.model_fields) if owner else [])}"
    elif kind == "missing":
        allowed = "is missing"
    elif kind in _MAPPING and options:
        allowed = _mapping(options, found)
    elif kind in ("too_short", "too_long"):
        bound, limit = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        allowed = f"must have at {bound} {context[limit]} entries"
    else:
        message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        allowed = WORDS.get(kind, message.replace("String should", "must"))
    return place, allowed


_MAPPING = ("dict_type", "model_type", "model_attributes_type", "union_tag_not_found")


def _mapping(options: list[type[Config]], found: Any) -> str:
    """What a place wants that takes one of ``options`` and was given something without fields, or without a name."""
    names = _names(options)
    if not names:
        return f"must be a mapping of {', '.join(options[0].model_fields)}"
    example = _close(str(found), names) or names[0]
    return f"must be a mapping with a name, such as {{name: {example}}}{_known(names)}"


def _syntax(error: Exception) -> str:
    """What a YAML parser stumbled over, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark and problem else str(error)


def _foreign(value: Any, path: str) -> Iterator[str]:
    """Where YAML gave a value that no field can take, such as a date without quotes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int | float | bool | None):
                yield f"{path or 'the file'}: the name of a field must be text, not {key!r}"
            yield from _foreign(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _foreign(inner, f"{path}[{i}]")
    elif not isinstance(value, str | int | float | bool | None):
        yield f"{path} = {str(value)!r}: must be a number, text, a list or a mapping; a date needs quotes"


def methods() -> dict[str, list[type[Config]]]:
    """The methods that each slot of the file takes, by the slot's dotted path."""
    return {place: found for place, found in places().items() if "name" in found[0].model_fields}


def places(section: type[Config] = Params) -> dict[str, list[type[Config]]]:
    """Every place of the file that takes fields of its own, by dotted path, with the classes that may stand there."""
    return dict(_places(section, ""))


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors and forms."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}


def _places(section: type[Config], prefix: str) -> Iterator[tuple[str, list[type[Config]]]]:
    for name, field in section.model_fields.items():
        found = list(_configs(field.annotation))
        if found:
            yield f"{prefix}{name}", found
        for option in found:
            yield from _places(option, f"{prefix}{name}.")


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """The settings classes that an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _configs(inner)


def _place(
    location: tuple[int | str, ...], data: Any, root: type[Config]
) -> tuple[str, type[Config] | None, list[type[Config]]]:
    """An error's path as it stands in the file, without pydantic's tags of unions; the class whose field it is; and
    the classes that may stand there."""
    path, here, owner, options = "", data, None, [root]
    for i, step in enumerate(location):
        last = i == len(location) - 1
        if isinstance(step, int):
            path, here = f"{path}[{step}]", here[step] if isinstance(here, list) and step < len(here) else None
        elif isinstance(here, dict) and (step in here or (last and here.get("name") != step)):
            owner = _chosen(options, here.get("name"))
            field = owner.model_fields.get(step) if owner else None
            # What is no field is a key of a mapping, whose values are what the mapping takes.
            options = list(_configs(field.annotation)) if field else options
            path, here = f"{path}.{step}" if path else step, here.get(step)
    return path or "the file", owner, options


def _chosen(options: list[type[Config]], name: Any) -> type[Config] | None:
    """The class among ``options`` that ``name`` stands for; the first where none does."""
    named = (
        option for option in options if "name" in option.model_fields and option.model_fields["name"].default == name
    )
    return next(named, options[0] if options else None)


def _names(options: list[type[Config]]) -> list[str]:
    return [option.model_fields["name"].default for option in options if "name" in option.model_fields]


def _close(name: str, names: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, 1, 0.5)), None)


def _known(names: list[str]) -> str:
    return f" (known: {', '.join(names)})" if names else ""


def _nearest(name: str, names: list[str]) -> str:
    close = _close(name, names)
    return (f"; did you mean `{close}`?" if close else "") + _known(names)
