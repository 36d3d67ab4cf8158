"""Which runs are found in the given folders, and why others cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vtm.results.runs import read_runs

Write = Callable[..., Path]


def names(paths: list[Path], checkpoint: str = "best") -> tuple[list[str], list[tuple[str, str]]]:
    runs, unfinished = read_runs(paths, checkpoint=checkpoint)
    return [run.folder.name for run in runs], [(one.folder.name, one.reason) for one in unfinished]


def test_sweeps_run_folders_and_files_are_found_each_once_and_by_number(tmp_path: Path, write_run: Write) -> None:
    for job in (10, 9, 2):
        write_run(f"sweep/{job}", 0.5)
    alone = write_run("alone", 0.5)
    sweep = tmp_path / "runs" / "sweep"
    assert names([sweep]) == (["2", "9", "10"], [])
    assert names([alone / "results.json", sweep / "9", sweep])[0] == ["alone", "9", "2", "10"]


def test_unfinished_runs_are_named_with_the_reason(tmp_path: Path, write_run: Write) -> None:
    write_run("1", 0.5)
    (write_run("2", 0.5) / "results.json").unlink()
    no_test = write_run("3", 0.5) / "results.json"
    no_test.write_text(no_test.read_text().replace('"test"', '"test_last"'))
    found = names([tmp_path / "runs"])
    assert found == (["1"], [("2", "no results.json"), ("3", "no test in results.json")])
    assert names([tmp_path / "runs"], "last") == (
        ["3"], [("1", "no test_last in results.json"), ("2", "no results.json")]
    )  # fmt: skip


def test_a_run_that_was_refused_is_told_from_one_that_was_interrupted(tmp_path: Path, write_run: Write) -> None:
    for name in ("interrupted", "refused"):
        (write_run(name, 0.5) / "results.json").unlink()
    (tmp_path / "runs" / "refused" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "runs" / "refused again").mkdir()  # before its configuration was written
    found = names([tmp_path / "runs"])
    assert found == ([], [("interrupted", "no results.json"), ("refused", "no epoch was finished")])


def test_the_checkpoint_decides_which_evaluations_count(write_run: Write) -> None:
    folder = write_run("1", 0.5)
    file = folder / "results.json"
    file.write_text(file.read_text()[:-1] + ', "val_last": {"value": 0.7}, "test_last": {"value": 0.6}}')
    ((best,), _), ((last,), _) = (read_runs([folder], checkpoint=name) for name in ("best", "last"))
    assert (best.val["value"], best.test["value"]) == (0.55, 0.5)
    assert (last.val["value"], last.test["value"]) == (0.7, 0.6)


def test_other_commands_with_hydra_are_no_runs(tmp_path: Path, write_run: Write) -> None:
    write_run("1", 0.5)
    extract = write_run("extract", 0.5)
    (extract / "results.json").unlink()
    composed = extract / ".hydra" / "hydra.yaml"
    composed.write_text(composed.read_text().replace("name: train", "name: extract"))
    assert names([tmp_path / "runs"]) == (["1"], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"experiment": "nee', "but it is not JSON"),
        ("[1]", "but it lacks experiment, task, seed, commit, config, published"),
        ('{"experiment": "a", "task": "b", "seed": 0, "commit": null}', "but it lacks config, published"),
    ],
)
def test_a_corrupt_file_is_named(write_run: Write, content: str, message: str) -> None:
    file = write_run("1", 0.5) / "results.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_runs([file.parent], checkpoint="best")
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give run folders"):
        read_runs([tmp_path / "nowhere"], checkpoint="best")
    with pytest.raises(ValueError, match=r"expected runs of train\.py or vtm\.qa, found no results\.json and no"):
        read_runs([tmp_path], checkpoint="best")


def test_runs_come_in_the_order_of_their_folders(tmp_path: Path, write_run: Write) -> None:
    folders = ["a2", "b1", "b9", "b10", "c"]
    for name in reversed(folders):
        write_run(name, 0.5)
    assert names([tmp_path / "runs"]) == (folders, [])
