"""What one run changes in `params.yaml`: as a typed form in the Prefect UI, or as ``--set`` on the command line.

Nothing here lists a field: the form is made of the classes that `params.yaml` builds, with every field left optional.
"""

import copy
import functools
import types
import typing
from collections.abc import Iterable, MutableMapping
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from tasks.config import Config, Refused
from tasks.params import Params


@functools.cache
def partial(section: type[Config]) -> type[BaseModel]:
    """``section`` with the same fields, bounds and descriptions, of which each may be left out."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = (
            Annotated[(_partial(field.annotation), *field.metadata)] if field.metadata else _partial(field.annotation)
        )
        # A factory leaves the JSON schema without a default, so that a form starts empty and sends only what was typed.
        fields[name] = (kind, Field(default_factory=lambda: None, description=field.description))
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model(f"{section.__name__}Overrides", __config__=config, __doc__=_summary(section), **fields)


def _summary(section: type[Config]) -> str:
    return (section.__doc__ or "").strip().split("\n\n")[0]


def _partial(annotation: Any) -> Any:
    """An annotation with settings in it made partial; not those in a list, for a list is replaced whole."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return partial(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _partial(inner[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(_partial(option) for option in inner)]  # noqa: UP007 - of a tuple made at run time
    return annotation


Overrides: type[BaseModel] = partial(Params)
"""The form: what differs from `params.yaml` in one run."""


def given(overrides: BaseModel) -> dict[str, Any]:
    """What was filled into the form, as plain nested values."""
    return overrides.model_dump(mode="json", exclude_unset=True)


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """``["train.lr=0.1", "train.uplink=[{name: sign}]"]`` as nested values; what follows the ``=`` is YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    nested: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise Refused("--set", assignment, "must be of the form FIELD=VALUE", "For instance --set train.rounds=50")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise Refused(f"--set {path}", text, f"is not YAML: {error}") from None
        *outer, last = path.strip().split(".")
        here = nested
        for step in outer:
            here = here.setdefault(step, {})
            if not isinstance(here, dict):
                raise Refused("--set", assignment, f"{step} was given a value of its own before")
        here[last] = value
    return nested


def merge(*changes: dict[str, Any]) -> dict[str, Any]:
    """Overrides of overrides: of two values for one field the later one counts."""
    merged: dict[str, Any] = {}
    for change in changes:
        apply(change, merged)
    return merged


def apply(changes: dict[str, Any], document: MutableMapping[str, Any], section: Any = Params) -> None:
    """Writes ``changes`` into the parameters in ``document``, which keeps its comments and order.

    A new method in a slot takes over the fields that it has in common with the old one by descent (of FedAvg's, say,
    FedProx keeps `lr` and `epochs`), not those that merely have the same name.
    """
    for name, value in changes.items():
        there = document.get(name)
        inner = _field(section, name, value)
        if not isinstance(value, dict) or not isinstance(there, MutableMapping):
            document[name] = copy.deepcopy(value)
            continue
        if "name" in value and "name" in there and value["name"] != there["name"]:
            for field in set(there) - _shared(inner, there["name"], value["name"]):
                del there[field]
        apply(value, there, inner)


def _field(section: Any, name: str, value: Any) -> Any:
    """The annotation of field ``name`` where ``section`` admits it."""
    for option in _options(section):
        if name in option.model_fields:
            return option.model_fields[name].annotation
    return None


def _options(annotation: Any) -> list[type[Config]]:
    """The settings classes that an annotation admits."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [option for inner in typing.get_args(annotation) for option in _options(inner)]


def _shared(slot: Any, old: str, new: str) -> set[str]:
    """The fields that two methods of one slot have from a common ancestor."""
    named = {option.model_fields["name"].default: option for option in _options(slot) if "name" in option.model_fields}
    if old not in named or new not in named:
        return {"name"}
    ancestors = (set(named[old].__mro__) & set(named[new].__mro__)) - set(Config.__mro__)
    return {"name"}.union(*(ancestor.model_fields for ancestor in ancestors))
