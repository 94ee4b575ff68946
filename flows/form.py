"""The form by which a pipeline is started in the Prefect UI: every parameter, typed, with the value that it has now.

Nothing here lists a field: names, bounds, help and methods come from the classes that `params.yaml` builds. Where a
method stands, the form has its name to choose from and its own fields; what another method needs beyond its defaults is
typed as on the command line, after ``--set``. The server checks what is sent by the same schema, so that a mistake is
refused when it is made.
"""

import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.overrides import options
from flows.pipelines import Stage
from tasks.config import Config
from tasks.params import Params

Schema = dict[str, Any]


def properties(pipeline: str, settings: Params) -> dict[str, Schema]:
    """The parameters of the flow as a JSON schema, with the ``settings`` of the pipeline as defaults."""
    help_ = (
        "Further parameters, a line each, as in train.algorithm.mu=0.1 or train.uplink=[{name: sign}]; they count last."
    )
    wanted = {"type": "array", "items": {"type": "string", "enum": list(typing.get_args(Stage))}, "uniqueItems": True}
    shown: dict[str, Schema] = {
        "overrides": {
            **_section(settings),
            "description": "What params.yaml and the pipeline say now. What is changed here holds for this run alone.",
        },
        "further": {"type": "array", "items": {"type": "string", "pattern": ".=."}, "description": help_},
        "stages": {**wanted, "description": "Stages wanted, with what they depend on; none for those of the pipeline."},
        "force": {"type": "boolean", "default": False, "description": "Run them even where nothing has changed."},
        "pipeline": {"type": "string", "enum": [pipeline], "default": pipeline, "description": "Of pipelines.yaml."},
    }
    titles = {"overrides": "parameters", "further": "more parameters"}
    return {name: {"title": titles.get(name, name), "position": i, **s} for i, (name, s) in enumerate(shown.items())}


def differing(typed: Any, now: Any) -> Any:
    """What was typed into a form that showed the values in ``now``: the form sends all of them back."""
    if not isinstance(typed, dict) or not isinstance(now, dict):
        return typed
    changed = {name: differing(value, now.get(name)) for name, value in typed.items() if not _same(value, now, name)}
    return {name: value for name, value in changed.items() if value != {}}


def shown(value: Any) -> Any:
    """``value`` as the form shows it: of a method in a list, the fields that were written."""
    if isinstance(value, Config):
        return {name: shown(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple):
        return [_item(v) if isinstance(v, Config) else shown(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _same(value: Any, now: dict[str, Any], name: str) -> bool:
    return name in now and value == now[name] and isinstance(value, bool) == isinstance(now[name], bool)


def _section(value: Config) -> Schema:
    """An object of the form: the fields of a section, or those of the method that stands there."""
    kinds = type(value).model_json_schema()
    known = kinds.get("$defs", {})
    fields = {
        name: _field(field.annotation, getattr(value, name), kinds["properties"][name], known)
        for name, field in type(value).model_fields.items()
    }
    for i, (name, schema) in enumerate(fields.items()):
        fields[name] = {"title": name, "position": i, **schema}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _field(annotation: Any, value: Any, kind: Schema, known: Schema) -> Schema:
    about = {"description": kind.get("description", "")}
    classes = options(annotation)
    if not classes:
        return _plain(kind, known) | {"default": shown(value)}
    if isinstance(value, tuple):
        return {"type": "array", "items": _choice(classes, value), "default": shown(value)} | about
    if value is None:
        return _choice(classes, ()) | about
    return _slot(classes, value) | about


def _slot(classes: list[type[Config]], value: Config) -> Schema:
    """A section, or a method with the others that may stand in its place."""
    section = _section(value)
    if "name" not in type(value).model_fields:
        return section
    summary = (type(value).__doc__ or "").strip().split("\n\n")[0]
    named = {**_names(classes), "default": value.name, "description": f"{value.name}: {' '.join(summary.split())}"}
    section["properties"]["name"] |= named
    return {**section, "additionalProperties": True, "propertyNames": {"enum": _fields(classes)}}


def _choice(classes: list[type[Config]], present: Iterable[Config]) -> Schema:
    """A method that may be added; with the fields that those which are ``present`` set, if any."""
    if any("name" not in cls.model_fields for cls in classes):
        return {"type": "object", "additionalProperties": True, "propertyNames": {"enum": _fields(classes)}}
    fields: dict[str, Schema] = {"name": {"title": "name", "position": 0, **_names(classes)}}
    for value in present:
        kinds = type(value).model_json_schema()
        for name in _item(value):
            if name not in fields and not options(type(value).model_fields[name].annotation):
                plain = _plain(kinds["properties"][name], kinds.get("$defs", {}))
                plain.pop("default", None)
                fields[name] = {"title": name, "position": len(fields), **plain}
    return {"type": "object", "properties": fields, "required": ["name"], "propertyNames": {"enum": _fields(classes)}}


def _item(value: Config) -> dict[str, Any]:
    """A method as it was written: its name, and what was given to it."""
    return {"name": value.name, **value.model_dump(mode="json", exclude_unset=True)}


def _names(classes: list[type[Config]]) -> Schema:
    return {"type": "string", "enum": [cls.model_fields["name"].default for cls in classes]}


def _fields(classes: list[type[Config]]) -> list[str]:
    return sorted({name for cls in classes for name in cls.model_fields})


def _plain(kind: Any, known: Schema) -> Any:
    """A JSON schema that stands alone, in which one allowed word is a choice like several."""
    if isinstance(kind, list):
        return [_plain(item, known) for item in kind]
    if not isinstance(kind, dict):
        return kind
    if "$ref" in kind:
        kind = known[kind["$ref"].rsplit("/", 1)[-1]] | {name: value for name, value in kind.items() if name != "$ref"}
    plain = {name: _plain(value, known) for name, value in kind.items() if name not in ("title", "const")}
    return plain | ({"enum": [kind["const"]]} if "const" in kind else {})
