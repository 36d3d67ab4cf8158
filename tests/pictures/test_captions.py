"""Words under pictures."""

from vtm.pictures.captions import blocks, described


def test_blocks_say_what_they_see_and_merge(view):
    first, second = (block.num_groups for block in view.blocks)
    assert [(name, *facts) for _, name, facts in blocks(view)] == [
        ("Block 1", "2 frames at a time", f"36 → {first} tokens"),
        ("Block 2", "4 frames at a time", f"{first} → {second} tokens"),
    ]


def test_a_value_is_written_as_one():
    assert described([("value", -1.234)]) == "value -1.23"
