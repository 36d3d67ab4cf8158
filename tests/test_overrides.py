"""The near miss of a misspelt override is named."""

from pathlib import Path

import pytest

from vtm.merging.partition import num_targets
from vtm.overrides import errors_in_one_sentence, near_misses

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=demo", "merging.partition_facto=4"], ["merging.partition_facto", "merging.partition_factor"]),
        (["experiment=demo", "trainer.max_epoch=4"], ["trainer.max_epoch", "trainer.max_epochs"]),
        (["-m", "experiment=demo", "merging.merge_cout=0.5,0.8"], ["merging.merge_cout", "merging.merge_count"]),
        (["experiment=demoo"], ["experiment=demoo", "experiment=demo"]),
        (["experiment=demo", "merging=center,learnabel", "-m"], ["merging=learnabel", "merging=learnable"]),
        (["experiment=demo", "merging/weighting=sise"], ["merging/weighting=sise", "merging/weighting=size"]),
        (["experimnt=demo"], ["experimnt", "experiment"]),
        (["experiment=lvu_scene", "data.protocol.strid=10"], ["data.protocol.strid", "data.protocol.stride"]),
    ],
)
def test_a_misspelt_override_names_the_near_miss(arguments, expected):
    (line,) = near_misses(arguments, CONF, "train")
    assert line == "{!r} is unknown; did you mean {!r}?".format(*expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=demo", "merging.partition_factor=4", "seed=1,2", "-m"],
        ["experiment=demo", "+callbacks.mine._target_=a.B", "~logger.wandb", "hydra.run.dir=x"],
        ["experiment=demo", "merging=none"],
        ["experiment=demo", "entirely_different_words=1"],
        ["--help"],
        ["experiment=[1"],
    ],
)
def test_nothing_is_said_where_nothing_is_near(arguments):
    assert near_misses(arguments, CONF, "train") == []


def test_what_vtm_refuses_leaves_with_its_sentence():
    with (
        pytest.raises(SystemExit, match="expected partition_factor to be an integer >= 1, got 0"),
        errors_in_one_sentence(),
    ):
        num_targets(5, 0)


@pytest.mark.parametrize(
    ("mistake", "error"), [(lambda: near_misses(None, CONF, "train"), TypeError), (lambda: 1 / 0, ZeroDivisionError)]
)
def test_mistakes_of_the_program_keep_their_stack_trace(mistake, error):
    with pytest.raises(error), errors_in_one_sentence():
        mistake()
