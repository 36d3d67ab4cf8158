"""The rows are those of the paper's tables, and each of them composes."""

from dataclasses import replace
from pathlib import Path

import pytest

from vtm.benchmark.network import composed, identity
from vtm.benchmark.rows import Row, Setting, default_tables, full_tables, long_tables

CONF = Path(__file__).parents[2] / "conf"
PAPER = Setting(60, 16, 16, 1024, "cpu", threads=1, repeats=5, limit=20)
PRECISIONS = ("32-true", "bf16-mixed")


def tables() -> dict[str, list[Row]]:
    return default_tables((1, 16), PRECISIONS, plain_everywhere=False, encoder=True)


def chosen(title: str, *keys: str) -> list:
    """Return a configuration value of the learnable rows of a table."""
    found = []
    for row in tables()[title]:
        if row.strategy == "learnable":
            node = composed(row, PAPER)
            for key in keys:
                node = node[key]
            found.append(node)
    return found


def test_the_paper_s_values_are_measured_one_at_a_time():
    assert chosen("Partition factor γ", "merging", "partition_factor") == [2, 6, 10]
    assert chosen("Merge count R", "merging", "merge_count") == [0.5, 0.8, 1.0]
    assert chosen("Window lengths L", "model", "window_frames") == [[10, 30, 60], [6, 30, 60], [4, 20, 60]]
    for title, others in {
        "Partition factor γ": ("merging", "merge_count"),
        "Window lengths L": ("model", "channels"),
    }.items():
        assert len({str(value) for value in chosen(title, *others)}) == 1


def test_every_strategy_is_measured_in_inference_and_in_training():
    rows = tables()["Strategies"]
    names = {path.stem for path in (CONF / "merging").glob("*.yaml")}
    for training in (False, True):
        assert {row.strategy for row in rows if row.training == training} == names
        assert [row.plain for row in rows if row.training == training and row.strategy == "none"] == [True, False]


def test_batches_precisions_compilation_and_the_encoder_are_factors_too():
    found = tables()
    assert {(row.batch, row.training) for row in found["Batch"]} == {(1, False), (16, False), (1, True), (16, True)}
    assert {row.precision for row in found["Precision"]} == set(PRECISIONS)
    assert {row.compiled for row in found["torch.compile"]} == {False, True}
    assert all(row.encoder for row in found["With the encoder"])
    few = default_tables((2,), ("32-true",), plain_everywhere=False, encoder=False)
    assert {row.batch for rows in few.values() for row in rows} == {2}
    assert not {"Batch", "Precision", "With the encoder"} & few.keys()


def test_the_paper_s_setting_is_one_row_however_it_is_written():
    usual = Row("learnable")
    assert identity(Row("learnable", overrides=("merging.partition_factor=6",)), PAPER) == identity(usual, PAPER)
    assert identity(Row("learnable", overrides=("merging.partition_factor=2",)), PAPER) != identity(usual, PAPER)
    assert identity(Row("learnable", training=True), PAPER) != identity(usual, PAPER)
    assert identity(Row("learnable_paper"), PAPER) != identity(usual, PAPER)


def test_the_full_product_has_every_combination_once():
    rows = full_tables((1, 16), PRECISIONS, encoder=False)["All combinations"]
    merging = len(list((CONF / "merging").glob("*.yaml"))) - 1
    assert len(rows) == len(set(rows)) == 2 * 2 * 2 * 3 * (2 + merging * 3 * 3)
    assert not any(row.encoder for row in rows)
    both = full_tables((1, 16), PRECISIONS, encoder=True)["All combinations"]
    assert set(both) == {*rows, *(replace(row, encoder=True) for row in rows)}
    assert len(both) == 2 * len(rows)


def test_long_videos_are_measured_whole_and_as_a_stream():
    (rows,) = long_tables().values()
    assert [row.frames for row in rows] == 2 * [60, 600, 3600, 10800]
    config = composed(rows[0], PAPER).model
    assert (config.window_frames, len(config.channels)) == ([6, 30, 60, 600, 3600], 5)


def test_overrides_reach_the_rows_they_concern():
    setting = Setting(60, 16, 16, 1024, "cpu", 1, 5, 20, ("merging.saliency_weight=2", "model.num_heads=4"))
    assert composed(Row("learnable"), setting).merging.saliency_weight == 2
    assert composed(Row("none"), setting).model.num_heads == 4
    row = Row("learnable", overrides=("model.num_heads=2",))
    assert composed(row, setting).model.num_heads == 2  # the row's own override wins


@pytest.mark.parametrize("override", ["merging.saliency_weight=2", "++merging.saliency_weight=2"])
def test_a_weight_of_the_saliency_reaches_only_the_strategy_that_has_a_number(override):
    setting = Setting(60, 16, 16, 1024, "cpu", 1, 5, 20, (override,))
    names = sorted(path.stem for path in (CONF / "merging").glob("*.yaml"))
    found = {name: composed(Row(name), setting).merging.get("saliency_weight") for name in names}
    assert found == dict.fromkeys(names) | {"learnable": 2, "learnable_paper": "scale"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder=precomputed", "encoder=precomputed cannot be measured, because it computes nothing; choose another"),
        ("merging.partition_facto=4", "did you mean 'merging.partition_factor'"),
        ("merging=uniform", "every strategy has its own rows"),
        ("foo", "foo"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(override, message):
    with pytest.raises(ValueError, match=message) as error:
        composed(Row("learnable"), Setting(60, 16, 16, 1024, "cpu", 1, 5, 20, (override,)))
    assert "\n" not in str(error.value)
