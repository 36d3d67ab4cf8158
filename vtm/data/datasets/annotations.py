"""Read annotation tables, and the numbers and class names in them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from vtm.system.names import explain_missing

_DELIMITERS = {",": "commas", " ": "single spaces", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_MAX_CLASSES = 10_000


class Row(dict[str, str]):
    """A row of an annotation table: its fields by column.

    Args:
        fields: fields by column.
        origin: path and line of the row, for error messages.
    """

    def __init__(self, fields: Iterable[tuple[str, str]], origin: str) -> None:
        super().__init__(fields)
        self.origin = origin

    def number(self, column: str, *, minimum: float) -> float:
        """Return the finite number in a column, see `finite_number`."""
        return finite_number(self[column], f"{self.origin}: {column}", minimum=minimum)

    def class_index(self, column: str) -> int:
        """Return the class index in a column, see `class_index`."""
        return class_index(self[column], f"{self.origin}: {column}")


def finite_number(value: Any, origin: str, *, minimum: float) -> float:
    """Return a number from a list, which may be written as text.

    Args:
        value: number or text.
        origin: path, line and name of the value, for the error message.
        minimum: lowest allowed number.

    Raises:
        ValueError: if the value is not a finite number of at least the minimum.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not isfinite(number) or number < minimum or "_" in str(value):
        raise ValueError(f"{origin}: expected a finite number of at least {minimum:g}, got {value!r}; correct it")
    return number


def class_index(value: Any, origin: str) -> int:
    """Return a class index from a list, which may be written as text.

    Args:
        value: whole number or text.
        origin: path, line and name of the value, for the error message.

    Raises:
        ValueError: if the value is not a whole number of at least 0.
    """
    try:
        number = finite_number(value, origin, minimum=0)
    except ValueError:
        number = _MAX_CLASSES
    if number != int(number) or number >= _MAX_CLASSES:
        raise ValueError(
            f"{origin}: expected a class index, a whole number from 0 to {_MAX_CLASSES - 1}, got {value!r}; correct it"
        )
    return int(number)


def read_text(path: Path) -> str:
    """Read a list in UTF-8.

    Raises:
        ValueError: if the text is not UTF-8, or begins with a byte order mark.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected text in UTF-8, got the byte 0x{error.object[error.start]:02x}; save the "
            "list in UTF-8, or get the original file"
        ) from error
    if text.startswith("\ufeff"):
        raise ValueError(
            f"{path}: expected no byte order mark at the beginning; save the list in UTF-8 without it, or get the "
            "original file"
        )
    return text


def read_rows(
    path: Path, columns: Iterable[str], *, delimiter: str, optional: Sequence[str] = (), quoted: bool = False
) -> list[Row]:
    """Read the rows of an annotation table.

    Args:
        path: table in UTF-8.
        columns: names that the header must have, in order.
        delimiter: character between fields.
        optional: names of further columns that the header may end with, all or none.
        quoted: read fields in double quotes as CSV does; otherwise quotes are part of the fields.

    Raises:
        ValueError: if the text is not UTF-8, the header differs from `columns`, or a row has another number of fields.
    """
    columns = list(columns)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(StringIO(read_text(path), newline=""), delimiter=delimiter, quoting=quoting, strict=quoted)
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}: expected a table with the columns {columns} ({error}); get the original file"
        ) from error
    header = lines[0][1] if lines else []
    if header == [*columns, *optional]:
        columns = header
    elif header != columns:
        got = f"{header}{header_hint(header, columns, delimiter=delimiter)}" if lines else "an empty file"
        raise ValueError(f"{path}, line 1: expected the columns {columns}, got {got}; get the original file")
    for number, row in lines:
        if len(row) != len(columns):
            got = str(row) if row else "an empty line"
            raise ValueError(
                f"{path}, line {number}: expected the {len(columns)} fields {columns} with {_DELIMITERS[delimiter]} "
                f"between them, got {got}; correct the line, or get the original file"
            )
    return [Row(zip(columns, row, strict=True), f"{path}, line {number}") for number, row in lines[1:]]


def header_hint(row: list[str], columns: list[str], *, delimiter: str) -> str:
    """Say what is wrong with the first row of a table that is not the expected header; empty if that is unknown."""
    line = delimiter.join(row)
    for other, name in _DELIMITERS.items():
        if other != delimiter and [field.strip() for field in line.split(other)] == columns:
            return f" with {name} instead of {_DELIMITERS[delimiter]} between the columns"
    if sorted(row) == sorted(columns):
        return " in another order"
    if set(columns) <= set(row):
        return " with further columns; remove them"
    if len(row) == len(columns):
        pairs = zip(columns, row, strict=True)
        hints = [explain_missing(name, [got], here="the expected name", there="the header") for name, got in pairs]
        if hint := next(filter(None, hints), None):
            return hint
        if not set(columns) & set(row):
            return ": the line with the names of the columns is missing"
    return ""


def name_classes(pairs: Iterable[tuple[int, str]], *, source: Path) -> list[str]:
    """List class names by index, with a placeholder for each index that has no name.

    Args:
        pairs: class indices and names, possibly repeated.
        source: annotation file, for error messages.

    Raises:
        ValueError: if an index has two names, or a name has two indices.
    """
    names: dict[int, str] = {}
    indices: dict[str, int] = {}
    for index, name in pairs:
        if names.setdefault(index, name) != name:
            hint = explain_missing(name, [names[index]], here="one line", there="another line")
            raise ValueError(
                f"{source}: expected one name per class, got {names[index]} and {name} for class {index}{hint}; "
                "correct the list"
            )
        if indices.setdefault(name, index) != index:
            raise ValueError(
                f"{source}: expected one index per class, got {indices[name]} and {index} for class {name}; "
                "correct the list"
            )
    return [names.get(index, f"class {index}, without videos") for index in range(max(names) + 1)]
