"""Write a clip as one HTML page that holds all it needs, to look at groups frame by frame."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image
from numpy.typing import NDArray
from torch import Tensor

from vtm.pictures.captions import blocks, seconds
from vtm.pictures.colors import BORDERS, Bytes, group_colors
from vtm.pictures.layers import FADED, HEAT_COLORS, HEAT_SHARE, Scale
from vtm.pictures.view import BlockView, ClipView
from vtm.system.atomic import write_atomically

_QUALITY = 88  # of the frames as JPEG
_CLASSES = 5


def write_page(path: Path, view: ClipView, *, title: str) -> None:
    """Write the page.

    Args:
        path: of the file.
        view: what there is to see.
        title: of the clip.
    """
    height, width = view.grid
    data = {
        "title": title,
        "scores": view.scores[:_CLASSES],
        "times": [seconds(time) for time in view.times],
        "height": height,
        "width": width,
        "frames": [_jpeg(frame) for frame in view.frames.movedim(1, -1).numpy()],
        "scale": Scale.of(view),
        "blocks": [_block(view.frames, *block) for block in blocks(view)],
        "heat": HEAT_COLORS.tolist(),
        "heatShare": HEAT_SHARE,
        "borders": BORDERS.tolist(),
        "faded": FADED,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")  # no tag ends here
    template = files("vtm.pictures").joinpath("page.html").read_text(encoding="utf-8")
    write_atomically(path, template.replace("__DATA__", text))


def _block(frames: Tensor, block: BlockView, name: str, facts: list[str]) -> dict[str, Any]:
    """Collect what the page draws of a block."""
    colors = group_colors(frames, block)
    return {
        "name": name,
        "facts": ", ".join(facts),
        "group": _base64(block.group.numpy().astype("<u4")),
        "target": _base64(block.target.numpy().astype(np.uint8)),
        "fill": _base64(colors.fill),
        "border": _base64(colors.border.astype(np.uint8)),
        "saliency": None if block.saliency is None else _base64(block.saliency.numpy().astype("<f4")),
    }


def _jpeg(frame: Bytes) -> str:
    content = io.BytesIO()
    image.imsave(content, frame, format="jpg", pil_kwargs={"quality": _QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
