"""Schedules: how many tokens each block takes away (Bolya et al. 2023, section 3).

A schedule is a list with one number per block. A block takes away at most half of its unprotected tokens, so the number
of tokens left, `token_counts`, may be larger than the schedule alone suggests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from vtm.patching.reduction import most_reduced

Shape = Literal["constant", "decreasing", "increasing"]


def constant(depth: int, count: int) -> list[int]:
    """Take the same number of tokens away in every block.

    >>> constant(3, 8)
    [8, 8, 8]
    """
    return [count] * _checked(depth, count)


def decreasing(depth: int, count: int) -> list[int]:
    """Take 2·count tokens away in the first block and none in the last, `count` on average, rounded down.

    >>> decreasing(12, 18)
    [36, 32, 29, 26, 22, 19, 16, 13, 9, 6, 3, 0]
    """
    return _ramp(_checked(depth, count), 2 * count, 0)


def increasing(depth: int, count: int) -> list[int]:
    """Take no token away in the first block and 2·count in the last, `count` on average, rounded down.

    >>> increasing(4, 9)
    [0, 6, 12, 18]
    """
    return _ramp(_checked(depth, count), 0, 2 * count)


def token_counts(schedule: Sequence[int], num_tokens: int, *, protected: int = 0) -> list[int]:
    """Return the number of tokens before the first block and after each block.

    Args:
        schedule: number of tokens to take away in each block.
        num_tokens: number of tokens before the first block, protected ones included.
        protected: number of tokens, such as CLS, that are never taken away.

    >>> token_counts(constant(3, 18), 50, protected=1)
    [50, 32, 17, 9]
    """
    counts = [num_tokens]
    for count in schedule:
        counts.append(counts[-1] - min(count, most_reduced(counts[-1], protected)))
    return counts


def multiply_adds(schedule: Sequence[int], num_tokens: int, dim: int, *, protected: int = 0) -> int:
    """Count the multiply-adds of the blocks of a ViT whose MLP is four times as wide as its tokens.

    A block with N tokens before and N′ after the reduction has 4·N·D² for the projections of the attention, 2·N²·D for
    the attention, and 8·N′·D² for the MLP.

    Args:
        schedule: number of tokens to take away in each block.
        num_tokens: number of tokens before the first block, protected ones included.
        dim: D, width of the tokens.
        protected: number of tokens that are never taken away.
    """
    counts = token_counts(schedule, num_tokens, protected=protected)
    return sum(4 * n * dim**2 + 2 * n**2 * dim + 8 * left * dim**2 for n, left in pairwise(counts))


SHAPES: dict[Shape, Callable[[int, int], list[int]]] = {
    "constant": constant,
    "decreasing": decreasing,
    "increasing": increasing,
}


def equal_compute(
    num_tokens: int, depth: int, dim: int, *, ratio: float, shape: Shape = "constant", protected: int = 0
) -> list[int]:
    """Return the schedule of a shape whose multiply-adds come closest under a share of those without reduction.

    Schedules of different shapes take the same number of tokens away at very different cost, so only schedules of
    equal compute can be compared.

    Args:
        num_tokens: number of tokens before the first block, protected ones included.
        depth: number of blocks.
        dim: D, width of the tokens.
        ratio: upper bound of the multiply-adds, as a share of those without reduction, in (0, 1].
        shape: "constant", "decreasing" or "increasing".
        protected: number of tokens that are never taken away.

    Raises:
        ValueError: if the shape is unknown, or no schedule of the shape reaches the ratio.

    >>> equal_compute(197, 12, 768, ratio=0.6, protected=1)
    [13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13]
    """
    if shape not in SHAPES:
        raise ValueError(f"expected shape to be one of {', '.join(SHAPES)}, got {shape!r}")
    if not 0 < ratio <= 1:
        raise ValueError(f"expected ratio in (0, 1], got {ratio}")
    whole = multiply_adds([0] * depth, num_tokens, dim, protected=protected)
    lowest = 1.0
    for count in range(num_tokens + 1):  # the cost falls with the count
        schedule = SHAPES[shape](depth, count)
        share = multiply_adds(schedule, num_tokens, dim, protected=protected) / whole
        if share <= ratio:
            return schedule
        lowest = min(lowest, share)
    raise ValueError(
        f"no {shape} schedule of {depth} blocks has {ratio} of the multiply-adds of {num_tokens} tokens; the least is "
        f"{lowest:.3f}"
    )


def _checked(depth: int, count: int) -> int:
    if depth < 1 or count < 0:
        raise ValueError(f"expected depth >= 1 and count >= 0, got {depth} and {count}")
    return depth


def _ramp(depth: int, first: int, last: int) -> list[int]:
    """Interpolate from the first to the last block, rounded down; a single block gets the mean."""
    if depth == 1:
        return [(first + last) // 2]
    return [int(first + (last - first) / (depth - 1) * block) for block in range(depth)]
