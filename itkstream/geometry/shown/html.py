"""A value as Jupyter shows it: a title, lines, a table and a picture, all names escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["card"]


def card(
    title: str,
    lines: Iterable[str] = (),
    rows: Sequence[Sequence[Any]] = (),
    picture: bytes | None = None,
) -> str:
    """Lay out a value; the first of the rows, if there are any, is the head of the table.

    The picture is a PNG.
    """
    said = "".join(f"<br>{escape(line)}" for line in lines)
    shown = ""
    if picture is not None:
        encoded = base64.b64encode(picture).decode()
        shown = (
            "<img alt='middle plane' style='max-width:320px' "
            f"src='data:image/png;base64,{encoded}'>"
        )
    return f"<div><p><b>{escape(title)}</b>{said}</p>{shown}{_table(rows)}</div>"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head, *body = rows
    return f"<table>{_row(head, 'th')}{''.join(_row(row, 'td') for row in body)}</table>"


def _row(cells: Sequence[Any], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
