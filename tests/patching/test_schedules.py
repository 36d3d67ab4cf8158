"""Schedules have the token counts and multiply-adds of the papers, and equal compute never exceeds its target."""

from itertools import product

import pytest

from vtm.patching.schedules import (
    constant,
    decreasing,
    equal_compute,
    increasing,
    multiply_adds,
    token_counts,
)

VIVIT = {"num_tokens": 3137, "protected": 1}
VIDEOMAE = {"num_tokens": 1568}


@pytest.mark.parametrize(
    ("schedule", "model", "expected"),
    [
        (constant(12, 300), VIVIT, [3137, 2837, 2537, 2237, 1937, 1637, 1337, 1037, 737, 437, 219, 110, 56]),
        (decreasing(12, 300), VIVIT, [3137, 2537, 1992, 1502, 1066, 685, 358, 180, 91, 46, 24, 13, 13]),
        (increasing(12, 300), VIVIT, [3137, 3137, 3083, 2974, 2811, 2593, 2321, 1994, 1613, 1177, 687, 344, 173]),
        (constant(12, 150), VIDEOMAE, [1568, 1418, 1268, 1118, 968, 818, 668, 518, 368, 218, 109, 55, 28]),
        (constant(12, 18), {"num_tokens": 196}, [196, 178, 160, 142, 124, 106, 88, 70, 52, 34, 17, 9, 5]),
    ],
)
def test_token_counts_are_those_of_the_papers_models(schedule, model, expected):
    assert token_counts(schedule, **model) == expected


def test_ramps_are_tome_s():
    assert decreasing(12, 18) == [36, 32, 29, 26, 22, 19, 16, 13, 9, 6, 3, 0]
    assert decreasing(12, 7) == [14, 12, 11, 10, 8, 7, 6, 5, 3, 2, 1, 0]
    assert increasing(12, 7) == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 14]
    assert constant(1, 7) == decreasing(1, 7) == increasing(1, 7) == [7]


@pytest.mark.parametrize(
    ("schedule", "model", "giga"),
    [
        ([0] * 12, VIVIT, 447.8), (constant(12, 300), VIVIT, 174.8),
        ([0] * 12, VIDEOMAE, 178.5), (constant(12, 150), VIDEOMAE, 72.2),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_of_the_papers_models(schedule, model, giga):
    assert multiply_adds(schedule, dim=768, **model) / 1e9 == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize("shape", ["constant", "decreasing", "increasing"])
@pytest.mark.parametrize("ratio", [1.0, 0.8, 0.6, 0.4])
def test_equal_compute_comes_closest_under_its_target(shape, ratio):
    for (tokens, protected), depth in product([(197, 1), (1568, 0), (196, 0)], [4, 12]):
        model = {"num_tokens": tokens, "protected": protected, "dim": 768}
        whole = multiply_adds([0] * depth, **model)
        try:
            schedule = equal_compute(depth=depth, ratio=ratio, shape=shape, **model)
        except ValueError:
            continue
        assert multiply_adds(schedule, **model) <= ratio * whole
        cheaper = {"constant": constant, "decreasing": decreasing, "increasing": increasing}[shape]
        count = next(c for c in range(tokens) if cheaper(depth, c) == schedule)
        assert count == 0 or multiply_adds(cheaper(depth, count - 1), **model) > ratio * whole


def test_a_ratio_out_of_reach_is_an_error():
    with pytest.raises(
        ValueError, match=r"no increasing schedule of 4 blocks has 0.1 .* of 197 tokens; the least is 0"
    ):
        equal_compute(197, 4, 768, ratio=0.1, shape="increasing")
    with pytest.raises(ValueError, match="expected ratio in"):
        equal_compute(197, 4, 768, ratio=0.0)
    with pytest.raises(ValueError, match="expected shape to be one of constant"):
        equal_compute(197, 4, 768, ratio=0.5, shape="cosine")


@pytest.mark.parametrize("schedule", [constant, decreasing, increasing])
def test_wrong_numbers_are_errors(schedule):
    for depth, count in ((0, 4), (4, -1)):
        with pytest.raises(ValueError, match=rf"got {depth} and {count}"):
            schedule(depth, count)
