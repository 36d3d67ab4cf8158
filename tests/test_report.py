"""The command `python -m vtm.report`, as a user calls it, on handwritten runs and on a real sweep."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from vtm.report import main
from vtm.results.predictions import write_predictions
from vtm.results.record import ids_sha256
from vtm.tasks.predictions import Predictions

TINY = [
    "experiment=needle", "data.clips.frames=4", "data.clips.height=4", "data.clips.width=4", "data.clips.channels=16",
    "data.clips.num_decoys=2", "data.num_train=16", "data.num_val=8", "data.num_test=8", "model.window_frames=[2,4]",
    "model.channels=[8,8]", "trainer.max_epochs=2",
]  # fmt: skip
Write = Callable[..., Path]
Call = Callable[..., None]


def test_the_report_is_printed_and_written_beside_the_runs(
    tmp_path: Path, write_run: Write, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(f"sweep/{seed}", 0.5 + 0.1 * seed, seed=seed) for seed in range(2)]
    call(main, tmp_path / "cwd", *map(str, folders))
    out = tmp_path / "runs" / "sweep" / "report"
    text = (out / "report.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "0.550 ± 0.071" in text
    assert printed.endswith(f"written to {out}\n")
    assert text.startswith(printed[:400])
    pictures = [line.split("(")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert pictures == ["1_needle_seeds.png", "1_needle_cost.png"]
    files = {"report.md", "report.csv", *pictures, *(name.replace("png", "pdf") for name in pictures)}
    assert {file.name for file in out.iterdir()} == files


def test_out_names_the_folder_and_a_second_report_replaces_the_first(
    tmp_path: Path, write_run: Write, call: Call
) -> None:
    write_run("0", 0.5)
    for _ in range(2):
        call(main, tmp_path / "cwd", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert len((tmp_path / "out" / "report.csv").read_text().splitlines()) == 2
    assert not (tmp_path / "runs" / "report").exists()


def test_a_corrupt_file_ends_it_with_one_sentence(tmp_path: Path, write_run: Write, call: Call) -> None:
    file = write_run("0", 0.5) / "results.json"
    file.write_text("{")
    with pytest.raises(SystemExit) as stop:
        call(main, tmp_path / "cwd", str(tmp_path / "runs"))
    assert str(stop.value).startswith(f"{file}: expected the results of a run, but it is not JSON")


def test_where_nothing_is_finished_that_is_what_it_says(
    tmp_path: Path, write_run: Write, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run("0", 0.5)
    (folder / "results.json").unlink()
    call(main, tmp_path / "cwd", str(folder))
    assert f"- {folder}: no results.json" in capsys.readouterr().out


def test_runs_are_compared_with_a_baseline_elsewhere(
    tmp_path: Path, write_run: Write, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, names = ["a", "b", "c", "d"], ["no", "yes"]
    test = {"n": 4, "ids_sha256": ids_sha256(ids)}
    folders = [write_run("new/0", 0.75, test=test), write_run("old", 0.5, merging="none", test=test)]
    for folder, right in zip(folders, ([1, 1, 1, 0], [0, 0, 1, 1]), strict=True):
        predictions = Predictions(ids, [1] * 4, [[1 - value, value] for value in map(float, right)], names)
        write_predictions(folder / "predictions.csv", predictions)
    call(main, tmp_path / "cwd", str(folders[0].parent), "--against", str(folders[1]))
    out = tmp_path / "runs" / "report"
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text.split("\n![")[0] in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in text.split("## Diff")[0].splitlines() if line[:1] == "|"}
    assert ("| yes" in rows["none"], "| yes" in rows["uniform"]) == (True, False)
    assert f"Baseline: {folders[1]} (seed 0)." in text
    assert "on the same 4 test videos" in text
    written = (out / "differences.csv").read_text(encoding="utf-8").splitlines()
    assert len(written) == 2
    assert ",accuracy,0.75,0.5,0.25," in written[1]
    assert ",2,1,1.0,4,4," in written[1]


def test_runs_that_cannot_be_compared_end_it_with_one_sentence(tmp_path: Path, write_run: Write, call: Call) -> None:
    one, other = write_run("0", 0.5), write_run("1", 0.5, seed=1, test={"ids_sha256": "e" * 64})
    with pytest.raises(SystemExit) as stop:
        call(main, tmp_path / "cwd", str(one), "--against", str(other))
    assert str(stop.value) == (
        f"{one} and {other} cannot be compared, because they differ in test items: 40 with the hash 01234567 and 40 "
        "with the hash eeeeeeee; compare runs that were tested alike"
    )
    (other / "results.json").unlink()
    with pytest.raises(SystemExit, match=f"--against: expected a tested run, but {other} has no results.json"):
        call(main, tmp_path / "cwd", str(one), "--against", str(other))
    assert not (tmp_path / "runs" / "report").exists()


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['report', '--help']; from vtm.report import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in ('matplotlib', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "[]"
    assert "RUNS" in found


@pytest.mark.slow
def test_a_real_sweep_gives_a_row_for_each_setting(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    call(train.main, tmp_path, "-m", *TINY, "merging=none,uniform", "seed=0,1")
    capsys.readouterr()
    call(main, tmp_path, "runs")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    heading, _, none, uniform = rows
    assert heading[:3] == ["merging", "seeds", "accuracy"]
    assert (none[:2], uniform[:2]) == (["none", "2"], ["uniform", "2"])
    kept = heading.index("tokens kept %")
    assert none[kept] == "100"
    assert uniform[kept] == "12.5"  # of 64: two windows of 32 leave 12 each, then these 24 leave 8
    assert {"oracle", "kept_1", "target_2", "clips/s"} <= set(heading)
