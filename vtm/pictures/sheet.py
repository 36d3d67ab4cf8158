"""Draw a clip on one sheet for print: frames in columns, and below them what each block did."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image

from vtm.pictures.canvas import DPI, Canvas
from vtm.pictures.captions import blocks, described, seconds, shortened
from vtm.pictures.colors import Bytes
from vtm.pictures.layers import Layer, Painter, Scale, enlarge
from vtm.pictures.legend import LETTER, Legend
from vtm.pictures.view import ClipView
from vtm.system.atomic import write_atomically

_SIDE = 250  # pixels of a frame
_GAP, _BLOCK_GAP = 10, 36
_LEFT, _TOP, _MARGIN = 232, 196, 36
_SMALL, _NORMAL, _LARGE = 32, 38, 44  # pixels of type
_GRAY = "0.35"
_UPWARDS: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}


def draw_sheet(view: ClipView, *, title: str, truth: str | None = None, columns: int = 8) -> Bytes:
    """Draw the sheet, as a picture (Y, X, 3) of 300 pixels per inch.

    Args:
        view: what there is to see.
        title: of the clip.
        truth: what it should say, where that is known.
        columns: how many frames are shown at most; they are spread evenly over the clip.
    """
    return _sheet(view, title, described(view.scores, truth=truth), columns).picture()


def write_sheet(path: Path, view: ClipView, *, title: str) -> None:
    """Draw the sheet, and write it as a PNG file, and beside it as PDF for a paper.

    Args:
        path: of the PNG file.
        view: what there is to see.
        title: of the clip.
    """
    sheet = _sheet(view, title, described(view.scores), columns=8)
    content = io.BytesIO()
    image.imsave(content, sheet.picture(), format="png", dpi=DPI)
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".pdf"), sheet.pdf())


def _sheet(view: ClipView, title: str, prediction: str, columns: int) -> Canvas:
    count = min(columns, len(view.times))
    places = np.linspace(0, len(view.times) - 1, count).round().astype(np.int64)
    pictures = enlarge(view.frames[places], view.grid, _SIDE)
    scale = Scale.of(view)
    parts: list[tuple[str, list[str], list[Layer]]] = [("", [], [Layer("frames", pictures)])]
    parts += [
        (name, facts, Painter(view.frames, block, scale)(pictures, places)) for block, name, facts in blocks(view)
    ]

    height, width = pictures.shape[1:3]
    room = max(count * (width + _GAP) - _GAP, 4 * _SIDE)  # of text
    legend = Legend(scale, width=room, size=_SMALL)
    heights = [len(layers) * (height + _GAP) - _GAP for _, _, layers in parts]
    tall = _TOP + sum(heights) + len(parts) * _BLOCK_GAP + legend.height + _MARGIN
    canvas = Canvas(_LEFT + room + _MARGIN, tall)
    canvas.write(_LEFT, 24, shortened(title, int(room / _LARGE / LETTER)), _LARGE, va="top", weight="bold")
    canvas.write(_LEFT, 84, shortened(prediction, int(room / _NORMAL / LETTER)), _NORMAL, va="top", color=_GRAY)
    for column, place in enumerate(places):
        x = _LEFT + column * (width + _GAP) + width / 2
        canvas.write(x, _TOP - 12, seconds(view.times[place]), _NORMAL, va="bottom", ha="center")
    y = _TOP
    for (name, facts, layers), high in zip(parts, heights, strict=True):
        canvas.write(36, y + high / 2, name, _NORMAL, weight="bold", **_UPWARDS)
        canvas.write(122, y + high / 2, "\n".join(facts), _SMALL, color=_GRAY, **_UPWARDS)
        for number, layer in enumerate(layers):
            top = y + number * (height + _GAP)
            canvas.write(_LEFT - 30, top + height / 2, layer.name, _NORMAL, **_UPWARDS)
            for column, picture in enumerate(layer.pictures):
                canvas.show(_LEFT + column * (width + _GAP), top, picture)
        y += high + _BLOCK_GAP
    legend.draw(canvas, _LEFT, y)
    return canvas
