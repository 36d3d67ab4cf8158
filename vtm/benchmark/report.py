"""The tables of the benchmark in Markdown and CSV, with a description of the machine."""

from __future__ import annotations

import csv
import io
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tabulate import tabulate

from vtm.benchmark.measuring import Result
from vtm.benchmark.rows import Row
from vtm.system.atomic import write_atomically
from vtm.system.measure import device_name

COLUMNS = (
    "samples/s",
    "ms",
    "peak GB",
    "GFLOP",
    "GB moved at least",
    "% of matrix rate",
    "× plain none",
    "× fused none",
)
LEGEND = (
    "Features are random normal, and each row runs in its own process. Times are medians after a warm-up; for long "
    "videos the time of a single call after one with a short clip. Training is forward, loss of all paths and "
    "backward, without the optimizer. The encoder is frozen and uses fused attention. Peak GB: memory beyond that of "
    "model and inputs. GFLOP: products and attention, without recomputation in the backward pass. GB moved at least: "
    "inputs, used weights and logits once, and in training the gradients of the weights. % of matrix rate: GFLOP per "
    "second relative to a large matrix product of the same precision in the same process. × none: speed relative to "
    "no merging, with plain attention, which writes its N × N matrices as the paper's baseline does, or with fused "
    "attention."
)


@dataclass
class Report:
    """The rows that have been measured so far.

    Attributes:
        machine: machine and versions, by column name.
        shape: description of the setting.
        entries: table title, row and result of each measurement, in order.
    """

    machine: dict[str, str]
    shape: str
    entries: list[tuple[str, Row, Result]] = field(default_factory=list)

    def cells(self, row: Row, result: Result) -> dict[str, float | None]:
        """Compute the numbers of a row by column; None where unknown."""
        seconds, flop = result.seconds, result.flop
        reached = None if seconds is None or flop is None or result.rate is None else flop / seconds / result.rate
        plain, fused = (self._baseline(row, plain=plain) for plain in (True, False))
        values = (
            None if seconds is None else row.batch / seconds,
            None if seconds is None else 1e3 * seconds,
            None if result.peak_bytes is None else max(0, result.peak_bytes) / 1e9,
            None if flop is None else flop / 1e9,
            None if result.moved_bytes is None else result.moved_bytes / 1e9,
            None if reached is None else 100 * reached,
            None if seconds is None or plain is None else plain / seconds,
            None if seconds is None or fused is None else fused / seconds,
        )
        return dict(zip(COLUMNS, values, strict=True))

    def table(self, title: str) -> str:
        """Format a table in Markdown."""
        rows = []
        for row, result in (entry[1:] for entry in self.entries if entry[0] == title):
            cells = ["" if value is None else short(value) for value in self.cells(row, result).values()]
            remarks = [f"{value:.3g} {name}" for name, value in result.details.items()]
            texts = [row.name, *cells, "; ".join([*remarks, result.problem]).strip("; ")]
            rows.append([text.replace("|", r"\|") for text in texts])  # else R/|S| would be three cells
        sides = ["left", *["right"] * len(COLUMNS), "left"]
        return tabulate(rows, ["", *COLUMNS, "remarks"], tablefmt="pipe", disable_numparse=True, colalign=sides)

    def markdown(self) -> str:
        """Format all tables in Markdown."""
        lines = ["# Speed and memory", "", f"{'; '.join(self.machine.values())}.", "", f"{self.shape}.", "", LEGEND]
        for title in dict.fromkeys(title for title, _, _ in self.entries):
            lines += ["", f"## {title}", "", self.table(title)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Format all rows as CSV in full precision, each with the machine."""
        text = io.StringIO()
        facts = ("table", "row", *COLUMNS, "needed GB", "matrix GFLOP/s", "remarks", "problem", *self.machine)
        writer = csv.DictWriter(text, facts, lineterminator="\n")
        writer.writeheader()
        for title, row, result in self.entries:
            known = {
                "needed GB": None if result.needed_bytes is None else result.needed_bytes / 1e9,
                "matrix GFLOP/s": None if result.rate is None else result.rate / 1e9,
                "remarks": "; ".join(f"{value:.6g} {name}" for name, value in result.details.items()),
                "problem": result.problem,
            }
            writer.writerow({"table": title, "row": row.name} | self.cells(row, result) | known | self.machine)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write `benchmark.md` and `benchmark.csv`, each atomically."""
        write_atomically(folder / "benchmark.md", self.markdown())
        write_atomically(folder / "benchmark.csv", self.csv())

    def _baseline(self, row: Row, *, plain: bool) -> float | None:
        """Return the seconds of this row without merging, with its own windows if measured, else the default ones."""
        found = {other: result.seconds for _, other, result in self.entries if other.strategy == "none"}
        same = replace(row, strategy="none", plain=plain, compiled=False, streaming=False)
        windows = tuple(text for text in row.overrides if text.startswith("model."))
        return found.get(replace(same, overrides=windows), found.get(replace(same, overrides=())))


def machine(device: torch.device | str, threads: int, commit: str | None) -> dict[str, str]:
    """Describe the machine and the versions.

    Args:
        device: torch device.
        threads: number of CPU threads.
        commit: commit of the source; None if unknown.
    """
    device = torch.device(device)
    gpu = {"gpu": f"{device_name(device)}, CUDA {torch.version.cuda}"} if device.type == "cuda" else {}
    return gpu | {
        "cpu": f"{device_name('cpu')}, {os.cpu_count()} cores",
        "threads": f"{threads} threads",
        "python": f"Python {platform.python_version()}",
        "torch": f"torch {torch.__version__}",
        "commit": f"vtm {commit or 'of unknown commit'}",
    }


def short(value: float) -> str:
    """Round to three significant digits, but never above the decimal point.

    >>> short(1234.5), short(12.345), short(0.012345)
    ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
