"""What one run changes in `params.yaml`: the overrides of a pipeline, ``--set`` on the command line, the Prefect UI."""

import copy
import typing
from collections.abc import Iterable, MutableMapping
from typing import Any

from tasks.config import Config, Refused
from tasks.params import Params


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
    for option in options(section):
        if name in option.model_fields:
            return option.model_fields[name].annotation
    return None


def options(annotation: Any) -> list[type[Config]]:
    """The settings classes that an annotation admits."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [option for inner in typing.get_args(annotation) for option in options(inner)]


def _shared(slot: Any, old: str, new: str) -> set[str]:
    """The fields that two methods of one slot have from a common ancestor."""
    named = {option.model_fields["name"].default: option for option in options(slot) if "name" in option.model_fields}
    if old not in named or new not in named:
        return {"name"}
    ancestors = (set(named[old].__mro__) & set(named[new].__mro__)) - set(Config.__mro__)
    return {"name"}.union(*(ancestor.model_fields for ancestor in ancestors))
