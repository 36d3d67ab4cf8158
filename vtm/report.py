"""Gather runs into one table and plots: python -m vtm.report runs/needle/2030-01-01_12-00-00-000000.

Runs that differ only by their seed share a row. It prints the table, and writes it to `report.md`, all runs to
`report.csv`, and plots of the score over seeds and against tokens kept, throughput and memory. With `--against`, the
differences to a baseline on the same test items follow the table, and are written to `differences.csv`. Runs are those
of `train.py` and `vtm.qa`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vtm.cli.errors import concise_errors
from vtm.system.atomic import write_atomically


def main() -> None:
    """Report on the runs named on the command line."""
    given = _arguments()
    with concise_errors():
        _run(given.runs, given.against, given.out, given.checkpoint)


def _run(paths: list[Path], against: list[Path], out: Path | None, checkpoint: str) -> None:
    # slow to import, and not needed for --help
    from vtm.results.comparison import compare
    from vtm.results.differences import differences_csv, differences_markdown
    from vtm.results.markdown import markdown, runs_csv
    from vtm.results.plots import draw
    from vtm.results.runs import read_runs
    from vtm.results.tables import group_runs

    runs, unfinished = read_runs([*paths, *against], checkpoint=checkpoint)
    baseline, not_tested = read_runs(against, checkpoint=checkpoint)
    if not_tested and not baseline:
        raise ValueError(
            f"--against: expected a tested run, but {not_tested[0].folder} has {not_tested[0].reason}; finish it first"
        )
    tables = group_runs(runs, baseline={run.folder for run in baseline})
    given = [path.resolve() if path.is_dir() else path.resolve().parent for path in (*paths, *against)]
    folder = out or Path(os.path.commonpath(given)) / "report"
    text = markdown(tables, unfinished, checkpoint=checkpoint)
    if baseline:
        comparisons = compare(tables)
        text += differences_markdown(comparisons)
        write_atomically(folder / "differences.csv", differences_csv(comparisons))
    print(text)
    names = [f"{number}_{table.experiment}" for number, table in enumerate(tables, 1)]
    pictures = [
        picture for table, name in zip(tables, names, strict=True) for picture in draw(table, folder, name=name)
    ]
    shown = "".join(f"\n![{picture.stem.replace('_', ' ')}]({picture.name})\n" for picture in pictures)
    write_atomically(folder / "report.md", text + shown)
    write_atomically(folder / "report.csv", runs_csv(tables))
    print(f"written to {folder}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.report",
        description="Gather runs into one Markdown table, CSV and plots: mean and spread over the seeds of each "
        "setting, against tokens kept, throughput and memory.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run folders, sweep folders or results.json files"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="BASELINE",
        help="run folders of one setting, which may have several seeds: add the difference of every other run to them, "
        "on the same test videos or questions",
    )
    parser.add_argument(
        "--out", type=Path, help="output folder (default: report/ in the folder that contains all runs)"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="checkpoint whose test scores are reported (default: best)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
