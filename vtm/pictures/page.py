"""Write a clip as one self-contained HTML page, for exploring groups frame by frame."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vtm.pictures.captions import seconds
from vtm.pictures.colors import PALETTE, Bytes, group_colors
from vtm.pictures.layers import DROPPED, FADED, FILL_SHARE, HEAT_COLORS, HEAT_SHARE
from vtm.pictures.selection import Part, Selection
from vtm.pictures.view import ClipView
from vtm.system.atomic import write_atomically

_QUALITY = 88  # of the frames as JPEG
_CLASSES = 5


def write_page(path: Path, view: ClipView, *, title: str, selection: Selection | None = None) -> None:
    """Write the page.

    Args:
        path: file to write.
        view: clip to draw.
        title: title of the clip.
        selection: blocks, layers and scale to draw; None for all. All frames are shown.

    Raises:
        ValueError: if the clip lacks a block or a layer that is selected.
    """
    height, width = view.grid
    selected = (selection or Selection()).of(view)
    data = {
        "title": title,
        "scores": view.scores[:_CLASSES],
        "times": [seconds(time) for time in view.times],
        "height": height,
        "width": width,
        "frames": [_jpeg(frame) for frame in view.frames.movedim(1, -1).numpy()],
        "layers": [name.capitalize() for name in selected.layers],
        "oneScale": selected.scale is not None,
        "blocks": [_block(view.frames, part) for part in selected.parts],
        "opening": selected.opening,
        "patched": view.is_patched,
        "hasDropped": view.has_dropped,
        "spansFrames": view.spans_frames,
        "stepFrames": view.step_frames,
        "heat": HEAT_COLORS.tolist(),
        "heatShare": HEAT_SHARE,
        "palette": PALETTE.tolist(),
        "fillShare": FILL_SHARE,
        "faded": FADED,
        "dropped": DROPPED.tolist(),
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # no tag ends here
    template = files("vtm.pictures").joinpath("page.html").read_text(encoding="utf-8")
    write_atomically(path, template.replace("__DATA__", text))


def _block(frames: Tensor, part: Part) -> dict[str, Any]:
    """Collect what the page needs to draw a block."""
    block, colors = part.block, group_colors(frames, part.block)
    return {
        "number": part.number,
        "facts": ", ".join(part.facts),
        "left": block.num_groups,
        "group": _base64(block.group.numpy().astype("<u4")),
        "target": _base64(block.target.numpy().astype(np.uint8)),
        "fill": _base64(colors.fill.astype(np.uint8)),
        "border": _base64(colors.border.astype(np.uint8)),
        "saliency": None if block.saliency is None else _base64(block.saliency.numpy().astype("<f4")),
        "scale": part.scale,
    }


def _jpeg(frame: Bytes) -> str:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "jpeg", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
