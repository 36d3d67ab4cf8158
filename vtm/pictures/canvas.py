"""Place pictures and text on a white page, by pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtm.pictures.colors import Bytes

DPI = 300  # pixels per inch of paper

# The family that comes with matplotlib, and others for what it lacks, such as Chinese, Japanese and Korean.
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS",
)  # fmt: skip


class Canvas:
    """A white page; positions are pixels from the upper left corner.

    Args:
        width: width in pixels.
        height: height in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixels: Bytes = np.full((height, width, 3), 255, dtype=np.uint8)
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Write text, `size` pixels high."""
        height, width = self.pixels.shape[:2]
        # a dollar sign in a name does not start a formula
        self.figure.text(
            x / width,
            1 - y / height,
            text.encode(errors="replace").decode(),
            size=size * 72 / DPI,
            family=_families(),
            parse_math=False,
            **style,
        )

    def show(self, x: int, y: int, picture: Bytes) -> None:
        """Place a picture (Y, X, 3)."""
        self.pixels[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def picture(self) -> Bytes:
        """Render the page as a picture (Y, X, 3)."""
        canvas = FigureCanvasAgg(self.figure)
        with _boxes_for_missing_letters():
            canvas.draw()
        text: Bytes = np.asarray(canvas.buffer_rgba())[..., :3]
        together: Bytes = np.minimum(self.pixels, text)  # all text is on white
        return together

    def pdf(self) -> bytes:
        """Render the page as a PDF file, with pictures pixel by pixel and text as text."""
        axes = self.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(self.pixels, aspect="auto", interpolation="none")
        content = io.BytesIO()
        with _boxes_for_missing_letters(), matplotlib.rc_context({"pdf.fonttype": 42}):
            self.figure.savefig(content, format="pdf", metadata={"CreationDate": None})
        axes.remove()
        return content.getvalue()


@contextmanager
def _boxes_for_missing_letters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


@cache
def _families() -> list[str]:
    """List the families that are installed, since matplotlib warns about others."""
    installed = set(font_manager.fontManager.get_font_names())
    return [family for family in _FAMILIES if family in installed]
