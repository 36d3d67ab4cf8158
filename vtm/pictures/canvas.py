"""Put pictures and words on white paper, by pixels."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtm.pictures.colours import Bytes
from vtm.pictures.layers import Scale, heat_shades

# after the one that comes with matplotlib, those that have what it lacks, such as Chinese, Japanese and Korean
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS",
)  # fmt: skip


class Canvas:
    """Collect what a picture consists of; all places count in pixels from the upper left corner.

    Args:
        width: of the picture.
        height: of the picture.
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixels: Bytes = np.full((height, width, 3), 255, dtype=np.uint8)
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def write(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Write text, `size` pixels high."""
        height, width = self.pixels.shape[:2]
        # a dollar sign in a name is no formula
        self.figure.text(
            x / width, 1 - y / height, text, size=size * 0.72, family=_families(), parse_math=False, **style
        )

    def show(self, x: int, y: int, picture: Bytes) -> None:
        """Place a picture (Y, X, 3)."""
        self.pixels[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def colour_bar(self, x: int, y: int, size: tuple[int, int], scale: Scale, text: float) -> None:
        """Draw an upright scale of heat with its bounds.

        Args:
            x: of its left side.
            y: of its upper side.
            size: its width and height.
            scale: the bounds.
            text: size of the type.
        """
        width, height = size
        shades = heat_shades()[np.linspace(255, 0, height).round().astype(np.int64)]
        self.show(x, y, shades[:, None].repeat(width, axis=1))
        for value, place, va in ((scale.high, y, "top"), (scale.low, y + height, "bottom")):
            self.write(x + width + 8, place, f"{value:.2f}".replace("-", "−"), text, va=va)

    def picture(self) -> Bytes:
        """Return all (Y, X, 3). What is dark wins, for all text is on white."""
        canvas = FigureCanvasAgg(self.figure)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            canvas.draw()
        text: Bytes = np.asarray(canvas.buffer_rgba())[..., :3]
        together: Bytes = np.minimum(self.pixels, text)
        return together


@cache
def _families() -> list[str]:
    """List the families that are installed here; matplotlib warns of others."""
    installed = set(font_manager.fontManager.get_font_names())
    return [family for family in _FAMILIES if family in installed]
