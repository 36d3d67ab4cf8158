"""Read annotation tables and the class names in them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path


def read_rows(path: Path, columns: Iterable[str], *, delimiter: str) -> list[dict[str, str]]:
    """Read the rows of an annotation table.

    Args:
        path: table in UTF-8.
        columns: names that the header must have, in order.
        delimiter: character between fields.

    Raises:
        ValueError: if the header differs from `columns`, or a row has another number of fields.
    """
    columns = list(columns)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    if not rows or rows[0] != columns:
        raise ValueError(f"{path}: expected the columns {columns}, got {rows[:1]}; get the original file")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(f"{path}, line {number}: expected the fields {columns}, got {row}; get the original file")
    return [dict(zip(columns, row, strict=True)) for row in rows[1:]]


def name_classes(pairs: Iterable[tuple[int, str]], *, source: Path) -> list[str]:
    """List class names by index, with a placeholder for each index that has no name.

    Args:
        pairs: class indices and names, possibly repeated.
        source: annotation file, for error messages.

    Raises:
        ValueError: if an index has two names.
    """
    names: dict[int, str] = {}
    for index, name in pairs:
        if names.setdefault(index, name) != name:
            raise ValueError(f"{source}: expected one name per class, got {names[index]} and {name} for class {index}")
    return [names.get(index, f"class {index}, without videos") for index in range(max(names) + 1)]
