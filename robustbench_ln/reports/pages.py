"""Pages of words, figures and tables, as Markdown or as one HTML file that holds all it needs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_ln.reports import html, markdown
from robustbench_ln.reports.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        text: paragraphs.
        points: a list below them.
        figure: a PNG; None for none.
        alt: what the figure shows, in words.
        tables: below.
    """

    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    figure: Path | None = None
    alt: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        title: its heading.
        lead: what it is about.
        warnings: what a reader has to know first.
        sections: its parts.
        facts: how it was made, pairs of words.
        links: pages beside it: words and the stem of the file's name.
    """

    title: str
    lead: str
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[tuple[str, str]] = field(default_factory=tuple)


def as_markdown(page: Page) -> str:
    """The page as Markdown; figures are links to files beside it."""
    escape = markdown.escape
    parts = [f"# {escape(page.title)}", escape(page.lead)]
    if page.warnings:
        parts.append("\n".join(f"> **Warning:** {escape(warning)}  " for warning in page.warnings))
    if page.links:
        parts.append("\n".join(f"- [{escape(words)}]({stem}.md)" for words, stem in page.links))
    for section in page.sections:
        parts.append(f"## {escape(section.title)}")
        if section.figure is not None:
            parts.append(f"![{escape(section.alt)}]({section.figure.name})")
        parts += [escape(text) for text in section.text]
        if section.points:
            parts.append("\n".join(f"- {escape(point)}" for point in section.points))
        parts += [markdown.section(one, level=3) for one in section.tables]
    if page.facts:
        facts = "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in page.facts)
        parts.append(f"## How it was run\n\n{facts}")
    return "\n\n".join(parts) + "\n"


def as_html(page: Page) -> str:
    """The page as one HTML file: figures are inside it, nothing is loaded, and a policy enforces that."""

    def picture(path: Path) -> str:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"

    return html.page(
        "article.html.j2",
        {"title": page.title, "lead": page.lead, "warnings": page.warnings, "page": page, "picture": picture},
    )
