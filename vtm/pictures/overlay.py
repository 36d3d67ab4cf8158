"""Draw a clip as a video that plays it beside what each block did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vtm.pictures.canvas import Canvas
from vtm.pictures.captions import described, seconds, shortened
from vtm.pictures.colors import Bytes
from vtm.pictures.layers import Painter, enlarge
from vtm.pictures.legend import LETTER, Legend
from vtm.pictures.selection import Selected, Selection
from vtm.pictures.view import ClipView
from vtm.video.writing import write_video

_FPS = 2  # steps per second, slow enough to follow
_SIDE = 280  # pixels of a small picture
_GAP, _MARGIN, _TOP, _LABEL = 8, 16, 172, 34
_SMALL, _NORMAL, _LARGE = 16, 19, 24  # pixels of type
_GRAY = "0.35"


def write_overlay(path: Path, view: ClipView, *, title: str, selection: Selection | None = None) -> None:
    """Write an H.264 video of two steps per second: each frame, and all layers of all blocks.

    Args:
        path: file to write; the suffix chooses the container.
        view: clip to draw.
        title: title of the clip.
        selection: blocks, layers and scale to draw; None for all. All frames are played.

    Raises:
        ValueError: if the clip lacks a block or a layer that is selected.
    """
    selected = (selection or Selection()).of(view)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, _frames(view, title, selected), fps=_FPS, options={"crf": "20", "preset": "veryfast"})


def _frames(view: ClipView, title: str, selected: Selected) -> Iterator[Bytes]:
    names, parts = selected.layers, selected.parts
    painters = [Painter(view.frames, part.block, part.scale) for part in parts]
    height, width = enlarge(view.frames[:1], view.grid, _SIDE).shape[1:3]
    tall = len(names) * (height + _GAP) - _GAP  # of the frame, beside all layers
    first = _MARGIN + tall + _LABEL + _GAP  # where the small pictures begin
    room = first + len(painters) * (width + _GAP) - _GAP - _MARGIN
    legend = Legend(names, selected.scale, width=room, size=_SMALL, view=view)
    bottom = _TOP + tall + _MARGIN  # of the pictures
    canvas = Canvas(_even(room + 2 * _MARGIN), _even(bottom + legend.height + _MARGIN))
    canvas.write(_MARGIN, 14, shortened(title, int(room / _LARGE / LETTER)), _LARGE, va="top", weight="bold")
    prediction = shortened(described(view.scores), int(room / _NORMAL / LETTER))
    canvas.write(_MARGIN, 48, prediction, _NORMAL, va="top", color=_GRAY)
    for number, part in enumerate(parts):
        x = first + number * (width + _GAP)
        above = _TOP - 10 - 1.25 * _SMALL * len(part.facts)
        canvas.write(x, above, f"Block {part.number}", _NORMAL, va="bottom", weight="bold")
        canvas.write(x, _TOP - 8, "\n".join(part.facts), _SMALL, va="bottom", color=_GRAY)
    for number, name in enumerate(names):
        middle = _TOP + number * (height + _GAP) + height / 2
        canvas.write(first - _LABEL / 2, middle, name, _NORMAL, rotation=90, ha="center", va="center")
    legend.draw(canvas, _MARGIN, bottom)
    background = canvas.picture()
    for step, time in enumerate(view.times):
        drawn = background.copy()
        clock = Canvas(tall, 28)
        clock.write(0, 22, seconds(time), _NORMAL, va="baseline")
        drawn[_TOP - 34 : _TOP - 6, _MARGIN : _MARGIN + tall] = clock.picture()
        frame = view.frames[step, None]
        drawn[_TOP : _TOP + tall, _MARGIN : _MARGIN + tall] = enlarge(frame, (1, 1), tall)[0]
        small = enlarge(frame, view.grid, _SIDE)
        for column, painter in enumerate(painters):
            for row, layer in enumerate(painter(small, np.array([step]), names)):
                y, x = _TOP + row * (height + _GAP), first + column * (width + _GAP)
                drawn[y : y + height, x : x + width] = layer.pictures[0]
        yield drawn


def _even(number: int) -> int:
    """Round up to an even number, which H.264 requires since 2 × 2 pixels share a color."""
    return number + number % 2
