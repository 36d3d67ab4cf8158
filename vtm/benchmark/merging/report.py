"""The tables of the benchmarks of merging and of compressors, in Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tabulate import tabulate

from vtm.benchmark.report import short
from vtm.system.atomic import write_atomically


@dataclass(frozen=True)
class Spread:
    """A mean and a standard deviation.

    Attributes:
        mean: mean.
        deviation: standard deviation of a sample; None for a single value.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Compute mean and standard deviation of values.

        >>> Spread.of([0.5, 1.5]).mean
        1.0
        """
        values = list(values)
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


Cell = str | float | Spread | None


@dataclass
class Report:
    """The rows that have been measured so far.

    Attributes:
        name: name of the files without suffix.
        heading: heading of the page.
        facts: machine, versions and command, by column name.
        legend: explanation of the columns.
        tables: rows of each table by its title; a row is its cells by column.
    """

    name: str
    heading: str
    facts: dict[str, str]
    legend: str
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)

    def table(self, title: str) -> str:
        """Format a table in Markdown."""
        rows = self.tables[title]
        columns = list(rows[0])
        texts = [[_text(column, row[column]) for column in columns] for row in rows]
        words = [all(isinstance(row[column], str) for row in rows) for column in columns]
        sides = ["left" if left else "right" for left in words]
        return tabulate(texts, columns, tablefmt="pipe", disable_numparse=True, colalign=sides)

    def markdown(self) -> str:
        """Format all tables in Markdown."""
        lines = [f"# {self.heading}", "", f"{'; '.join(self.facts.values())}.", "", self.legend]
        for title in self.tables:
            lines += ["", f"## {title}", "", self.table(title)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Format all rows as CSV in full precision, each with the facts."""
        rows = []
        for title, cells in self.tables.items():
            for row in cells:
                flat: dict[str, str | float | None] = {"table": title, **self.facts}
                for column, value in row.items():
                    if isinstance(value, Spread):
                        flat |= {column: value.mean, f"{column}, deviation": value.deviation}
                    else:
                        flat[column] = value
                rows.append(flat)
        text = io.StringIO()
        columns = dict.fromkeys(column for row in rows for column in row if column not in self.facts)
        writer = csv.DictWriter(text, [*columns, *self.facts], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write both files, each atomically."""
        write_atomically(folder / f"{self.name}.md", self.markdown())
        write_atomically(folder / f"{self.name}.csv", self.csv())


def _text(column: str, value: Cell) -> str:
    """Format a cell: percentages with one decimal, other numbers with three significant digits.

    >>> _text("top-1 %", Spread(97.25, 0.5)), _text("seconds", 1.2345), _text("remarks", "")
    ('97.2 ± 0.5', '1.23', '')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, Spread):
        mean = _text(column, value.mean)
        decimals = len(mean.partition(".")[2])
        return mean if value.deviation is None else f"{mean} ± {value.deviation:.{decimals}f}"
    return f"{value:.1f}" if "%" in column else short(value)
