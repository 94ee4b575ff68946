"""`docs/parameters.md`, `docs/methods.md` and `docs/combinations.md`: ``python -m flows.reference``.

All are written from the types that `params.yaml` builds, and the second from the results of the replications too.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows import combinations, verdicts
from flows.pipelines import Pipelines
from tasks.artifacts import write_text
from tasks.config import Config
from tasks.params import Params, methods, places

PAGE = Path("docs") / "parameters.md"
METHODS = Path("docs") / "methods.md"

HEAD = """# Parameters

Every field of `params.yaml` and `pipelines.yaml`: its default, what is allowed, what it means. Written by
`python -m flows.reference` from the classes that the files build; a test checks that it is current. `fedloom show NAME`
prints one method in the terminal.
"""

METHODS_HEAD = """# Methods

Everything that a place in `params.yaml` can be filled with: what it does, where it is from, its hyperparameters with
their defaults, and what its [replication](replications.md) came to, where it has one. Bounds and meanings of all fields
are in [parameters.md](parameters.md). Written by `python -m flows.reference`; a test checks that it is current.
"""


def write(main: Path) -> None:
    """Writes both pages into a checkout."""
    write_text(main / PAGE, page())
    write_text(main / METHODS, methods_page(main))
    write_text(main / combinations.PAGE, combinations.page())


def methods_page(main: Path) -> str:
    """One row a method, a table a place, as Markdown."""
    said = _replicated(main)
    blocks = [METHODS_HEAD.strip()]
    for place, found in methods().items():
        rows = [["name", "what it does", "source", "hyperparameters", "replication"]]
        for cls in found:
            summary, source = _said(cls)
            verdict = "; ".join(said.get(f"{place}.{_name(cls)}", [])) or "–"
            rows.append([f"`{_name(cls)}`", summary, source or "–", _knobs(cls) or "–", verdict])
        blocks += [f"## `{place}`", verdicts.markdown(rows)]
    return "\n\n".join(blocks) + "\n"


def _replicated(main: Path) -> dict[str, list[str]]:
    """What the replications came to, by the place and name of the methods that they are about."""
    found: dict[str, list[str]] = {}
    for slug, result in verdicts.results(main).items():
        for method in result["about"]:
            found.setdefault(method, []).append(f"[{slug}](replications.md#{slug}): {verdicts.verdict(result)}")
    return found


def _said(cls: type[Config]) -> tuple[str, str]:
    """The sentence and the source of a method's docstring."""
    text = (inspect.getdoc(cls) or "").replace("``", "`")
    rest, _, source = text.partition("Source: ")
    return " ".join(rest.partition("\n\n")[0].split()), " ".join(re.split(r"\n\n", source)[0].split())


def _knobs(cls: type[Config]) -> str:
    """The hyperparameters that a method brings with it, with their defaults; those of its base only where changed."""
    bases = [base for base in cls.__mro__[1:] if issubclass(base, Config) and "name" in base.model_fields]
    base = next((base for base in bases if not base.model_fields["name"].is_required()), None)
    inherited = {name: default(field) for name, field in base.model_fields.items()} if base else {}
    own = {name: default(field) for name, field in cls.model_fields.items() if name != "name"}
    listed = [f"`{name}` {default}" for name, default in own.items() if inherited.get(name) != default]
    return ", ".join(listed + [f"the rest as in `{_name(base)}`"] if base else listed)


def page() -> str:
    """The whole page, as Markdown."""
    settings = places()
    slots = {place: found for place, found in settings.items() if "name" in found[0].model_fields}
    index = [f"- [`{place}`](#{place.replace('.', '')}): {_names(found)}" for place, found in slots.items()]
    blocks = [HEAD, "## Places that take a method", "\n".join(index), "## The top of `params.yaml`", _table(Params)]
    for place, found in settings.items():
        blocks += _chapter(place, found)
    blocks += ["# `pipelines.yaml`", _prose(Pipelines), _table(Pipelines)]
    for place, found in places(Pipelines).items():
        blocks += _chapter(place, found)
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _chapter(place: str, found: list[type[Config]]) -> Iterator[str]:
    yield f"## `{place}`"
    for cls in found:
        if "name" in cls.model_fields:
            yield f"### {_name(cls)}"
        yield _prose(cls)
        yield _table(cls)


def _name(cls: type[Config]) -> str:
    return str(cls.model_fields["name"].default)


def _names(found: list[type[Config]]) -> str:
    return ", ".join(f"`{_name(cls)}`" for cls in found)


def _prose(cls: type[BaseModel]) -> str:
    """The class's docstring: its first sentence as text, the rest, which holds equations, as it is."""
    summary, _, rest = (inspect.getdoc(cls) or "").partition("\n\n")
    return " ".join(summary.split()) + (f"\n\n```text\n{rest}\n```" if rest else "")


def _table(cls: type[BaseModel]) -> str:
    """The fields of ``cls`` but its name; nothing where there are none."""
    properties = cls.model_json_schema()["properties"]
    rows = [
        [f"`{name}`", default(field), allowed(properties[name]), field.description or _summary(field)]
        for name, field in cls.model_fields.items()
        if name != "name"
    ]
    if not rows:
        return "No parameters."
    lines = [["field", "default", "allowed", "meaning"], ["---"] * 4, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _summary(field: FieldInfo) -> str:
    """What a section says of itself, where the field that holds it has no description."""
    return " ".join((field.annotation.__doc__ or "").strip().split("\n\n")[0].split())


def default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    """A default as one would write it into the file, on one line, without what is a default itself."""
    if isinstance(value, Config):
        given = {
            name: inner for name, inner in value if name == "name" or inner != type(value).model_fields[name].default
        }
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in given.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    if isinstance(value, str) and value.isidentifier():
        return value
    return json.dumps(value, default=str)


SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def allowed(schema: dict[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(allowed(option) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{_yaml(choice)}`" for choice in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        inner = allowed(schema["items"]) if "items" in schema else "nothing"
        return "an empty list" if inner == "nothing" else f"list of {inner}"
    if "discriminator" in schema or "oneOf" in schema:
        return "a method"
    if "$ref" in schema:
        return "fields"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true` or `false`",
        "null": "`null`",
    }
    kind = words.get(schema.get("type", ""), "mapping")
    return " ".join(
        [kind, ", ".join(f"{sign} {schema[key]:,}" for key, sign in SIGNS.items() if key in schema)]
    ).strip()


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[1])
    print(PAGE, METHODS, combinations.PAGE, sep="\n")
