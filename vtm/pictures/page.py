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

from vtm.files import write_atomically
from vtm.pictures.captions import Scores, blocks, seconds
from vtm.pictures.colours import BORDERS, Bytes
from vtm.pictures.layers import FADED, HEAT_COLOURS, HEAT_SHARE, Painter
from vtm.pictures.view import ClipView

_QUALITY = 88  # of the frames as JPEG
_CLASSES = 5


def write_page(path: Path, view: ClipView, *, title: str, scores: Scores) -> None:
    """Write the page.

    Args:
        path: of the file.
        view: what there is to see.
        title: of the clip.
        scores: what the network says, the best first.
    """
    height, width = view.grid
    data = {
        "title": title,
        "scores": scores[:_CLASSES],
        "times": [seconds(time) for time in view.times],
        "height": height,
        "width": width,
        "frames": [_jpeg(frame) for frame in view.frames.movedim(1, -1).numpy()],
        "blocks": [_block(view, number) for number in range(len(view.blocks))],
        "heat": HEAT_COLOURS.tolist(),
        "heatShare": HEAT_SHARE,
        "borders": BORDERS.tolist(),
        "faded": FADED,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")  # no tag ends here
    template = files("vtm.pictures").joinpath("page.html").read_text(encoding="utf-8")
    write_atomically(path, template.replace("__DATA__", text))


def _block(view: ClipView, number: int) -> dict[str, Any]:
    """Collect what the page draws of a block."""
    block, name, facts = list(blocks(view))[number]
    painter = Painter(view.frames, block)
    found = {
        "name": name,
        "facts": ", ".join(facts),
        "group": _base64(block.group.numpy().astype("<u4")),
        "target": _base64(block.target.numpy().astype(np.uint8)),
        "fill": _base64(painter.colours.fill),
        "border": _base64(painter.colours.border.astype(np.uint8)),
        "saliency": None,
    }
    if block.saliency is None or painter.scale is None:
        return found
    level = _base64(painter.scale.level(block.saliency))
    return found | {"saliency": level, "low": painter.scale.low, "high": painter.scale.high}


def _jpeg(frame: Bytes) -> str:
    content = io.BytesIO()
    image.imsave(content, frame, format="jpg", pil_kwargs={"quality": _QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
