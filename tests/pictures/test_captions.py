"""Words under pictures."""

from vtm.pictures.captions import blocks, described


def test_blocks_say_what_they_see_and_merge(view):
    first, second = (block.num_groups for block in view.blocks)
    of_first, of_second = (
        f"saliency {block.saliency.min():.2f} to {block.saliency.max():.2f}".replace("-", "−") for block in view.blocks
    )
    assert of_first != of_second
    assert [(name, *facts) for _, name, facts in blocks(view)] == [
        ("Block 1", "2 frames at a time", f"36 → {first} tokens", of_first),
        ("Block 2", "4 frames at a time", f"{first} → {second} tokens", of_second),
    ]


def test_without_an_estimator_nothing_is_said_of_saliency(make_clip):
    assert [len(facts) for *_, facts in blocks(make_clip(estimates=False).view())] == [2, 2]


def test_a_value_is_written_as_one():
    assert described([("value", -1.234)]) == "predicted: value −1.23"


def test_the_truth_comes_first_for_the_end_may_be_left_out():
    assert described([("a", 0.9), ("b", 0.1)], truth="b") == "truth: b, predicted: a 0.90, b 0.10"
