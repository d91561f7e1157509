"""The report as one HTML file that contains its pictures and loads nothing."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msvit_kernels.files import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } h2 { margin-top: 2em; } .note { color: #666; } pre { white-space: pre-wrap; }
"""


@dataclass(frozen=True)
class Table:
    """Names of columns, and rows of text; the first column is left-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, sentences, tables and PNGs; if there is no picture and no table, the text gives the reason."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Path] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes the HTML file in one step, with the pictures inside."""
    body = "\n".join(_section(section) for section in sections)
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1>\n{body}"
    text = f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>{body}\n</body></html>\n"
    write_text(path, text)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.text)}</p>"]
    parts += [_table(table) for table in section.tables]
    for picture in section.pictures:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        alternative = html.escape(f"{section.title}: {picture.name}", quote=True)
        parts.append(f'<img alt="{alternative}" src="data:image/png;base64,{data}">')
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
