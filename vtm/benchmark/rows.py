"""What the benchmark measures: its tables, whose rows are overrides of `conf/`, around the paper's setting."""

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
    """What all rows share.

    Attributes:
        frames: T of the clips, where a row has no other.
        height: H of the token grid, where the tokens come from no encoder.
        width: W of it.
        channels: C of the tokens.
        device: of torch.
        threads: of the CPU's arithmetic.
        repeats: timed calls of a row, of which the median counts; slow kinds of rows have 3 at most.
        limit: in seconds; a row whose call takes longer by its arithmetic alone is left out.
        overrides: of the configuration, for every row whose own do not contradict; those of merging do not reach rows
            without it.
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
    """What one process measures.

    Attributes:
        strategy: an option of `conf/merging`.
        plain: attention writes its N × N matrices, as the paper's does.
        training: forward, loss of all paths and backward; else inference.
        batch: B.
        precision: as Lightning calls it, "32-true" or "bf16-mixed".
        overrides: of the configuration.
        compiled: by torch.compile.
        encoder: frames go in, through the encoder of the configuration with random weights.
        frames: T, if it is not the setting's.
        streaming: the frames come window by window, and never lie in memory together.
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
        """Tell whether three timed calls must do."""
        return self.plain or self.training or self.encoder or self.batch > 1

    @property
    def name(self) -> str:
        """Say what is measured, leaving out what is usual.

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
    """Change one factor at a time, from the paper's setting; of batches and precisions the first are usual.

    Args:
        batches: B.
        precisions: as Lightning calls them.
        plain_everywhere: measure plain attention in every precision, which takes minutes on a CPU.
        encoder: measure the head with the encoder before it, too.
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
    """Combine every strategy, γ, R, L, batch and precision, in inference and in training; all with the encoder, too."""
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
    """Take ever longer videos, whole and as a stream, through five blocks."""
    whole = [Row("learnable", frames=frames, overrides=_LONG) for frames in _LONG_FRAMES]
    return {"Long videos": [*whole, *(replace(row, streaming=True) for row in whole)]}


def _strategies() -> list[str]:
    return sorted(path.stem for path in (CONF / "merging").glob("*.yaml"))


def _training(rows: Iterable[Row]) -> Iterator[Row]:
    return (replace(row, training=True) for row in rows)


def _ablation(row: Row, name: str) -> list[Row]:
    """Give a row each value over which `ablation=<name>` sweeps."""
    return [replace(row, overrides=(override,)) for override in _values(name)]


def _values(name: str) -> list[str]:
    """List the overrides over which `ablation=<name>` sweeps."""
    files = (CONF / "train.yaml", CONF / "ablation" / f"{name}.yaml")
    sweep = OmegaConf.merge(*map(OmegaConf.load, files)).hydra.sweeper.params
    return [
        f"{key}={value}"
        for key, values in sweep.items()
        for value in OverridesParser.create().parse_override(f"{key}={values}").sweep_string_iterator()
    ]
