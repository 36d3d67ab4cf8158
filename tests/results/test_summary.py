"""The report after a test, beside the published figures."""

from typing import Any

from vtm.results.summary import NOTE, results_report, results_table

PUBLISHED = {
    "Alpha": {"value": 0.595},
    "Beta": {"value": 0.7558, "n": 86},
    "Gamma": {"value": 0.9, "remark": "clip-level, 7B LLM"},
    "Delta": {"value": 0.7558, "n": 81, "remark": "test set merged"},
}


def score(**changes: Any) -> dict[str, Any]:
    """Return the score of a test of 86 videos, with changes."""
    return {
        "metric": "accuracy",
        "value": 64 / 86,
        "interval": [0.6432, 0.8246],
        "n": 86,
        "macro_accuracy": 0.7,
        "clip_level": {"value": 0.72, "n": 900},
        "floor": 0.2674,
        "missing": 0,
        "missing_ids": [],
        "ids_sha256": "0123456789abcdef" * 4,
        "selection": "val",
        "damaged_videos": 0,
        "train_videos": {"n": 540, "missing": 17},
        "checkpoint": "best",
        "epoch": 12,
        **changes,
    }


def report(figures: dict[str, dict[str, Any]] | None = None, **scores: dict[str, Any]) -> str:
    run = {"experiment": "lvu_scene", "seed": 5, "published": {"note": NOTE, "figures": figures or {}}}
    return results_report(run, scores)


def test_table_is_aligned_and_leaves_out_what_does_not_apply() -> None:
    plain = score(metric="mse", value=4.01, floor=4.084, interval=[3.1, 5.0], epoch=None)
    del plain["macro_accuracy"]
    header, accuracy, mse = results_table({"val": score(), "test_last": plain}).splitlines()
    assert len(header) == len(accuracy) == len(mse)
    cells = [" ".join(line.split()) for line in (accuracy, mse)]
    assert cells == [
        "val 12 accuracy 0.7442 0.6432 to 0.8246 0.2674 0.7000 0.7200 86 0 01234567",
        "test_last - mse 4.0100 3.1000 to 5.0000 4.0840 - 0.7200 86 0 01234567",
    ]


def test_report_without_anything_to_remark_is_the_table_under_two_lines() -> None:
    assert report(test=score()).splitlines() == [
        "lvu_scene, seed 5; 540 training videos, 17 missing",
        "best epoch chosen on the validation videos",
        *results_table({"test": score()}).splitlines(),
    ]


def test_report_of_a_given_checkpoint_does_not_call_it_the_best() -> None:
    assert "best" not in report(test=score(checkpoint="given"))
    assert (
        report(test=score(checkpoint="given")).splitlines()[1]
        == "a given checkpoint or a ready model, not trained in this run"
    )


def test_report_says_that_a_score_was_selected_on_the_test_videos() -> None:
    best, last = score(selection="test"), score(selection="test", checkpoint="last", epoch=70, value=0.5)
    lines = report({"Beta": {"value": 0.7558}}, test=best, test_last=last).splitlines()
    assert lines[1].startswith("best epoch chosen on the TEST videos, as ViS4mer does on Breakfast and COIN")
    assert "ours       test 0.7442 (n=86, selected on test); test_last 0.5000 (n=86)" in lines


def test_report_names_what_is_missing_or_damaged_once_for_each_split() -> None:
    gaps = score(
        missing=7, missing_ids=list("abcdefg"), damaged_videos=3, motion_from_codec=0.25, details={"kept_1": 0.5}
    )
    last = gaps | {"details": {"kept_1": 0.75}}
    lines = report(val=score(missing=1, missing_ids=["z"]), test=gaps, test_last=last).splitlines()
    assert lines[-6:] == [
        "missing in val: z",
        "missing in test: a, b, c, d, e and 2 more, all in the file",
        "damaged in test: 3 videos, with frames that could not be decoded",
        "motion in test: from the codec in 25.0% of the steps, else from frame differences",
        "details of test: kept_1 0.500",
        "details of test_last: kept_1 0.750",
    ]


def test_published_figures_stand_below_ours_best_first() -> None:
    lines = report(PUBLISHED, test=score()).splitlines()
    ours, *theirs = lines[lines.index("") + 1 :]
    assert ours == "ours       test 0.7442 (n=86)"
    assert max(map(len, theirs)) <= 120
    text = " ".join(line.strip() for line in theirs)
    assert text == (
        "published  Gamma 0.9 (clip-level, 7B LLM); Beta 0.7558 (n=86); Delta 0.7558 (n=81, test set merged); "
        f"Alpha 0.595 {NOTE}"
    )


def test_of_errors_the_lowest_is_best() -> None:
    figures = {"Alpha": {"value": 4.18}, "Beta": {"value": 2.9}, "Gamma": {"value": 4.01}}
    lines = report(figures, test=score(metric="mse", value=4.2)).splitlines()
    assert "published  Beta 2.9; Gamma 4.01; Alpha 4.18" in lines


def test_a_long_list_is_wrapped_between_figures() -> None:
    figures = {f"Method with a long name {i}": {"value": 0.5, "n": 86, "remark": "clip-level"} for i in range(9)}
    lines = report(figures, test=score()).splitlines()
    shown = lines[lines.index("") + 2 : -1]
    assert len(shown) > 1
    assert all(line.endswith("(n=86, clip-level);") for line in shown[:-1])
