"""The report as text: the Markdown table, the notes below it, and the CSV."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from vtm.results.markdown import markdown, runs_csv
from vtm.results.runs import read_runs
from vtm.results.tables import group_runs

Write = Callable[..., Path]


def report(folder: Path, checkpoint: str = "best") -> str:
    runs, unfinished = read_runs([folder], checkpoint=checkpoint)
    return markdown(group_runs(runs), unfinished, checkpoint=checkpoint)


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def two_settings(write_run: Write) -> None:
    values = {"none": (0.3, 0.6, 0.9), "uniform": (0.5, 0.5, 0.8)}
    for job, (merging, seed) in enumerate((m, s) for m in values for s in range(3)):
        details = {"oracle": 0.98, "kept_1": 0.1 * seed}
        write_run(f"{job}", values[merging][seed], merging=merging, seed=seed, test={"details": details})


def test_a_row_for_each_setting(tmp_path: Path, write_run: Write) -> None:
    two_settings(write_run)
    text = report(tmp_path)
    heading, rule, none, uniform = table_of(text)
    assert heading == [
        "merging", "seeds", "accuracy", "worst (seed)", "best (seed)", "validation", "floor", "oracle", "kept_1",
        "tokens kept %", "clips/s", "peak GB",
    ]  # fmt: skip
    costs = ["0.125", "0.980", "0.100", "25", "200", "0.5"]
    assert none == ["none", "3", "0.600 ± 0.300", "0.300 (0)", "0.900 (2)", "0.650", *costs]
    assert uniform == ["uniform", "3", "0.600 ± 0.173", "0.500 (0)", "0.800 (2)", "0.650", *costs]
    assert (rule[0][-1], rule[1][-1]) == ("-", ":")
    assert len({len(line) for line in text.splitlines() if line[:1] == "|"}) == 1
    assert "## needle (classification): accuracy of 40 test videos, ids 01234567" in text
    assert "Speed and memory were measured on: a card, features, at most 16 clips a step." in text
    assert "Left out" not in text
    assert "Published" not in text


def test_a_single_seed_and_an_error_without_cost(tmp_path: Path, write_run: Write) -> None:
    write_run("0", 4.0125, test={"metric": "mse", "cost": {}})
    heading, _, row = table_of(report(tmp_path))
    assert heading == ["seeds", "mse", "worst (seed)", "best (seed)", "validation", "floor"]
    assert row == ["1", "4.013", "4.013 (0)", "4.013 (0)", "4.062", "0.125"]


def test_the_last_epoch_on_request(tmp_path: Path, write_run: Write) -> None:
    file = write_run("0", 0.5) / "results.json"
    file.write_text(file.read_text().replace('"test": {', '"test_last": {').replace('"val": {', '"val_last": {'))
    text = report(tmp_path, "last")
    assert table_of(text)[2][1] == "0.500"
    assert "Tests of the last epoch" in text


def test_what_limits_a_score_is_said(tmp_path: Path, write_run: Write) -> None:
    write_run("0", 0.5, seed=0, test={"selection": "test", "missing": 3})
    write_run("1", 0.5, seed=1, commit="abcdef")
    write_run("2", 0.7, seed=1, commit="abcdef")
    (write_run("3", 0.5) / "results.json").unlink()
    root = tmp_path / "runs"
    assert report(tmp_path).split("|\n")[-1].strip().split("\n\n") == [
        "In at least one run, the epoch was chosen on the TEST videos: its score is optimistic.",
        "3 of the test videos are missing.",
        "Speed and memory were measured on: a card, features, at most 16 clips a step.",
        "The runs used different versions of the source: 0123456, abcdef.",
        f"Seed 1 of one setting was run twice: {root}/2 is used, {root}/1 is not.",
        "Left out because they are unfinished (1):",
        f"- {root}/3: no results.json",
    ]


def test_speed_of_several_devices_is_not_compared(tmp_path: Path, write_run: Write) -> None:
    cost = {"device": "a CPU", "inputs": "frames", "batch_size": 4, "clips_per_second": 1.0, "tokens": [8, 4]}
    write_run("0", 0.5, seed=0)
    write_run("1", 0.5, seed=1, test={"cost": cost})
    assert (
        "Speed and memory cannot be compared, because they were measured on: a card, features, at most 16 clips a "
        "step; a CPU, frames, at most 4 clips a step."
    ) in report(tmp_path)


def test_the_figures_of_others_stand_below_and_are_called_so(tmp_path: Path, write_run: Write) -> None:
    figures = {"Alpha": {"value": 0.5}, "Beta": {"value": 0.75, "n": 86}}
    write_run("0", 0.5, published={"figures": figures})
    text = report(tmp_path)
    assert "Published by others: Beta 0.75 (n=86); Alpha 0.5. The test sets differ" in text
    assert not any("Beta" in cell for row in table_of(text) for cell in row)


def test_several_tables_are_kept_apart(tmp_path: Path, write_run: Write) -> None:
    write_run("0", 0.5)
    write_run("1", 0.9, seed=1, test={"ids_sha256": "e" * 64})
    text = report(tmp_path)
    assert "Different experiments, tasks or evaluated videos have separate tables and are never averaged." in text
    assert [line[-8:] for line in text.splitlines() if line.startswith("## ")] == ["01234567", "eeeeeeee"]


def test_the_csv_has_every_run_in_full(tmp_path: Path, write_run: Write) -> None:
    two_settings(write_run)
    tables = group_runs(read_runs([tmp_path], checkpoint="best")[0])
    rows = list(csv.DictReader(io.StringIO(runs_csv(tables))))
    assert [(row["merging"], row["seed"], row["test"]) for row in rows] == [
        ("none", "0", "0.3"), ("none", "1", "0.6"), ("none", "2", "0.9"),
        ("uniform", "0", "0.5"), ("uniform", "1", "0.5"), ("uniform", "2", "0.8"),
    ]  # fmt: skip
    assert rows[2]["kept_1"] == "0.2"
    assert rows[0]["tokens"] == "400 200 100"
    assert (rows[0]["tokens_kept_percent"], rows[0]["clips_per_second"], rows[0]["peak_gb"]) == ("25.0", "200.0", "0.5")
    assert rows[5]["folder"] == str(tmp_path / "runs" / "5")
