"""Draw a clip on one sheet for print: frames in columns, and below them what each block did."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image

from vtm.pictures.canvas import DPI, Canvas
from vtm.pictures.captions import described, labels, shortened
from vtm.pictures.colors import Bytes
from vtm.pictures.layers import Layer, Painter, enlarge
from vtm.pictures.legend import LETTER, Legend
from vtm.pictures.selection import Selection
from vtm.pictures.view import ClipView
from vtm.system.atomic import write_atomically

_SIDE = 250  # pixels of a frame
_GAP, _BLOCK_GAP = 10, 36
_LEFT, _TOP, _MARGIN = 232, 196, 36
_SMALL, _NORMAL, _LARGE = 32, 38, 44  # pixels of type
_FACTS = 3  # lines beside a block that `_LEFT` has room for
_GRAY = "0.35"
_UPWARDS: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}


def draw_sheet(view: ClipView, *, title: str, truth: str | None = None, selection: Selection | None = None) -> Bytes:
    """Draw the sheet as a picture (Y, X, 3) of 300 pixels per inch.

    Args:
        view: clip to draw.
        title: title of the clip.
        truth: true class or value, if it is known.
        selection: blocks, layers, frames and scale to draw; None for all.

    Raises:
        ValueError: if the clip lacks a block or a layer that is selected.
    """
    return _sheet(view, title, described(view.scores, truth=truth), selection or Selection()).picture()


def write_sheet(path: Path, view: ClipView, *, title: str, selection: Selection | None = None) -> None:
    """Draw the sheet and write it as a PNG file and, in the same folder, as a PDF file.

    Args:
        path: PNG file to write.
        view: clip to draw.
        title: title of the clip.
        selection: blocks, layers, frames and scale to draw; None for all.

    Raises:
        ValueError: if the clip lacks a block or a layer that is selected.
    """
    sheet = _sheet(view, title, described(view.scores), selection or Selection())
    content = io.BytesIO()
    # the highest level, "optimize", takes 14 times as long for 7 % fewer bytes
    Image.fromarray(sheet.picture()).save(content, "png", dpi=(DPI, DPI), compress_level=4)
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".pdf"), sheet.pdf())


def _sheet(view: ClipView, title: str, prediction: str, selection: Selection) -> Canvas:
    selected = selection.of(view)
    steps = selected.steps
    pictures = enlarge(view.frames[steps], view.grid, _SIDE)
    count, height, width, _ = pictures.shape
    parts: list[tuple[str, list[str], list[Layer]]] = [("", [], [Layer("frames", pictures)])]
    letters = int((len(selected.layers) * (height + _GAP) - _GAP) / _SMALL / LETTER)  # beside a block
    for part in selected.parts:
        layers = Painter(view.frames, part.block, part.scale)(pictures, steps, selected.layers)
        lines = [line for fact in part.facts for line in wrap(fact, letters)]
        parts.append((f"Block {part.number}", lines, layers))

    left = _LEFT + round(1.2 * _SMALL) * max(0, *(len(lines) - _FACTS for _, lines, _ in parts))
    room = max(count * (width + _GAP) - _GAP, 4 * _SIDE)  # of text
    legend = Legend(selected.layers, selected.scale, width=room, size=_SMALL, view=view)
    heights = [len(layers) * (height + _GAP) - _GAP for _, _, layers in parts]
    tall = _TOP + sum(heights) + len(parts) * _BLOCK_GAP + legend.height + _MARGIN
    canvas = Canvas(left + room + _MARGIN, tall)
    canvas.write(left, 24, shortened(title, int(room / _LARGE / LETTER)), _LARGE, va="top", weight="bold")
    canvas.write(left, 84, shortened(prediction, int(room / _NORMAL / LETTER)), _NORMAL, va="top", color=_GRAY)
    for column, label in enumerate(labels([view.times[step] for step in steps])):
        x = left + column * (width + _GAP) + width / 2
        canvas.write(x, _TOP - 12, label, _NORMAL, va="bottom", ha="center")
    y = _TOP
    for (name, lines, layers), high in zip(parts, heights, strict=True):
        canvas.write(36, y + high / 2, name, _NORMAL, weight="bold", **_UPWARDS)
        canvas.write((36 + left - 24) / 2, y + high / 2, "\n".join(lines), _SMALL, color=_GRAY, **_UPWARDS)
        for number, layer in enumerate(layers):
            top = y + number * (height + _GAP)
            canvas.write(left - 30, top + height / 2, layer.name, _NORMAL, **_UPWARDS)
            for column, picture in enumerate(layer.pictures):
                canvas.show(left + column * (width + _GAP), top, picture)
        y += high + _BLOCK_GAP
    legend.draw(canvas, left, y)
    return canvas
