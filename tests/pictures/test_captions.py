"""Captions name what blocks, times and predictions are."""

from vtm.pictures.captions import described
from vtm.pictures.selection import Selection


def test_facts_list_the_window_and_the_merge_of_a_block(view):
    first, second = (block.num_groups for block in view.blocks)
    of_first, of_second = (
        f"saliency {block.saliency.min():.2f} to {block.saliency.max():.2f}".replace("-", "−") for block in view.blocks
    )
    assert of_first != of_second
    assert [(part.number, *part.facts) for part in Selection().of(view).parts] == [
        (1, "2 frames at a time", f"36 → {first} tokens", of_first),
        (2, "4 frames at a time", f"{first} → {second} tokens", of_second),
    ]


def test_without_an_estimator_no_fact_is_about_saliency(make_clip):
    assert [len(part.facts) for part in Selection().of(make_clip(estimates=False).view()).parts] == [2, 2]


def test_a_regression_is_described_by_its_value():
    assert described([("value", -1.234)]) == "predicted: value −1.23"


def test_the_truth_comes_first_since_the_end_may_be_cut_off():
    assert described([("a", 0.9), ("b", 0.1)], truth="b") == "truth: b, predicted: a 0.90, b 0.10"


def test_without_scores_nothing_is_predicted():
    assert described([]) == ""
    assert described([], truth="b") == "truth: b"
