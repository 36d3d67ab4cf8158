"""Comparison of runs with a baseline on the same videos: its numbers, its seeds, and what cannot be compared."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pytest

from vtm.results.comparison import Comparison, compare
from vtm.results.differences import differences_csv, differences_markdown
from vtm.results.predictions import write_predictions
from vtm.results.record import ids_sha256
from vtm.results.runs import read_runs
from vtm.results.tables import group_runs
from vtm.tasks.predictions import Predictions

Write = Callable[..., Path]
IDS = [f"clip {i}" for i in range(8)]


@pytest.fixture
def write_tested(write_run: Write) -> Write:
    """Write a run of two classes with its predictions, given which videos are right."""

    def write_tested(
        name: str,
        right: Sequence[int],
        *,
        ids: Sequence[str] = IDS,
        targets: Sequence[int] | None = None,
        clusters: Sequence[str] | None = None,
        frames: int = 4,
        test: dict[str, object] | None = None,
        **options: object,
    ) -> Path:
        targets = [i % 2 for i in range(len(ids))] if targets is None else targets
        probability = [float(target == hit) for target, hit in zip(targets, right, strict=True)]
        scores = [[1 - value, value] for value in probability]
        facts = {"n": len(ids), "ids_sha256": ids_sha256(ids), **(test or {})}
        config = {"data": {"protocol": {"num_frames": frames}}}
        folder = write_run(name, fmean(right), test=facts, config=config, **options)
        write_predictions(folder / "predictions.csv", Predictions(ids, targets, scores, ["=no", "yes"], clusters))
        return folder

    return write_tested


@pytest.fixture
def write_values(write_run: Write) -> Write:
    """Write a run that predicts values, with its predictions."""

    def write_values(name: str, values: Sequence[float], targets: Sequence[float], **options: object) -> Path:
        ids = IDS[: len(values)]
        mse = fmean((value - target) ** 2 for value, target in zip(values, targets, strict=True))
        test = {"n": len(ids), "ids_sha256": ids_sha256(ids), "metric": "mse"}
        folder = write_run(name, mse, test=test, task="regression", **options)
        write_predictions(folder / "predictions.csv", Predictions(ids, targets, values, None))
        return folder

    return write_values


def compared(paths: Sequence[Path], baseline: Sequence[Path], checkpoint: str = "best") -> list[Comparison]:
    runs, _ = read_runs([*paths, *baseline], checkpoint=checkpoint)
    return compare(group_runs(runs, baseline={path.resolve() for path in baseline}))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_two_runs_are_compared_video_by_video(write_tested: Write) -> None:
    base = write_tested("base", [1, 1, 1, 0, 0, 0, 0, 0], merging="none")
    run = write_tested("run", [1, 0, 1, 1, 1, 0, 0, 0])
    (one,) = found = compared([run], [base])
    assert (one.value, one.baseline, one.difference.value) == (4 / 8, 3 / 8, 1 / 8)
    assert (one.only_run, one.only_baseline, one.p) == (2, 1, 1)
    # of the sum of 8 draws from 1 (2 of 8), -1 (1 of 8) and 0, 1.8 % are below -2 and 1.7 % above 4
    assert one.difference == (1 / 8, -2 / 8, 4 / 8)
    heading, _, row = cells(differences_markdown(found))
    assert heading == [
        "merging", "seed", "against", "accuracy", "baseline", "difference", "95 % interval", "only run right",
        "only baseline right", "McNemar p",
    ]  # fmt: skip
    assert row[:6] == ["uniform", "0", "seed 0", "0.500", "0.375", "+0.125"]
    assert row[6:] == ["-0.250 to +0.500", "2", "1", "1"]
    assert compared([run], [base]) == found


def test_equal_runs_of_one_setting_and_seed_do_not_differ(write_tested: Write) -> None:
    folders = [write_tested(name, [1, 0, 1, 0, 1, 0, 0, 0]) for name in "ab"]
    (one,) = compared(folders[1:], folders[:1])
    assert (one.difference, one.only_run, one.only_baseline, one.p) == ((0, 0, 0), 0, 0, 1)


def test_videos_in_another_order_are_matched_by_id(write_tested: Write) -> None:
    base = write_tested("base", [1, 1, 1, 1, 0, 0, 0, 0])
    turned = write_tested("turned", [0, 0, 0, 0, 1, 1, 1, 1], ids=IDS[::-1], targets=[1, 0] * 4)
    (one,) = compared([turned], [base])
    assert one.difference == (0, 0, 0)


def test_matching_seeds_are_compared_in_pairs_and_together(write_tested: Write) -> None:
    rights = {("none", 1): [1, 0, 0, 0] * 2, ("none", 2): [1, 1, 1, 1] * 2, ("none", 3): [0] * 8}
    rights |= {("uniform", 1): [1, 1, 0, 0] * 2, ("uniform", 2): [1, 1, 1, 0] * 2}
    folders = {key: write_tested(f"{key}", right, merging=key[0], seed=key[1]) for key, right in rights.items()}
    baseline = [folder for (merging, _), folder in folders.items() if merging == "none"]
    one, two, both = compared(list(folders.values()), baseline)
    assert (one.baseline, one.difference.value, one.sd) == (0.25, 0.25, None)
    assert (two.baseline, two.difference.value, two.sd) == (1, -0.25, None)
    assert (both.value, both.baseline, both.difference.value) == (5 / 8, 5 / 8, 0)
    assert both.sd == pytest.approx(0.5 / 2**0.5)
    assert (both.p, both.only_run, one.only_run, two.only_baseline) == (None, None, 2, 2)
    rows = cells(differences_markdown([one, two, both]))[2:]
    assert [row[1:3] for row in rows] == [["1", "seed 1"], ["2", "seed 2"], ["mean of 1, 2", "same seeds"]]
    assert rows[2][5:] == ["+0.000 ± 0.354", "-0.250 to +0.250", "", "", ""]
    written = list(csv.DictReader(io.StringIO(differences_csv([one, two, both]))))
    assert [(row["seeds"], row["baseline_seeds"], row["by_seed"]) for row in written] == [
        ("1", "1", "True"), ("2", "2", "True"), ("1 2", "1 2", "True")
    ]  # fmt: skip
    assert (written[1]["difference"], written[1]["mcnemar_p"], written[2]["mcnemar_p"]) == ("-0.25", "0.5", "")
    assert written[0]["folders"] == str(folders["uniform", 1])


def test_other_seeds_are_compared_with_the_mean_of_the_baseline(write_tested: Write) -> None:
    baseline = [
        write_tested("0", [1, 0, 0, 0] * 2, merging="none", seed=0),
        write_tested("1", [1, 1, 1, 0] * 2, merging="none", seed=1),
    ]
    runs = [write_tested("2", [1, 1, 1, 1] * 2, seed=1), write_tested("3", [0] * 8, seed=2)]
    one, two, both = compared(runs, baseline)
    assert [each.difference.value for each in (one, two, both)] == [0.5, -0.5, 0]
    assert (one.p, one.only_run, both.p) == (None, None, None)
    rows = cells(differences_markdown([one, two, both]))[2:]
    assert [row[1:3] for row in rows] == [
        ["1", "mean of seeds 0, 1"], ["2", "mean of seeds 0, 1"], ["mean of 1, 2", "mean of seeds 0, 1"]
    ]  # fmt: skip
    (alone, *_) = compared(runs, baseline[:1])  # a single baseline is compared as it is
    assert (alone.only_run, alone.only_baseline) == (6, 0)


def test_dependent_videos_are_resampled_together(write_tested: Write) -> None:
    base = write_tested("base", [0] * 8, clusters=["a"] * 4 + ["b"] * 4)
    run = write_tested("run", [1] * 4 + [0] * 4, seed=1)  # of a version that wrote no clusters
    (one,) = found = compared([run], [base])
    assert one.difference == (0.5, 0, 1)
    assert "over the 2 clusters of these videos" in differences_markdown(found)


def test_errors_of_values_are_compared_by_their_squares(write_values: Write) -> None:
    base = write_values("base", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], merging="none")
    run = write_values("run", [1.0, 1.0, -1.0], [0.0, 0.0, 0.0])
    (one,) = found = compared([run], [base])
    assert one.difference == (pytest.approx(-11 / 3), -8, 0)
    assert (one.p, one.only_run) == (None, None)
    text = differences_markdown(found)
    assert "so that a run with a negative one is better" in text
    assert "McNemar" not in text
    assert cells(text)[0][-2:] == ["difference", "95 % interval"]


def test_other_items_tasks_and_frames_are_refused(write_tested: Write, write_values: Write) -> None:
    right = [1] * 8
    base = write_tested("base", right)
    others = {
        "test items: 7 with the hash": write_tested("ids", right[1:], ids=IDS[1:]),
        "task: regression and classification": write_values("mse", [1.0] * 8, [0.0] * 8),
        "frames: 8 and 4": write_tested("frames", right, frames=8),
        "the right answer of clip 0: yes and '=no": write_tested("targets", right, targets=[1, 1, 0, 1, 0, 1, 0, 1]),
    }
    for reason, folder in others.items():
        with pytest.raises(ValueError, match=f"^{folder} and {base} cannot be compared, because .* {reason}"):
            compared([folder], [base])


def test_a_baseline_of_several_settings_is_refused(write_tested: Write) -> None:
    none, uniform = (write_tested(name, [1] * 8, merging=name) for name in ("none", "uniform"))
    other = write_tested("other", [1] * 7, ids=IDS[1:])
    with pytest.raises(ValueError, match=rf"{none} and {uniform}, which differ in merging \(none and uniform\); name"):
        compared([other], [none, uniform])
    with pytest.raises(ValueError, match=f"{none} and {other}, which differ in experiment, task or videos"):
        compared([uniform], [none, other])
    with pytest.raises(ValueError, match=f"expected runs to compare with {none}, got only the baseline"):
        compared([none], [none])


def test_predictions_that_are_missing_or_of_another_test_are_named(write_tested: Write) -> None:
    base, run = write_tested("base", [1] * 8), write_tested("run", [1] * 8, seed=1)
    path = run / "predictions.csv"
    path.write_text(path.read_text().replace("clip 3,yes,yes", "clip 3,yes,'=no"))
    with pytest.raises(ValueError, match=f"{path}: expected .* 8 items with accuracy 1, got 8 items with 0.875"):
        compared([run], [base])
    path.write_text("id,target\nclip 3,yes\n")
    with pytest.raises(ValueError, match=rf"{path} is damaged, .* \(KeyError\('prediction'\)\); test again"):
        compared([run], [base])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}, .* does not exist; earlier versions did not write it"):
        compared([run], [base])


def test_the_predictions_are_those_of_the_chosen_checkpoint(write_tested: Write) -> None:
    folders = [write_tested(name, [1, 0] * 4, seed=seed) for seed, name in enumerate(("base", "run"))]
    for folder in folders:
        file = folder / "results.json"
        file.write_text(file.read_text().replace('"test": {', '"test_last": {'))
    message = r"only predictions\.csv of the best epoch is there, so add --checkpoint best"
    with pytest.raises(FileNotFoundError, match=message):
        compared(folders[1:], folders[:1], "last")
    for folder in folders:
        (folder / "predictions.csv").rename(folder / "predictions_last.csv")
    assert compared(folders[1:], folders[:1], "last")[0].difference == (0, 0, 0)
