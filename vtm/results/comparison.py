"""Compare runs with a baseline on the same test items, seed by seed where the seeds match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from vtm.results.outcomes import Outcomes, read_outcomes
from vtm.results.runs import Run
from vtm.results.tables import Row, Table, spread
from vtm.tasks.paired import PairedDifference, mcnemar, paired_difference

_SAME: dict[str, Callable[[Run], object]] = {  # in runs that can be compared
    "task": lambda run: run.content["task"],
    "metric": lambda run: run.test["metric"],
    "test items": lambda run: f"{run.test['n']} with the hash {run.test['ids_sha256'][:8]}",
    "frames": lambda run: run.test.get("frames", run.setting("data.protocol.num_frames")),
    "prompt": lambda run: str(run.test.get("prompt"))[:8],
}
_ALL_ORDERS = "mean of all"


@dataclass(frozen=True)
class Comparison:
    """The difference of a run, or of all runs of a setting, to the baseline.

    Attributes:
        table: table of the runs.
        row: row of the runs.
        runs: one run, or all runs of the row, whose scores are averaged item by item.
        against: runs of the baseline that they are compared with, likewise averaged.
        order: order of the options of questions, "official" or the "mean of all"; empty for videos.
        by_seed: whether each run is compared with the run of its seed, not with the mean over all runs of the baseline.
        value: score of the runs.
        baseline: score of the baseline.
        difference: `value` − `baseline`, with its 95 % interval.
        sd: sample standard deviation of the differences of the single runs; None for a single run.
        only_run: number of items that only the run has right; None for averages and squared errors.
        only_baseline: number of items that only the baseline has right; likewise.
        items: number of items.
        clusters: number of clusters of the items.
    """

    table: Table
    row: Row
    runs: Sequence[Run]
    against: Sequence[Run]
    order: str
    by_seed: bool
    value: float
    baseline: float
    difference: PairedDifference
    sd: float | None
    only_run: int | None
    only_baseline: int | None
    items: int
    clusters: int

    @property
    def p(self) -> float | None:
        """P-value of McNemar's exact test; None for averages and squared errors."""
        if self.only_run is None or self.only_baseline is None:
            return None
        return mcnemar(self.only_run, self.only_baseline)


def compare(tables: Sequence[Table]) -> list[Comparison]:
    """Compare every run, and all runs of every setting together, with the baseline.

    If the baseline has a run of every seed of a setting, each run is compared with the run of its seed. Otherwise, each
    run is compared with the mean score of every item over all runs of the baseline.

    Args:
        tables: tables of `group_runs`, with the row of the baseline.

    Raises:
        FileNotFoundError: if a run has no predictions.
        ValueError: if the baseline has several settings, nothing is to be compared with it, or a run was tested with
            another task, metric, prompt or number of frames, or on other items.
    """
    baseline = _baseline(tables)
    others = [(table, row) for table in tables for row in table.rows if not row.is_baseline]
    if not others:
        raise ValueError(f"expected runs to compare with {baseline.runs[0].folder}, got only the baseline; add RUNS")
    runs = [run for _, row in others for run in row.runs]
    for run in (*runs, *baseline.runs[1:]):
        _check_settings(run, baseline.runs[0])
    outcomes = {run.folder: read_outcomes(run) for run in (*baseline.runs, *runs)}
    for run in (*runs, *baseline.runs[1:]):
        _check_targets(run, baseline.runs[0], outcomes)
    clusters = min((one.clusters for one in outcomes.values()), key=lambda names: len(set(names)))
    orders = {"official" if baseline.runs[0].is_of_questions else "": {at: one.scores for at, one in outcomes.items()}}
    if all(one.over_orders is not None for one in outcomes.values()):
        orders[_ALL_ORDERS] = {at: one.over_orders for at, one in outcomes.items() if one.over_orders is not None}
    comparisons = []
    for (table, row), (order, scores) in product(others, orders.items()):
        of_seed = {run.seed: run for run in baseline.runs}
        by_seed = all(run.seed in of_seed for run in row.runs)
        groups: list[tuple[Run, ...]] = [(run,) for run in row.runs]
        if len(groups) > 1:
            groups.append(row.runs)
        for group in groups:
            sides = group, tuple(of_seed[run.seed] for run in group) if by_seed else baseline.runs
            first, second = (torch.stack([scores[run.folder] for run in side]) for side in sides)
            comparisons.append(_compare(table, row, sides, order, by_seed, (first, second), clusters))
    return comparisons


def _compare(
    table: Table,
    row: Row,
    sides: tuple[tuple[Run, ...], tuple[Run, ...]],
    order: str,
    by_seed: bool,
    scores: tuple[Tensor, Tensor],
    clusters: Sequence[str],
) -> Comparison:
    """Compare runs with runs of the baseline by their scores (runs, n)."""
    first, second = (score.mean(0) for score in scores)
    single = (scores[0].mean(1) - (scores[1].mean(1) if by_seed else second.mean())).tolist()
    counted = len(scores[0]) == len(scores[1]) == 1 and not table.lower_is_better and order != _ALL_ORDERS
    return Comparison(
        table=table,
        row=row,
        runs=sides[0],
        against=sides[1],
        order=order,
        by_seed=by_seed,
        value=float(first.mean()),
        baseline=float(second.mean()),
        difference=paired_difference(first, second, clusters=clusters),
        sd=spread(single).sd,
        only_run=int((first > second).sum()) if counted else None,
        only_baseline=int((first < second).sum()) if counted else None,
        items=len(first),
        clusters=len(set(clusters)),
    )


def _baseline(tables: Sequence[Table]) -> Row:
    """Return the row of the baseline."""
    found = [(table, row) for table in tables for row in table.rows if row.is_baseline]
    if len(found) > 1:
        (table, row), (other_table, other), *_ = found
        columns = zip(table.columns, row.setting, other.setting, strict=True) if table is other_table else ()
        differ = [f"{column} ({first} and {second})" for column, first, second in columns if first != second]
        raise ValueError(
            f"--against: expected runs of one setting, got {row.runs[0].folder} and {other.runs[0].folder}, which "
            f"differ in {', '.join(differ) or 'experiment, task or videos'}; name runs that differ only by their seeds"
        )
    return found[0][1]


def _check_settings(run: Run, baseline: Run) -> None:
    """Check that two runs were tested in the same way on the same items."""
    for name, of in _SAME.items():
        first, second = of(run), of(baseline)
        if first != second:
            raise ValueError(
                f"{run.folder} and {baseline.folder} cannot be compared, because they differ in {name}: {first} and "
                f"{second}; compare runs that were tested alike"
            )


def _check_targets(run: Run, baseline: Run, outcomes: Mapping[Path, Outcomes]) -> None:
    """Check that the right answers of two runs on the same items agree."""
    first, second = outcomes[run.folder], outcomes[baseline.folder]
    for id, target, other in zip(first.ids, first.targets, second.targets, strict=True):
        if target != other:
            raise ValueError(
                f"{run.folder} and {baseline.folder} cannot be compared, because they differ in the right answer of "
                f"{id}: {target} and {other}; compare runs that were tested alike"
            )
