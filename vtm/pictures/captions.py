"""Write in words what pictures show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vtm.pictures.view import BlockView, ClipView

Scores = Sequence[tuple[str, float]]


def described(scores: Scores, *, count: int = 3) -> str:
    """Say what the network predicts.

    >>> described([("cooking", 0.914), ("riding", 0.05), ("reading", 0.03), ("singing", 0.006)])
    'cooking 0.91, riding 0.05, reading 0.03'
    """
    return ", ".join(f"{name} {score:.2f}" for name, score in scores[:count])


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
    """Go through the blocks, with the name of each and what it sees and what it merges."""
    entered = view.blocks[0].group.numel()
    for number, block in enumerate(view.blocks, 1):
        frames = f"{block.window_frames} frame{'s' if block.window_frames > 1 else ''} at a time"
        tokens = f"{entered:,} → {block.num_groups:,} tokens".replace(",", "\N{NARROW NO-BREAK SPACE}")
        yield block, f"Block {number}", [frames, tokens]
        entered = block.num_groups
