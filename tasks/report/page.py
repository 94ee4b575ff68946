"""What a page is made of: panels, and in them paragraphs, tables, figures and pictures. All text is escaped here."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any, Protocol

from markupsafe import Markup, escape

from tasks.report.figures import Drawing

SCRIPTS = ("page.js", "sort.js")
"""Files beside this one that the page runs. Their text is in the page, and no other script runs there: see `render`."""


class Block(Protocol):
    """Something to show in a panel."""

    def html(self) -> Markup: ...


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> Markup:
        return Markup("<p>{}</p>").format(inline(self.text))


@dataclass(frozen=True)
class Headline:
    """The few sentences that come before all others, one a line."""

    sentences: Sequence[str]

    def html(self) -> Markup:
        lines = (Markup("<p>{}</p>").format(inline(sentence)) for sentence in self.sentences)
        return Markup('<div class="headline">{}</div>').format(Markup().join(lines))


@dataclass(frozen=True)
class Points:
    """A list of sentences; the first few words of each may be set off as its ``(lead, text)``."""

    points: Sequence[tuple[str, str]]

    def html(self) -> Markup:
        items = (Markup("<li><strong>{}</strong> {}</li>").format(lead, inline(text)) for lead, text in self.points)
        return Markup('<ul class="points">{}</ul>').format(Markup().join(items))


@dataclass(frozen=True)
class Tiles:
    """A few numbers at a glance: ``(name, value, remark)``."""

    tiles: Sequence[tuple[str, str, str]]

    def html(self) -> Markup:
        tile = Markup('<div><dt>{}</dt><dd>{}<span class="remark">{}</span></dd></div>')
        return Markup('<dl class="tiles">{}</dl>').format(Markup().join(tile.format(*each) for each in self.tiles))


class Amount(str):
    """The text of a cell that sorts by its ``value``; None, which is no number, comes last."""

    value: float | None

    def __new__(cls, text: str, value: float | None) -> "Amount":
        made = super().__new__(cls, text)
        made.value = value
        return made


def link(text: str, address: str) -> Markup:
    """The text of a cell that leads somewhere."""
    return Markup('<a href="{}">{}</a>').format(address, text)


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its header; columns in ``numeric`` are set flush right.

    Where it is ``sortable`` a reader may put the rows in the order of a column.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True
    sortable: bool = False

    def html(self) -> Markup:
        head = Markup().join(Markup('<th scope="col">{}</th>').format(name) for name in self.header)
        body = Markup("\n").join(self._row(row) for row in self.rows)
        # On a phone columns of words stand below each other; numbers stay beside each other in a frame that scrolls,
        # and that takes the focus so that a keyboard can scroll it too.
        kind = "numeric" if self.numeric else "stacked" if len(self.header) > 2 else "words"
        kind += " sortable" if self.sortable else ""
        return Markup(
            '<div class="wide" role="region" aria-label="{caption}" tabindex="0"><table class="{kind}">'
            "<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        ).format(caption=self.caption, kind=kind, head=head, body=body)

    def _row(self, row: Sequence[str]) -> Markup:
        named = zip(self.header[1:], row[1:], strict=True)
        # Only where columns of words stand below each other does a cell have to say which column it is of.
        shape = Markup("<td{2}>{1}</td>") if self.numeric else Markup('<td data-column="{0}"{2}>{1}</td>')
        cells = (shape.format(name, inline(cell), _sorted_by(cell)) for name, cell in named)
        # Names such as membership/loss_threshold may break at their joints, and nowhere else.
        name = Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(row[0]))))
        return Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup().join(cells))


def _sorted_by(cell: str) -> Markup:
    if not isinstance(cell, Amount):
        return Markup()
    return Markup(' data-value="{}"').format("" if cell.value is None else cell.value)


@dataclass(frozen=True)
class Figure:
    """A drawing of our own making (:mod:`tasks.report.figures`) under what it shows in words, and over its numbers."""

    drawing: Drawing
    caption: str

    def html(self) -> Markup:
        drawn = self.drawing
        numbers = Folded("Numbers", [Table(drawn.alt, drawn.header, drawn.rows)]).html() if drawn.rows else ""
        return Markup('<figure class="chart"><figcaption>{}</figcaption><div class="plot">{}</div>{}</figure>').format(
            self.caption, drawn.svg, numbers
        )


@dataclass(frozen=True)
class Picture:
    """An embedded picture; ``alt`` says what it shows to those who do not see it."""

    uri: str
    alt: str
    caption: str

    def html(self) -> Markup:
        return Markup('<figure class="picture"><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            self.uri, self.alt, inline(self.caption)
        )


@dataclass(frozen=True)
class Strip:
    """Small pictures that belong together, side by side on a phone too; ``name`` says of what they are."""

    name: str
    pictures: Sequence[Picture]

    def html(self) -> Markup:
        shown = Markup().join(picture.html() for picture in self.pictures)
        return Markup('<div class="strip" role="group" aria-label="{}">{}</div>').format(self.name, shown)


@dataclass(frozen=True)
class Row:
    """Blocks side by side where there is room."""

    blocks: Sequence[Block]

    def html(self) -> Markup:
        return Markup('<div class="row">{}</div>').format(Markup().join(block.html() for block in self.blocks))


@dataclass(frozen=True)
class Heading:
    """A heading within a panel."""

    text: str

    def html(self) -> Markup:
        return Markup("<h3>{}</h3>").format(self.text)


@dataclass(frozen=True)
class Folded:
    """Blocks that the reader may open."""

    summary: str
    blocks: Sequence[Block]

    def html(self) -> Markup:
        inside = Markup().join(block.html() for block in self.blocks)
        return Markup("<details><summary>{}</summary>{}</details>").format(self.summary, inside)


@dataclass(frozen=True)
class Code:
    """Text to copy as it is."""

    text: str

    def html(self) -> Markup:
        return Markup('<pre tabindex="0"><code>{}</code></pre>').format(self.text)


@dataclass(frozen=True)
class Panel:
    """One section of the page."""

    title: str
    blocks: Sequence[Block] = field(repr=False)

    @cached_property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> Markup:
        return Markup("\n").join(block.html() for block in self.blocks)


def inline(text: str) -> Markup:
    """Text, escaped, in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def render(title: str, note: str, lead: str, panels: Sequence[Panel]) -> str:
    """The page: one HTML document that asks for nothing from elsewhere and runs :data:`SCRIPTS` and nothing else.

    The policy in its head names each script by the hash of its text, so a script that came in with the data would not
    run even if it got past the escaping.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("page.html"))
    scripts = [_file(name) for name in SCRIPTS]
    content: dict[str, Any] = {
        "title": title,
        "note": note,
        "lead": lead,
        "panels": panels,
        "style": Markup(_file("page.css")),
        "scripts": [Markup(script) for script in scripts],
        "hashes": [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    }
    return template.render(content)


def _file(name: str) -> str:
    return (files("tasks.report") / name).read_text(encoding="utf-8")
