"""Where the methods of this run come from."""

import re
from collections.abc import Iterator

from tasks.config import Config
from tasks.report.page import Panel, Table, Text
from tasks.report.run import Run


def reading(run: Run) -> Panel | None:
    """The methods in use with what they do in a sentence and the source that their docstrings name."""
    found = {type(method): method for method in methods(run.params)}
    rows = [(method.name, sentence(kind), origin) for kind, method in found.items() if (origin := source(kind))]
    if not rows:
        return None
    text = Text("The methods of this run and the papers to read. `fedloom show NAME` explains one and its knobs.")
    header = ("method", "what it does", "source")
    return Panel("What to read next", (text, Table("Methods and their sources", header, rows, numeric=False)))


def methods(value: object) -> Iterator[Config]:
    """The methods within some settings, those of methods among them."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from methods(item)
    if isinstance(value, Config):
        if "name" in type(value).model_fields:
            yield value
        for name in type(value).model_fields:
            yield from methods(getattr(value, name))


def sentence(kind: type) -> str:
    """The first sentence of a class's docstring."""
    first = _plain((kind.__doc__ or "").strip().split("\n\n")[0])
    return re.split(r"(?<=[.:]) ", first)[0].rstrip(":")


def source(kind: type) -> str | None:
    """The source that a class's docstring names."""
    match = re.search(r"^\s*Sources?: (.+?)(?:\n\s*\n|\Z)", kind.__doc__ or "", re.DOTALL | re.MULTILINE)
    return _plain(match[1]) if match else None


def _plain(text: str) -> str:
    """Running text without markup."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "").replace("`", "")
    return re.sub(r"\s+", " ", text).strip()
