"""Draw a clip on one sheet for print: frames in columns, and below them what each block did."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import image

from vtm.files import write_atomically
from vtm.pictures.canvas import Canvas
from vtm.pictures.captions import Scores, blocks, described, seconds, shortened
from vtm.pictures.colours import Bytes
from vtm.pictures.layers import Layer, Painter, enlarge
from vtm.pictures.view import ClipView

_DPI = 300
_SIDE = 250  # pixels of a frame
_GAP, _BLOCK_GAP = 10, 36
_LEFT, _RIGHT, _TOP, _BOTTOM = 170, 160, 186, 36
_LINE = 34  # of the key below
_SMALL, _NORMAL, _LARGE = 27, 33, 38  # pixels of type
_GREY = "0.35"
_UPWARDS: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
_LETTER = 0.58  # the width of most letters, in sizes of type
_KEY = (
    "Targets: tokens that others may be merged into.",
    "Groups: tokens of the same inner and border colour are merged; one that stays alone keeps its picture.",
)


def draw_sheet(view: ClipView, *, title: str, scores: Scores, columns: int = 8) -> Bytes:
    """Draw the sheet, as a picture (Y, X, 3) of 300 pixels per inch.

    Args:
        view: what there is to see.
        title: of the clip.
        scores: what the network says, the best first.
        columns: how many frames are shown at most; they are spread evenly over the clip.
    """
    count = min(columns, len(view.times))
    places = np.linspace(0, len(view.times) - 1, count).round().astype(np.int64)
    pictures = enlarge(view.frames[places], view.grid, _SIDE)
    parts: list[tuple[str, list[str], list[Layer]]] = [("", [], [Layer("frames", pictures)])]
    parts += [(name, facts, Painter(view.frames, block)(pictures, places)) for block, name, facts in blocks(view)]

    height, width = pictures.shape[1:3]
    breadth = count * (width + _GAP) - _GAP
    room = max(breadth, 3 * _SIDE)  # of text
    key = [line for text in _KEY for line in wrap(text, int(room / _SMALL / _LETTER))]
    heights = [len(layers) * (height + _GAP) - _GAP for _, _, layers in parts]
    tall = _TOP + sum(heights) + (len(parts) - 1) * _BLOCK_GAP + len(key) * _LINE + _BOTTOM
    scales = any(layer.scale is not None for _, _, layers in parts for layer in layers)
    canvas = Canvas(_LEFT + room + (_RIGHT if scales else _BOTTOM), tall)
    words = shortened(title, int(room / _LARGE / _LETTER)), shortened(described(scores), int(room / _NORMAL / _LETTER))
    canvas.write(_LEFT, 24, words[0], _LARGE, va="top", weight="bold")
    canvas.write(_LEFT, 78, words[1], _NORMAL, va="top", color=_GREY)
    for column, place in enumerate(places):
        x = _LEFT + column * (width + _GAP) + width / 2
        canvas.write(x, _TOP - 12, seconds(view.times[place]), _NORMAL, va="bottom", ha="center")
    y = _TOP
    for (name, facts, layers), high in zip(parts, heights, strict=True):
        canvas.write(26, y + high / 2, name, _NORMAL, weight="bold", **_UPWARDS)
        canvas.write(78, y + high / 2, "\n".join(facts), _SMALL, color=_GREY, **_UPWARDS)
        for number, layer in enumerate(layers):
            top = y + number * (height + _GAP)
            canvas.write(_LEFT - 28, top + height / 2, layer.name, _NORMAL, **_UPWARDS)
            for column, picture in enumerate(layer.pictures):
                canvas.show(_LEFT + column * (width + _GAP), top, picture)
            if layer.scale is not None:
                canvas.colour_bar(_LEFT + breadth + 20, top, (22, height), layer.scale, _SMALL)
        y += high + _BLOCK_GAP
    for number, line in enumerate(key):
        canvas.write(_LEFT, y - _BLOCK_GAP + 22 + number * _LINE, line, _SMALL, va="top", color=_GREY)
    return canvas.picture()


def write_sheet(path: Path, view: ClipView, *, title: str, scores: Scores) -> None:
    """Draw the sheet, and write it as a PNG file.

    Args:
        path: of the file.
        view: what there is to see.
        title: of the clip.
        scores: what the network says, the best first.
    """
    content = io.BytesIO()
    image.imsave(content, draw_sheet(view, title=title, scores=scores), format="png", dpi=_DPI)
    write_atomically(path, content.getvalue())
