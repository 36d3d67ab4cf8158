"""The tables and rows of the benchmark: overrides of `conf/`, starting from the paper's setting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
_SYMBOLS = {"merging.partition_factor": "γ", "merging.merge_count": "R/|S|", "model.window_frames": "L"}
_LONG = ("model.window_frames=[6,30,60,600,3600]", "model.channels=[512,256,256,256,256]")
_LONG_FRAMES = (60, 600, 3600, 10800)  # one minute to three hours at one frame per second


@dataclass(frozen=True)
class Setting:
    """The setting that all rows share.

    Attributes:
        frames: T of the clips, unless a row sets its own.
        height: H of the token grid, unless the encoder sets it.
        width: W of the token grid, unless the encoder sets it.
        channels: C of the tokens, unless the encoder sets it.
        device: torch device.
        threads: number of CPU threads.
        repeats: timed calls of a row, of which the median is reported; at most 3 for slow rows.
        limit: seconds; a row whose arithmetic alone takes longer per call is skipped.
        overrides: configuration overrides of all rows, before the overrides of a row; overrides of merging apply only
            to rows that merge.
    """

    frames: int
    height: int
    width: int
    channels: int
    device: str
    threads: int
    repeats: int
    limit: float
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One measurement, made in its own process.

    Attributes:
        strategy: option of `conf/merging`.
        plain: whether attention writes its N × N matrices, as in the paper.
        training: whether to measure forward, loss of all paths and backward, instead of inference.
        batch: batch size B.
        precision: Lightning's name of the precision, "32-true" or "bf16-mixed".
        overrides: configuration overrides.
        compiled: whether to use torch.compile.
        encoder: whether the inputs are frames for the encoder of the configuration, with random weights.
        frames: T, if different from the setting's.
        streaming: whether the features arrive window by window, and are never all in memory.
    """

    strategy: str
    plain: bool = False
    training: bool = False
    batch: int = 1
    precision: str = "32-true"
    overrides: tuple[str, ...] = ()
    compiled: bool = False
    encoder: bool = False
    frames: int | None = None
    streaming: bool = False

    @property
    def slow(self) -> bool:
        """Whether the row is limited to three timed calls."""
        return self.plain or self.training or self.encoder or self.batch > 1

    @property
    def name(self) -> str:
        """Description of the row, without its default values.

        >>> Row("learnable", training=True, overrides=("merging.partition_factor=2",)).name
        'learnable, γ = 2, training'
        """
        attention = {"none": "fused attention"}.get(self.strategy)
        choices = [override.split("=", 1) for override in self.overrides]
        parts = [
            self.strategy,
            "plain attention" if self.plain else attention,
            *(f"{_SYMBOLS[key]} = {value}" for key, value in choices if key in _SYMBOLS and self.frames is None),
            f"{self.frames} frames" if self.frames else None,
            "training" if self.training else None,
            f"batch {self.batch}" if self.batch > 1 else None,
            self.precision if self.precision != "32-true" else None,
            "compiled" if self.compiled else None,
            "with the encoder" if self.encoder else None,
            "streaming" if self.streaming else None,
        ]
        return ", ".join(part for part in parts if part)


def default_tables(
    batches: tuple[int, ...], precisions: tuple[str, ...], *, plain_everywhere: bool, encoder: bool
) -> dict[str, list[Row]]:
    """Return tables that change one factor at a time from the paper's setting.

    Args:
        batches: batch sizes; the first is the default.
        precisions: Lightning's names of the precisions; the first is the default.
        plain_everywhere: whether to measure plain attention in every precision, which takes minutes on a CPU.
        encoder: whether to also measure with the encoder.
    """
    plain = Row("none", plain=True, batch=batches[0], precision=precisions[0])
    fused = replace(plain, plain=False)
    best = replace(fused, strategy="learnable")
    merging = [replace(fused, strategy=name) for name in _strategies() if name != "none"]
    usual = [plain, fused, best]
    tables = {
        "Strategies": [*usual[:2], *merging, *_training([*usual[:2], *merging])],
        "Partition factor γ": [plain, fused, *_ablation(best, "partition_factor")],
        "Window lengths L": [plain, fused, *_ablation(best, "window_frames")],
        "Merge count R": [plain, fused, *_ablation(best, "merge_count")],
    }
    if len(batches) > 1:
        rows = [replace(row, batch=batch) for batch in batches for row in usual]
        tables["Batch"] = [*rows, *_training(rows)]
    if len(precisions) > 1:
        rows = [replace(row, precision=p) for p in precisions for row in usual if plain_everywhere or not row.plain]
        tables["Precision"] = [*rows, *_training(rows)]
    tables["torch.compile"] = [fused, best, replace(best, compiled=True)]
    if encoder:
        tables["With the encoder"] = [replace(row, encoder=True) for row in (fused, best)]
    return tables


def full_tables(batches: tuple[int, ...], precisions: tuple[str, ...], *, encoder: bool) -> dict[str, list[Row]]:
    """Return one table with every combination, in inference and training; with `encoder` also with the encoder."""
    factors, counts, lengths = (_values(name) for name in ("partition_factor", "merge_count", "window_frames"))
    kinds = product((False, True) if encoder else (False,), (False, True), precisions, batches, lengths)
    rows = []
    for encoded, training, precision, batch, length in kinds:
        base = Row("none", False, training, batch, precision, (length,), encoder=encoded)
        rows += [replace(base, plain=True), base]
        for name, factor, count in product(_strategies(), factors, counts):
            if name != "none":
                rows.append(replace(base, strategy=name, overrides=(factor, count, length)))
    return {"All combinations": rows}


def long_tables() -> dict[str, list[Row]]:
    """Return a table of videos of increasing length, whole and as a stream, through five blocks."""
    whole = [Row("learnable", frames=frames, overrides=_LONG) for frames in _LONG_FRAMES]
    return {"Long videos": [*whole, *(replace(row, streaming=True) for row in whole)]}


def _strategies() -> list[str]:
    return sorted(path.stem for path in (CONF / "merging").glob("*.yaml"))


def _training(rows: Iterable[Row]) -> Iterator[Row]:
    return (replace(row, training=True) for row in rows)


def _ablation(row: Row, name: str) -> list[Row]:
    """Return a row for each value of the sweep `ablation=<name>`."""
    return [replace(row, overrides=(override,)) for override in _values(name)]


def _values(name: str) -> list[str]:
    """Return the overrides of the sweep `ablation=<name>`."""
    files = (CONF / "train.yaml", CONF / "ablation" / f"{name}.yaml")
    sweep = OmegaConf.merge(*map(OmegaConf.load, files)).hydra.sweeper.params
    return [
        f"{key}={value}"
        for key, values in sweep.items()
        for value in OverridesParser.create().parse_override(f"{key}={values}").sweep_string_iterator()
    ]
