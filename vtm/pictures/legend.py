"""Say below pictures what their colours and numbers mean."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
from numpy.typing import ArrayLike

from vtm.pictures.canvas import Canvas
from vtm.pictures.captions import decimal
from vtm.pictures.colors import BORDERS, Bytes
from vtm.pictures.layers import TARGET, Scale, heat_shades

LETTER = 0.58  # the width of most letters, in sizes of type, where one does not know the words
_LETTER = 0.53  # in these words
_LINE = 1.3  # in sizes of type
_SYMBOL = 3  # the width of a symbol, in its heights


class Legend:
    """Explain the layers, each in a line or more beside a symbol.

    Args:
        scale: of the saliency; None where it is not drawn.
        width: of all, in pixels.
        size: of the type, in pixels.
    """

    def __init__(self, scale: Scale | None, *, width: int, size: int) -> None:
        self.size = size
        letters = int((width - self._indent) / size / _LETTER)
        self.entries = [(symbol, wrap(text, letters)) for symbol, text in _entries(scale, size)]

    @property
    def height(self) -> int:
        """Count the pixels that it takes."""
        return round(sum(len(lines) for _, lines in self.entries) * self.size * _LINE)

    @property
    def _indent(self) -> int:
        return round((_SYMBOL + 0.7) * self.size)

    def draw(self, canvas: Canvas, x: int, y: int) -> None:
        """Draw it with its upper left corner at (x, y)."""
        number = 0
        for symbol, lines in self.entries:
            if symbol is not None:
                canvas.show(x, y + round((number + 0.15) * self.size * _LINE), symbol)
            for line in lines:
                middle = y + (number + 0.5) * self.size * _LINE
                canvas.write(x + self._indent, middle, line, self.size, va="center_baseline", color="0.25")
                number += 1


def _entries(scale: Scale | None, size: int) -> list[tuple[Bytes | None, str]]:
    gray, faded, other = (90, 110, 130), (215, 220, 226), (196, 176, 150)
    targets = [_box(size, faded, faded), _box(size, gray, TARGET), _box(size, faded, faded)]
    groups = [_box(size, gray, BORDERS[1]), _box(size, other, BORDERS[0]), _box(size, gray, BORDERS[1])]
    entries = [
        (np.concatenate(targets, 1), "Targets: the tokens into which others may be merged in this block."),
        (
            np.concatenate(groups, 1),
            "Groups: tokens of the same inner and border colour are merged, also across frames; a lone token keeps its "
            "picture.",
        ),
    ]
    numbers = "Beside each block: frames that it sees at a time, tokens of the clip before → after it"
    if scale is None:
        return [*entries, (None, f"{numbers}.")]
    shades = heat_shades()[np.linspace(0, 255, _SYMBOL * size).round().astype(np.int64)]
    bounds = f"{decimal(scale.low)} (dark) to {decimal(scale.high)} (bright)"
    saliency = shades[None].repeat(size, axis=0), f"Saliency, from {bounds}: one scale for all blocks."
    return [saliency, *entries, (None, f"{numbers}, its saliency.")]


def _box(size: int, inner: ArrayLike, border: ArrayLike) -> Bytes:
    line = max(2, round(size / 10))
    box = np.empty((size, size, 3), dtype=np.uint8)
    box[:] = border
    box[line:-line, line:-line] = inner
    return box
