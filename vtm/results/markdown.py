"""Write the tables of a report as Markdown, and every run as a row of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate

from vtm.results.record import NOTE
from vtm.results.runs import Run, Unfinished
from vtm.results.summary import published_figures
from vtm.results.tables import Row, Table, clips_per_second, peak_gb, seconds_per_question, tokens_kept
from vtm.system.cells import as_cell

LEGEND = (
    "The score is the mean over seeds ± the sample standard deviation (n − 1), followed by the worst and the best run "
    "with their seeds in brackets. Validation, floor (majority class or training mean) and further scores are means "
    "over seeds; clips/s and peak GB are medians. Tokens kept: tokens after the last block, in percent of the tokens "
    "before the first. Clips/s: speed of the network and, for frames, the encoder, without loading. Peak GB: memory of "
    "one step above what was in use. Bars in the plots are the standard deviation of the score, and the range of "
    "throughput and memory over seeds."
)


def markdown(tables: Sequence[Table], unfinished: Sequence[Unfinished], *, checkpoint: str) -> str:
    """Return all tables as Markdown, with notes on how to read them.

    Args:
        tables: tables to write.
        unfinished: runs to list as left out.
        checkpoint: checkpoint whose tests are shown, `best` or `last`.
    """
    epoch = "the last epoch" if checkpoint == "last" else "the epoch with the best validation score"
    lines = ["# Report"]
    if not tables or any(not run.is_of_questions for table in tables for run in table.runs):
        lines += ["", f"Tests of {epoch}, unless a table says otherwise. {LEGEND}"]
    if len(tables) > 1:
        lines += ["", "Different experiments, tasks or evaluated videos have separate tables and are never averaged."]
    for table in tables:
        lines += ["", f"## {_title(table)}", "", aligned(_cells(table)), "", *_notes(table)]
    if unfinished:
        lines += ["", f"Left out because they are unfinished ({len(unfinished)}):", ""]
        lines += [f"- {one.folder}: {one.reason}" for one in unfinished]
    return "\n".join(lines) + "\n"


def runs_csv(tables: Sequence[Table]) -> str:
    """Return a CSV row for each run, in full precision."""
    rows = [_facts(table, row, run) for table in tables for row in table.rows for run in row.runs]
    return as_csv(rows)


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows as CSV; a row may lack columns of the others."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: as_cell(value) if isinstance(value, str) else value for key, value in row.items()})
    return text.getvalue()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, heading first, as an aligned Markdown table without the columns that are empty in every row.

    >>> print(aligned([["merging", "seeds", "note"], ["none", "5", ""]]))
    | merging   |   seeds |
    |:----------|--------:|
    | none      |       5 |
    """
    filled = [any(cell for cell in column) for column in zip(*rows[1:], strict=True)]
    rows = [[cell for cell, keep in zip(row, filled, strict=True) if keep] for row in rows]
    sides = ["left" if _is_text(column) else "right" for column in zip(*rows[1:], strict=True)]
    return tabulate(rows[1:], rows[0], tablefmt="pipe", disable_numparse=True, colalign=sides)


def _title(table: Table) -> str:
    test = table.runs[0].test
    task = "" if table.task == table.experiment else f" ({table.task})"
    items = f"{test['n']} test videos"
    if table.runs[0].is_of_questions:
        items = f"{test['n']} questions about {test['videos']} videos"
    return f"{table.experiment}{task}: {table.metric} of {items}, ids {test['ids_sha256'][:8]}"


def _cells(table: Table) -> list[list[str]]:
    """Return the rows of a table, heading first."""
    digits = ".3f" if table.metric == "accuracy" else ".4g"
    heading = [*table.columns, "baseline", "seeds", table.metric, "95 % interval", "worst (seed)", "best (seed)"]
    heading += ["validation", "floor", *table.details, "tokens kept %", "s/question", "clips/s", "peak GB"]
    rows = [heading]
    for row in table.rows:
        mean, sd = row.score
        cells = [f"{mean:{digits}}" + ("" if sd is None else f" ± {sd:{digits}}")]
        ends = [f"{run.test['value']:{digits}} ({run.seed})" for run in (row.worst, row.best)]
        if row.runs[0].is_of_questions and len(row.runs) == 1:  # most have no seed
            low, high = row.runs[0].test["interval"]
            cells += [f"{low:{digits}} to {high:{digits}}", "", ""]
        else:
            cells += ["", *ends]
        cells += [_number(row.mean(lambda run: run.val.get("value")), digits)]
        cells += [_number(row.mean(lambda run: run.test.get("floor")), digits)]
        cells += [_number(row.mean(_detail(name)), ".3f") for name in table.details]
        merged = not all(run.test.get("nothing_merged") for run in row.runs)
        cells.append(_short(row.median(tokens_kept)) + ("" if merged else " (nothing merged)"))
        cells += [_short(row.median(of)) for of in (seconds_per_question, clips_per_second, peak_gb)]
        rows.append([*row.setting, "yes" if row.is_baseline else "", str(len(row.runs)), *cells])
    return rows


def _notes(table: Table) -> list[str]:
    """Return the paragraphs below a table, on what its numbers depend on."""
    runs, notes = table.runs, []
    if any(run.test.get("selection") == "test" and run.test.get("checkpoint") != "last" for run in runs):
        notes.append("In at least one run, the epoch was chosen on the TEST videos: its score is optimistic.")
    noun = "questions" if runs[0].is_of_questions else "test videos"
    if runs[0].is_of_questions:
        notes.append(
            "The answers of a ready model in the official order of the options; the interval is a bootstrap over "
            "videos, and the floor that of always choosing the letter that is right most often."
        )
    if missing := max(run.test.get("missing", 0) for run in runs):
        notes.append(f"{missing} of the {noun} are missing.")
    if errors := max(run.test.get("errors", 0) for run in runs):
        notes.append(f"Videos with errors in at least one run: {errors}; their questions are not counted.")
    measured = dict.fromkeys(
        f"{run.cost['device']}, {run.cost['inputs']}, at most {run.cost['batch_size']} clips a step"
        for run in runs if "device" in run.cost
    )  # fmt: skip
    if len(measured) > 1:
        notes.append(f"Speed and memory cannot be compared, because they were measured on: {'; '.join(measured)}.")
    elif measured:
        notes.append(f"Speed and memory were measured on: {next(iter(measured))}.")
    commits = dict.fromkeys(str(run.content["commit"])[:12] for run in runs)
    if len(commits) > 1:
        notes.append(f"The runs used different versions of the source: {', '.join(commits)}.")
    notes += [
        f"Seed {earlier.seed} of one setting was run twice: {later.folder} is used, {earlier.folder} is not."
        for earlier, later in table.superseded
    ]
    figures = {name: figure for run in runs for name, figure in run.content["published"].get("figures", {}).items()}
    if figures:
        listed = "; ".join(published_figures(figures, metric=table.metric))
        note = next(run.content["published"].get("note", NOTE) for run in runs if run.content["published"]["figures"])
        notes.append(f"Published by others: {listed}. {note}")
    return [line for note in notes for line in (note, "")][:-1]


def _facts(table: Table, row: Row, run: Run) -> dict[str, object]:
    test = run.test
    return {
        "experiment": table.experiment,
        "task": table.task,
        **dict(zip(table.columns, row.setting, strict=True)),
        "seed": run.seed,
        "checkpoint": test.get("checkpoint"),
        "epoch": test.get("epoch"),
        "metric": table.metric,
        "test": test["value"],
        "test_low": test["interval"][0],
        "test_high": test["interval"][1],
        "val": run.val.get("value"),
        "floor": test.get("floor"),
        "macro_accuracy": test.get("macro_accuracy"),
        **test.get("details", {}),
        "videos": test.get("videos", test["n"]),
        "missing": test.get("missing"),
        "ids_sha256": test["ids_sha256"],
        "tokens": " ".join(map(str, run.cost.get("tokens", []))),
        "tokens_kept_percent": tokens_kept(run),
        "clips_per_second": clips_per_second(run),
        "peak_gb": peak_gb(run),
        "batch_size": run.cost.get("batch_size"),
        "inputs": run.cost.get("inputs"),
        "device": run.cost.get("device"),
        "commit": run.content["commit"],
        "folder": str(run.folder),
        **_facts_of_questions(run),
    }


def _facts_of_questions(run: Run) -> dict[str, object]:
    if not run.is_of_questions:
        return {}
    return {
        "questions": run.test["n"],
        **{key: run.test[key] for key in ("errors", "seconds_per_question", "nothing_merged", "hash")},
    }


def _is_text(cells: Sequence[str]) -> bool:
    return not all(cell[:1].isdigit() or cell[:1] in ("", "+", "-") for cell in cells)


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _short(value: float | None) -> str:
    """Round to three significant digits, but keep all digits before the decimal point.

    >>> _short(1234.5), _short(12.345), _short(0.012345)
    ('1234', '12.3', '0.0123')
    """
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _detail(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.test.get("details", {}).get(name)
