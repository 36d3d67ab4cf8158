"""Write the differences of runs to their baseline as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Sequence

from vtm.results.comparison import Comparison
from vtm.results.markdown import aligned, as_csv
from vtm.results.runs import Run

_LEGEND = (
    "The difference is the {metric} of a run minus that of the baseline on the same {items} test {noun}{better}. Its "
    "95 % interval is a paired bootstrap over {clusters} and does not cover the choice of the seeds. Each run is "
    "compared with the baseline's run of its seed or, if the baseline lacks a seed of a setting, with the mean outcome "
    "of each of the {noun} over all runs of the baseline. A row of several seeds averages their outcomes for each of "
    "the {noun}, and ± is the sample standard deviation (n − 1) of their differences.{test} Nothing is corrected for "
    "the number of comparisons."
)
_TEST = (
    " McNemar's exact test compares the numbers of {noun} that only one of two runs has right, and takes the {noun} as "
    "independent."
)


def differences_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the differences as Markdown tables, one for each experiment, with notes on how to read them."""
    baseline = {run.folder: run for one in comparisons for run in one.against}
    named = ", ".join(f"{run.folder} (seed {run.seed})" for run in baseline.values())
    lines = ["", "## Differences to the baseline", "", f"Baseline: {named}.", "", _legend(comparisons[0])]
    for table in {id(one.table): one.table for one in comparisons}.values():
        lines += ["", aligned(_cells([one for one in comparisons if one.table is table]))]
    return "\n".join(lines) + "\n"


def differences_csv(comparisons: Sequence[Comparison]) -> str:
    """Return a CSV row for each comparison, in full precision."""
    return as_csv([_facts(one) for one in comparisons])


def _legend(one: Comparison) -> str:
    """Return the notes on how to read the tables."""
    noun = "questions" if one.order else "videos"
    error = one.table.lower_is_better
    clusters = "the videos of these questions" if one.order else f"the {one.clusters} clusters of these videos"
    return _LEGEND.format(
        metric=one.table.metric,
        items=one.items,
        noun=noun,
        better=", so that a run with a negative one is better" if error else "",
        clusters=f"the {noun}" if one.clusters == one.items else clusters,
        test="" if error else _TEST.format(noun=noun),
    )


def _cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return the rows of a table, heading first."""
    table = comparisons[0].table
    digits = ".3f" if table.metric == "accuracy" else ".4g"
    heading = [*table.columns, "seed", "order of options", "against", table.metric, "baseline", "difference"]
    heading += ["95 % interval", "only run right", "only baseline right", "McNemar p"]
    rows = [heading]
    for one in comparisons:
        counts = ["" if count is None else str(count) for count in (one.only_run, one.only_baseline)]
        change, low, high = (format(value, f"+{digits}") for value in one.difference)
        rows.append(
            [
                *one.row.setting,
                ("mean of " if len(one.runs) > 1 else "") + _seeds(one.runs),
                one.order,
                _against(one),
                f"{one.value:{digits}}",
                f"{one.baseline:{digits}}",
                change + ("" if one.sd is None else f" ± {one.sd:{digits}}"),
                f"{low} to {high}",
                *counts,
                "" if one.p is None else f"{one.p:.2g}",
            ]
        )
    return rows


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _against(one: Comparison) -> str:
    if len(one.against) == 1:
        return f"seed {_seeds(one.against)}"
    return "same seeds" if one.by_seed else f"mean of seeds {_seeds(one.against)}"


def _facts(one: Comparison) -> dict[str, object]:
    return {
        "experiment": one.table.experiment,
        "task": one.table.task,
        **dict(zip(one.table.columns, one.row.setting, strict=True)),
        "seeds": " ".join(str(run.seed) for run in one.runs),
        "baseline_seeds": " ".join(str(run.seed) for run in one.against),
        "by_seed": one.by_seed,
        "order_of_options": one.order,
        "metric": one.table.metric,
        "test": one.value,
        "baseline_test": one.baseline,
        "difference": one.difference.value,
        "difference_low": one.difference.low,
        "difference_high": one.difference.high,
        "difference_sd": one.sd,
        "only_run_right": one.only_run,
        "only_baseline_right": one.only_baseline,
        "mcnemar_p": one.p,
        "items": one.items,
        "clusters": one.clusters,
        "folders": "; ".join(str(run.folder) for run in one.runs),
        "baseline_folders": "; ".join(str(run.folder) for run in one.against),
    }
