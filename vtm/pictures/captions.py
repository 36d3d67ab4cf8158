"""Write in words what pictures show."""

from __future__ import annotations

from collections.abc import Iterator

from vtm.pictures.view import BlockView, ClipView, Scores


def described(scores: Scores, *, truth: str | None = None, count: int = 3) -> str:
    """Say what the network predicts, after the truth where it is known.

    >>> described([("cooking", 0.914), ("riding", 0.05), ("reading", 0.03), ("singing", 0.006)])
    'predicted: cooking 0.91, riding 0.05, reading 0.03'
    >>> described([("value", -1.25)], truth="0.50")
    'truth: 0.50, predicted: value −1.25'
    """
    predicted = ", ".join(f"{name} {decimal(score)}" for name, score in scores[:count])
    return ("" if truth is None else f"truth: {truth}, ") + f"predicted: {predicted}"


def decimal(value: float) -> str:
    """Write a number with two decimals and a true minus.

    >>> decimal(-0.756), decimal(-0.001)
    ('−0.76', '0.00')
    """
    return f"{value:z.2f}".replace("-", "\N{MINUS SIGN}")


def seconds(time: float) -> str:
    """Write a time.

    >>> seconds(3.0), seconds(3.25)
    ('3 s', '3.2 s')
    """
    return f"{time:.1f}".removesuffix(".0") + " s"


def shortened(text: str, count: int) -> str:
    """Leave out the end of a text that has more than `count` characters.

    >>> shortened("a long name.mp4", 8), shortened("name.mp4", 8)
    ('a long …', 'name.mp4')
    """
    return text if len(text) <= count else text[: count - 1] + "…"


def blocks(view: ClipView) -> Iterator[tuple[BlockView, str, list[str]]]:
    """Go through the blocks, with the name of each and what it sees, what it merges, and what saliency it estimates."""
    entered = view.blocks[0].group.numel()
    for number, block in enumerate(view.blocks, 1):
        frames = f"{block.window_frames} frame{'s' if block.window_frames > 1 else ''} at a time"
        tokens = f"{entered:,} → {block.num_groups:,} tokens".replace(",", "\N{NARROW NO-BREAK SPACE}")
        facts = [frames, tokens]
        if block.saliency is not None:
            low, high = (decimal(value.item()) for value in block.saliency.aminmax())
            facts.append(f"saliency {low} to {high}")
        yield block, f"Block {number}", facts
        entered = block.num_groups
