"""Format the text beside pictures: predictions, numbers, times, and facts about blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vtm.pictures.view import BlockView, Scores


def described(scores: Scores, *, truth: str | None = None, count: int = 3) -> str:
    """Describe the prediction, after the true class or value if it is known; without scores, only the latter.

    >>> described([("cooking", 0.914), ("riding", 0.05), ("reading", 0.03), ("singing", 0.006)])
    'predicted: cooking 0.91, riding 0.05, reading 0.03'
    >>> described([("value", -1.25)], truth="0.50")
    'truth: 0.50, predicted: value −1.25'
    """
    predicted = ", ".join(f"{name} {decimal(score)}" for name, score in scores[:count])
    parts = [] if truth is None else [f"truth: {truth}"]
    return ", ".join([*parts, f"predicted: {predicted}"] if predicted else parts)


def decimal(value: float) -> str:
    """Format a number with two decimals and a true minus sign.

    >>> decimal(-0.756), decimal(-0.001)
    ('−0.76', '0.00')
    """
    return f"{value:z.2f}".replace("-", "\N{MINUS SIGN}")


def seconds(time: float) -> str:
    """Format a time in seconds.

    >>> seconds(3.0), seconds(3.25)
    ('3 s', '3.2 s')
    """
    return f"{time:.1f}".removesuffix(".0") + " s"


def labels(times: Sequence[float]) -> list[str]:
    """Format times; a label that would repeat the one before it is empty, as in short videos.

    >>> labels([0.0, 1.5, 1.52])
    ['0 s', '1.5 s', '']
    """
    written = [seconds(time) for time in times]
    return [*written[:1], *("" if time == before else time for before, time in pairwise(written))]


def clock_times(times: Sequence[float]) -> list[str]:
    """Format times, with as many decimals as tell them apart.

    >>> clock_times([0.5, 59.94, 3725.0])
    ['0:00:00', '0:01:00', '1:02:05']
    >>> clock_times([0.04, 0.08])
    ['0.04 s', '0.08 s']
    """
    step = min((after - before for before, after in pairwise(times)), default=1.0)
    if times[-1] < 60 or step < 1:
        digits = 0 if step >= 10 else 1 if step >= 0.1 else 2
        return [f"{time:.{digits}f} s" for time in times]
    written = []
    for time in times:
        minutes, seconds = divmod(round(time), 60)
        hours, minutes = divmod(minutes, 60)
        written.append(f"{hours}:{minutes:02}:{seconds:02}" if times[-1] >= 3600 else f"{minutes}:{seconds:02}")
    return written


def shortened(text: str, count: int) -> str:
    """Shorten a text to at most `count` characters.

    >>> shortened("a long name.mp4", 8), shortened("name.mp4", 8)
    ('a long …', 'name.mp4')
    """
    return text if len(text) <= count else text[: count - 1] + "…"


def describe_block(block: BlockView, *, entered: int, saliency: bool = True) -> list[str]:
    """List what a block sees, what it merges, and the range of the saliency that it estimates.

    Args:
        block: view of the block.
        entered: number of tokens of the clip before the block.
        saliency: whether to include the range of saliency, if the block has an estimator.
    """
    facts = []
    if block.window_frames is not None:
        facts.append(f"{block.window_frames} frame{'s' if block.window_frames > 1 else ''} at a time")
    tokens = f"{entered:,} → {block.num_groups:,} tokens".replace(",", "\N{NARROW NO-BREAK SPACE}")
    facts.append(tokens)
    if block.saliency is not None and saliency:
        low, high = (decimal(value.item()) for value in block.saliency.aminmax())
        facts.append(f"saliency {low} to {high}")
    return facts
