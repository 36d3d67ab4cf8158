"""The tables of the benchmark as Markdown and CSV, with the machine they are of."""

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
from vtm.benchmark.rows import Row, Setting
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
    "Random normal features, every row in a process of its own; times are medians after a warm-up, of long videos of a "
    "single call after one with a short clip; training is forward, loss of all paths and backward, without the "
    "optimizer; an encoder is frozen, with fused attention. Peak GB: above that of model and inputs. GFLOP: products "
    "and attention, without what a backward pass computes again. GB moved at least: inputs, weights in use and logits "
    "once, in training the gradients of the weights. % of matrix rate: GFLOP per second against those of a large "
    "matrix product of the same precision, in the same process. × none: how many times faster than no merging with "
    "plain attention, which writes its N × N matrices as the paper's baseline does, or with fused attention."
)


@dataclass
class Report:
    """What has been measured so far.

    Attributes:
        machine: what it is measured on and with, by name.
        shape: the setting, in words.
        entries: title of the table, row and result, in order.
    """

    machine: dict[str, str]
    shape: str
    entries: list[tuple[str, Row, Result]] = field(default_factory=list)

    def cells(self, row: Row, result: Result) -> dict[str, float | None]:
        """Work out the numbers of a row, by column; None for what is not known."""
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
        """Write a table in Markdown."""
        rows = []
        for row, result in (entry[1:] for entry in self.entries if entry[0] == title):
            cells = ["" if value is None else _short(value) for value in self.cells(row, result).values()]
            remarks = [f"{value:.3g} {name}" for name, value in result.details.items()]
            texts = [row.name, *cells, "; ".join([*remarks, result.problem]).strip("; ")]
            rows.append([text.replace("|", r"\|") for text in texts])  # R/|S| would be three cells
        sides = ["left", *["right"] * len(COLUMNS), "left"]
        return tabulate(rows, ["", *COLUMNS, "remarks"], tablefmt="pipe", disable_numparse=True, colalign=sides)

    def markdown(self) -> str:
        """Write all tables."""
        lines = ["# Speed and memory", "", f"{'; '.join(self.machine.values())}.", "", f"{self.shape}.", "", LEGEND]
        for title in dict.fromkeys(title for title, _, _ in self.entries):
            lines += ["", f"## {title}", "", self.table(title)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Write all rows in full precision, each with the machine."""
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
        """Replace `benchmark.md` and `benchmark.csv`, each in one step."""
        write_atomically(folder / "benchmark.md", self.markdown())
        write_atomically(folder / "benchmark.csv", self.csv())

    def _baseline(self, row: Row, *, plain: bool) -> float | None:
        """Find the seconds of the same row without merging, with its own windows or else the usual ones."""
        found = {other: result.seconds for _, other, result in self.entries if other.strategy == "none"}
        same = replace(row, strategy="none", plain=plain, compiled=False, streaming=False)
        windows = tuple(text for text in row.overrides if text.startswith("model."))
        return found.get(replace(same, overrides=windows), found.get(replace(same, overrides=())))


def machine(setting: Setting, commit: str | None) -> dict[str, str]:
    """Name the machine and the versions.

    Args:
        setting: names the device and the threads.
        commit: of the source; None if it is not known.
    """
    device = torch.device(setting.device)
    gpu = {"gpu": f"{device_name(device)}, CUDA {torch.version.cuda}"} if device.type == "cuda" else {}
    return gpu | {
        "cpu": f"{device_name('cpu')}, {os.cpu_count()} cores",
        "threads": f"{setting.threads} threads",
        "python": f"Python {platform.python_version()}",
        "torch": f"torch {torch.__version__}",
        "commit": f"vtm {commit or 'of unknown commit'}",
    }


def _short(value: float) -> str:
    """Round to three digits, but no whole number to tens.

    >>> _short(1234.5), _short(12.345), _short(0.012345)
    ('1234', '12.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
