"""Cells of CSV files that spreadsheets show as text, although they begin as a formula does."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_MARKED = re.compile(r"''*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?(e[+-]?\d+)?|inf|nan)")


def as_cell(text: str) -> str:
    """Return a text, or with an apostrophe before it if a spreadsheet would take it for a formula; numbers stay.

    >>> as_cell("=HYPERLINK(1)"), as_cell("-a.mp4"), as_cell("-1.5"), as_cell("a=b")
    ("'=HYPERLINK(1)", "'-a.mp4", '-1.5', 'a=b')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Return the text that `as_cell` was given.

    >>> from_cell(as_cell("=1")), from_cell(as_cell("'=1")), from_cell(as_cell("'tis"))
    ('=1', "'=1", "'tis")
    """
    return cell[1:] if _MARKED.match(cell) else cell
