"""Markup in which text stays text, and the page around it: style, script and data inside one file, no network.

Everything that is not `Html` is escaped where it is put into a tag, so a text of the data cannot become markup unless
somebody wraps it by hand.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from taosr1 import __version__
from taosr1.runtime.jsonl import clean_text

SCRIPTS = ("table.js", "rows.js", "groups.js")
_PAGE = Path(__file__).parent / "page"


class Html(str):
    """Text that is markup already."""


@dataclass(frozen=True)
class Part:
    """A section of the page. notes: what its input lacks, one sentence each."""

    title: str
    body: Html
    notes: tuple[str, ...] = field(default=())


def html_of(*inside: object) -> Html:
    """All of it in a row; what is not `Html` is text."""
    return Html("".join(one if isinstance(one, Html) else escape(clean_text(str(one))) for one in inside))


def letter_of(place: int) -> str:
    """A short name of an input: A, B, ..., Z, 27, ..."""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """An element. `class_` is the attribute class, `data_x` is data-x; None and False leave one out, True is bare."""
    shown = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {key}")
        elif value is not None and value is not False:
            shown.append(f' {key}="{escape(clean_text(str(value)))}"')
    return Html(f"<{name}{''.join(shown)}>{html_of(*inside)}</{name}>")


def table(header: Sequence[object], rows: Sequence[Sequence[object]], caption: str, **attributes: object) -> Html:
    """A table whose first column names its rows, in a box that scrolls where the window is narrow."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), **attributes)
    return tag("div", inside, class_="scroll", tabindex=0, role="group", aria_label=caption)


def _cell(cell: object) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)


def data_block(name: str, value: object) -> Html:
    """Data for the page's script. No text in it can end the element: < > & are escaped, as is all that is not ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def page(title: str, parts: Sequence[Part], notes: Sequence[Html]) -> str:
    """The whole file. notes: list items on what is left out."""
    style = (_PAGE / "report.css").read_text(encoding="utf-8")
    script = "\n".join((_PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = f"default-src 'none'; style-src {_hash_of(style)}; script-src {_hash_of(script)}; base-uri 'none'"
    policy += "; form-action 'none'"
    links = [tag("a", part.title, href=f"#part-{number}") for number, part in enumerate(parts)]
    sections = [
        tag("section", tag("h2", part.title, id=f"head-{number}"), part.body,
            id=f"part-{number}", aria_labelledby=f"head-{number}")
        for number, part in enumerate(parts)
    ]  # fmt: skip
    left_out = tag("details", tag("summary", f"What is left out, and why ({len(notes)})"), tag("ul", *notes), open=True)
    head = html_of(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", f"taosr1 report: {title}"),
        Html(f"<style>{style}</style>"),
    )
    header = tag("header", tag("h1", "taosr1 report"), tag("p", tag("bdi", title)),
                 tag("nav", *links, aria_label="Parts"))  # fmt: skip
    footer = tag("footer", f"Written by taosr1 {__version__}. F1 and shares are times 100. This file needs no network.")
    no_script = tag("noscript", tag("p", "Without JavaScript the rows and the groups are not shown; all else is."))
    main = tag("main", no_script, left_out if notes else Html(""), *sections)
    body = tag("body", header, main, footer, Html(f"<script>{script}</script>"))
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{body}</html>\n'


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
