"""Draw a legend below pictures: what their colors and numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from numpy.typing import ArrayLike

from vtm.pictures.canvas import Canvas
from vtm.pictures.captions import decimal
from vtm.pictures.colors import PALETTE, Bytes
from vtm.pictures.layers import TARGET, Scale, fill_shades, heat_shades
from vtm.pictures.view import ClipView

LETTER = 0.58  # the width of most letters, in sizes of type, for texts that are not known
_LETTER = 0.53  # in the texts of this file
_LINE = 1.3  # in sizes of type
_SYMBOL = 3  # the width of a symbol, in its heights


class Legend:
    """An explanation of the layers, each in one or more lines beside a symbol.

    Args:
        layers: names of the layers.
        scale: scale of saliency that all blocks share; None if each has its own, or without saliency.
        width: width in pixels.
        size: size of the font in pixels.
        view: clip that is drawn; None for one of vtm's own networks, whose texts depend on nothing else.
    """

    def __init__(
        self, layers: Sequence[str], scale: Scale | None, *, width: int, size: int, view: ClipView | None = None
    ) -> None:
        self.size = size
        letters = int((width - self._indent) / size / _LETTER)
        self.entries = [(symbol, wrap(text, letters)) for symbol, text in _entries(layers, scale, size, view)]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return round(sum(len(lines) for _, lines in self.entries) * self.size * _LINE)

    @property
    def _indent(self) -> int:
        return round((_SYMBOL + 0.7) * self.size)

    def draw(self, canvas: Canvas, x: int, y: int) -> None:
        """Draw the legend with its upper left corner at (x, y)."""
        number = 0
        for symbol, lines in self.entries:
            if symbol is not None:
                canvas.show(x, y + round((number + 0.15) * self.size * _LINE), symbol)
            for line in lines:
                middle = y + (number + 0.5) * self.size * _LINE
                canvas.write(x + self._indent, middle, line, self.size, va="center_baseline", color="0.25")
                number += 1


def _entries(
    layers: Sequence[str], scale: Scale | None, size: int, view: ClipView | None
) -> list[tuple[Bytes | None, str]]:
    bounds = ("the lowest", "the highest") if scale is None else (decimal(scale.low), decimal(scale.high))
    scope = "value of each block: one scale per block" if scale is None else "on one scale for all blocks"
    patched, dropped = view is not None and view.is_patched, view is not None and view.has_dropped
    across = "" if view is not None and not view.spans_frames else ", also across frames"
    shades = heat_shades()[np.linspace(0, 255, _SYMBOL * size).round().astype(np.int64)]
    gray, faded = (90, 110, 130), (215, 220, 226)
    targets = [_box(size, faded, faded), _box(size, gray, TARGET), _box(size, faded, faded)]
    groups = [_box(size, fill_shades()[color], PALETTE[color]) for color in (0, 4, 0)]
    known = {
        "saliency": (
            shades[None].repeat(size, axis=0),
            f"Saliency, from {bounds[0]} (dark) to {bounds[1]} (bright) {scope}.",
        ),
        "targets": (
            np.concatenate(targets, 1),
            "Targets: the tokens into which others may be merged in this block."
            if not patched
            else "Targets: the tokens at whose positions the tokens after this block are, one per group.",
        ),
        "groups": (
            np.concatenate(groups, 1),
            f"Groups: tokens of the same inner and border color are merged{across}; a lone token keeps its picture."
            + (" Blank tokens were dropped." if dropped else ""),
        ),
    }
    return [*(known[name] for name in layers), *((None, text) for text in _notes(layers, view, patched))]


def _notes(layers: Sequence[str], view: ClipView | None, patched: bool) -> list[str]:
    """List what the times and the facts beside the blocks mean."""
    if patched:
        facts = "Beside each block: tokens before → after it, without tokens such as CLS"
    else:
        facts = "Beside each block: frames that it sees at a time, tokens before → after it"
    notes = [facts + (", range of saliency." if "saliency" in layers else ".")]
    if view is not None and view.step_frames > 1:
        notes.append(
            f"A token covers {view.step_frames} frames: the picture is the first of them, and the time is their mean."
        )
    return notes


def _box(size: int, inner: ArrayLike, border: ArrayLike) -> Bytes:
    line = max(2, round(size / 10))
    box = np.empty((size, size, 3), dtype=np.uint8)
    box[:] = border
    box[line:-line, line:-line] = inner
    return box
