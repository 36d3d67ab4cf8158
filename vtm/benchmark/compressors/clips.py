"""Drawn clips with questions about what they show, when, in which order and how often.

A frame has 12 × 12 cells of 4 × 4 pixels, each of which becomes one token of the model. The cells of the background are
nearly gray. Three scenes follow one another, and they become brighter from the first frame to the last, so that every
token tells the time. Objects are patterns of 2 × 2 pixels that are repeated in their cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CELLS, PATCH = 12, 2  # cells per row and column; side of a pattern in pixels, which is repeated twice in a cell
CODES, HALF, PAIR, COUNTED = "ABCD", "E", "FGHI", "J"  # names of the patterns
KINDS: dict[str, tuple[str, ...]] = {
    "which code": tuple(CODES),
    "which half": ("first", "second"),
    "which first": tuple(PAIR),
    "how many": ("0", "1", "2", "3"),
}
_BLOCK = 3  # side of the place of an object in cells
_TEXTURE, _NOISE = 0.15, 0.06


class Drawn(NamedTuple):
    """Clips and the answers to their questions.

    Attributes:
        pixels: (N, T, 3, S, S), from -1 to 1 besides some noise; 0 is medium gray.
        answers: (N, kinds), index of the right option of each kind of question, in the order of `KINDS`.
    """

    pixels: Tensor
    answers: Tensor


def draw_clips(count: int, *, frames: int, generator: torch.Generator) -> Drawn:
    """Draw clips.

    One cell shows a code for a quarter of the clip. A square of 2 × 2 cells shows up in one half, for an eighth of the
    clip; two other squares, of different patterns, for as long, one after the other with a pause between them. Up to
    three squares of a last pattern show up in one frame each. No object covers another one.

    Args:
        count: N, number of clips.
        frames: T, an even number.
        generator: generator on the CPU, which determines the clips.
    """
    canvas = _Canvas(count, frames, generator)
    code, half, first, number = (canvas.draw(len(options)) for options in KINDS.values())

    long = max(2, frames // 4)
    canvas.paint(pattern(CODES)[code], canvas.draw(frames - long + 1), frames=long, side=1)

    brief = max(1, frames // 8)
    canvas.paint(pattern(HALF), half * (frames // 2) + canvas.draw(frames // 2 - brief + 1), frames=brief)

    pause = frames // 8
    starts = canvas.draw_order(frames - 2 * brief - pause + 2)[:, :2].sort(dim=1).values
    second = (first + 1 + canvas.draw(len(PAIR) - 1)) % len(PAIR)
    canvas.paint(pattern(PAIR)[first], starts[:, 0], frames=brief)
    canvas.paint(pattern(PAIR)[second], starts[:, 1] + brief + pause - 1, frames=brief)

    for i in range(len(KINDS["how many"]) - 1):
        start = torch.where(i < number, canvas.draw(frames), frames)  # out of the clip, if there are fewer
        canvas.paint(pattern(COUNTED), start, frames=1)
    return Drawn(canvas.pixels(), torch.stack([code, half, first, number], dim=1))


def pattern(names: str) -> Tensor:
    """Return patterns (n, 2 · 2 · 3) of -1 and 1: orthogonal to each other and to gray, rows of a Hadamard matrix.

    >>> pattern("AB")[:, :6].tolist()
    [[-1.0, 1.0, -1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, -1.0, 1.0, 1.0]]
    """
    shift = torch.tensor([ord(name) - ord("A") for name in names])
    offset = (torch.arange(11) - shift[:, None]) % 11
    squares = torch.isin(offset, torch.tensor([1, 3, 4, 5, 9]))  # modulo 11 (Paley's construction)
    return torch.cat([squares, torch.ones(len(names), 1, dtype=torch.bool)], dim=1) * 2.0 - 1


class _Canvas:
    """The cells of clips that are being drawn, with places for objects."""

    def __init__(self, count: int, frames: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        cuts = self.draw_order(max(2, frames - 1))[:, :2] + 1
        time = torch.arange(frames)
        scene = (time >= cuts[..., None]).sum(1)  # (N, T)
        colors = 2 * torch.rand(count, 3, CELLS, CELLS, 3, generator=generator) - 1
        light = -0.7 + 1.4 * time / (frames - 1)
        cells = light[:, None, None, None] + _TEXTURE * colors[torch.arange(count)[:, None], scene]
        self._cells = cells.repeat(1, 1, 1, 1, PATCH**2)  # (N, T, h, w, 2 · 2 · 3)
        self._places = list(self.draw_order((CELLS // _BLOCK) ** 2).unbind(1))

    def draw(self, below: int) -> Tensor:
        """Draw a whole number (N,) below a bound for each clip."""
        return torch.randint(below, (self._count,), generator=self._generator)

    def draw_order(self, size: int) -> Tensor:
        """Draw an order (N, size) of the first whole numbers for each clip."""
        return torch.rand(self._count, size, generator=self._generator).argsort(dim=1)

    def paint(self, patterns: Tensor, start: Tensor, *, frames: int, side: int = 2) -> None:
        """Paint patterns (N or 1, c) at a place of their own.

        Args:
            patterns: patterns that fill the square.
            start: (N,), first frame.
            frames: number of frames.
            side: side of the square in cells.
        """
        place, per_row = self._places.pop(), CELLS // _BLOCK
        y = place // per_row * _BLOCK + self.draw(_BLOCK - side + 1)
        x = place % per_row * _BLOCK + self.draw(_BLOCK - side + 1)
        in_time, in_y, in_x = (
            (torch.arange(size) >= first[:, None]) & (torch.arange(size) < first[:, None] + length)
            for size, first, length in zip(self._cells.shape[1:4], (start, y, x), (frames, side, side), strict=True)
        )
        where = in_time[:, :, None, None] & in_y[:, None, :, None] & in_x[:, None, None, :]
        self._cells = torch.where(where[..., None], patterns[:, None, None, None], self._cells)

    def pixels(self) -> Tensor:
        """Return the clips (N, T, 3, S, S), with noise."""
        cells = self._cells.unflatten(4, (PATCH, PATCH, 3)).repeat(1, 1, 1, 1, 2, 2, 1)  # (N, T, h, w, 4, 4, 3)
        images: Tensor = cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return images + _NOISE * torch.randn(images.shape, generator=self._generator)
