"""Group runs that differ only by their seed, and compute the rows of the tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vtm.results.runs import Run
from vtm.tasks import lower_is_better

Setting = tuple[str, ...]

_NONE = "–"  # a setting that a run does not have


class Spread(NamedTuple):
    """Mean and sample standard deviation of a figure over seeds; the deviation of a single seed is None."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Row:
    """The runs of one setting.

    Attributes:
        setting: values in the columns of the table.
        label: name in plots.
        runs: one run for each seed, in ascending order.
        lower_is_better: whether the metric is an error.
        is_baseline: whether the others are compared with these runs.
    """

    setting: Setting
    label: str
    runs: tuple[Run, ...]
    lower_is_better: bool
    is_baseline: bool

    @property
    def score(self) -> Spread:
        """Test metric over the seeds."""
        return spread([run.test["value"] for run in self.runs])

    @property
    def worst(self) -> Run:
        """Run with the worst test; a diverged run is the worst."""
        return max(self.runs, key=self._badness)

    @property
    def best(self) -> Run:
        """Run with the best test."""
        return min(self.runs, key=self._badness)

    def mean(self, of: Callable[[Run], float | None]) -> float | None:
        """Return the mean of a figure over the runs that have it; None if no run has it."""
        found = [value for run in self.runs if (value := of(run)) is not None]
        return statistics.fmean(found) if found else None

    def median(self, of: Callable[[Run], float | None]) -> float | None:
        """Return the median of a figure over the runs that have it; None if no run has it."""
        found = [value for run in self.runs if (value := of(run)) is not None]
        return statistics.median(found) if found else None

    def _badness(self, run: Run) -> float:
        value = run.test["value"]
        if math.isnan(value):
            return math.inf
        return float(value if self.lower_is_better else -value)


@dataclass(frozen=True)
class Table:
    """Comparable runs: runs of one experiment that were scored on the same videos.

    Attributes:
        experiment: name of the experiment.
        task: name of the task.
        metric: name of the metric.
        columns: keys of the settings that differ.
        rows: one row for each setting, in the order of the runs.
        superseded: runs that are left out, each with the later run of the same setting and seed.
    """

    experiment: str
    task: str
    metric: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    superseded: tuple[tuple[Run, Run], ...]

    @property
    def runs(self) -> list[Run]:
        """Runs of all rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is an error."""
        return lower_is_better(self.metric)

    @property
    def details(self) -> list[str]:
        """Names of further scores of the tests."""
        return list(dict.fromkeys(name for run in self.runs for name in run.test.get("details", {})))


def group_runs(runs: Iterable[Run], *, baseline: Collection[Path] = ()) -> list[Table]:
    """Group runs into tables and rows.

    Args:
        runs: runs to group.
        baseline: folders of the runs that the others are compared with; they have rows of their own.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        scored = (run.test["metric"], run.test["ids_sha256"], run.val.get("ids_sha256"))
        groups.setdefault((run.content["experiment"], run.content["task"], *scored), []).append(run)
    return [_table(group, baseline) for group in groups.values()]


def spread(values: Sequence[float]) -> Spread:
    """Compute the mean and the sample standard deviation (n − 1).

    >>> spread([1.0, 2.0, 6.0])
    Spread(mean=3.0, sd=2.6457513110645907)
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Spread(mean, None)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def tokens_kept(run: Run) -> float | None:
    """Return the share of a clip's tokens after the last block, in percent."""
    tokens = run.cost.get("tokens")
    if "tokens_kept" in run.cost:  # mean over questions about videos of different lengths
        return 100 * float(run.cost["tokens_kept"])
    return 100 * tokens[-1] / tokens[0] if tokens else None


def seconds_per_question(run: Run) -> float | None:
    """Return the mean time of an answer to a question, without decoding the video."""
    return run.test.get("seconds_per_question")


def clips_per_second(run: Run) -> float | None:
    """Return the throughput of the test in clips per second."""
    return run.cost.get("clips_per_second")


def peak_gb(run: Run) -> float | None:
    """Return the peak memory of a step of the test in GB."""
    return run.cost.get("peak_gb")


def _table(runs: list[Run], baseline: Collection[Path]) -> Table:
    columns = _columns(runs)
    settings = list(zip(*columns.values(), strict=True)) if columns else [()] * len(runs)
    groups: dict[tuple[Setting, bool], dict[int, Run]] = {}
    superseded = []
    for setting, run in zip(settings, runs, strict=True):
        seeds = groups.setdefault((setting, run.folder in baseline), {})
        if (earlier := seeds.get(run.seed)) is not None:
            superseded.append((earlier, run))
        seeds[run.seed] = run
    experiment, metric = runs[0].content["experiment"], runs[0].test["metric"]
    rows = [
        Row(
            setting=setting,
            label=_label(columns, setting, experiment) + " (baseline)" * is_baseline,
            runs=tuple(seeds[seed] for seed in sorted(seeds)),
            lower_is_better=lower_is_better(metric),
            is_baseline=is_baseline,
        )
        for (setting, is_baseline), seeds in groups.items()
    ]
    return Table(experiment, runs[0].content["task"], metric, tuple(columns), tuple(rows), tuple(superseded))


def _columns(runs: list[Run]) -> dict[str, Setting]:
    """Return the keys of the settings that differ, with the value of each run.

    Overrides come first, because one such as `merging=none` changes many keys. Other settings are added if they tell
    apart runs with the same overrides. If Hydra's overrides are missing for a run, all settings that differ are used.
    """
    columns: dict[str, Setting] = {}
    composed = all(run.hydra for run in runs)
    if composed:
        for key in dict.fromkeys(key for run in runs for key in run.overrides):
            values = tuple(_shown(run.setting(key)) for run in runs)
            if len(set(values)) > 1:
                columns[key] = values
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        found = [run.settings.get(key) for run in runs]
        if key.split(".")[-1] == "seed" and found == [run.seed for run in runs]:
            continue
        values = tuple(map(_shown, found))
        rows = len(set(zip(*columns.values(), strict=True)))
        splits = len(set(zip(values, *columns.values(), strict=True))) > max(1, rows)
        tells = not composed and None not in found and len(set(values)) > 1 and values not in columns.values()
        if splits or tells:
            columns[key] = values
    return columns


def _shown(value: Any) -> str:
    """Format a value as on the command line.

    >>> _shown("uniform"), _shown([2, 4]), _shown(None), _shown(0.001)
    ('uniform', '[2,4]', '–', '0.001')
    """
    if value is None:
        return _NONE
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _label(columns: Iterable[str], setting: Setting, experiment: str) -> str:
    """Return the name of a row in a plot: what its settings have."""
    named = [_named(key, value) for key, value in zip(columns, setting, strict=True) if value != _NONE]
    return ", ".join(named) or experiment


def _named(key: str, value: str) -> str:
    """Return the name of a setting in a plot: the option of a group, or the last part of the key with the value.

    >>> _named("merging", "uniform"), _named("merging.partition_factor", "6"), _named("cyclic", "true")
    ('uniform', 'partition_factor 6', 'cyclic true')
    """
    return f"{key.split('.')[-1]} {value}" if "." in key or value in ("true", "false") else value
