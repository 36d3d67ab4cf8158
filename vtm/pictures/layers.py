"""Draw what a block did over the frames of a clip: saliency as heat, targets, merged groups; all frames at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import NamedTuple, TypeVar

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtm.pictures.colors import BORDERS, Bytes, GroupColors, Ints, group_colors
from vtm.pictures.view import BlockView, ClipView

_Value = TypeVar("_Value", bound=np.generic)

LAYERS = ("saliency", "targets", "groups")
HEAT_COLORS: Bytes = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
HEAT_SHARE = 0.7  # of the colour in the picture; the rest is the frame in grey
TARGET: Bytes = np.array([0, 0, 0], dtype=np.uint8)  # outlines a target
FADED = 0.3  # what remains of the frame where there is no target; the rest is white


class Scale(NamedTuple):
    """Bound the saliency of a clip."""

    low: float
    high: float

    @classmethod
    def of(cls, view: ClipView) -> Scale | None:
        """Take in all blocks, so that they can be compared; return None without an estimator."""
        found = [block.saliency.flatten() for block in view.blocks if block.saliency is not None]
        return cls(*(bound.item() for bound in torch.cat(found).aminmax())) if found else None

    def level(self, saliency: Tensor) -> Bytes:
        """Count in 255 steps from low to high; 0 where there is but one value."""
        share = (saliency - self.low) / max(self.high - self.low, 1e-12)
        return (share.clamp(0, 1) * 255).round().byte().numpy()


class Layer(NamedTuple):
    """Hold one kind of picture of some frames."""

    name: str
    pictures: Bytes  # (T, Y, X, 3)


class Painter:
    """Draw all layers of one block, in any of the frames, with the colours of the whole clip.

    Args:
        frames: (T, 3, Y, X) uint8, the whole clip.
        block: what it did to them.
        scale: of the heat; without it, saliency is not drawn.
    """

    def __init__(self, frames: Tensor, block: BlockView, scale: Scale | None = None) -> None:
        self.block = block
        self.colors = group_colors(frames, block)
        self.scale = scale

    def __call__(self, pictures: Bytes, places: Ints, names: Sequence[str] = LAYERS) -> list[Layer]:
        """Draw those layers that there are: without an estimator there is no saliency.

        Args:
            pictures: (n, Y, X, 3) from `enlarge`.
            places: (n,) of these frames in the clip.
            names: of the layers.
        """
        layers = []
        if "saliency" in names and self.block.saliency is not None and self.scale is not None:
            level = self.scale.level(self.block.saliency[places])
            layers.append(Layer("saliency", heat(pictures, level)))
        if "targets" in names:
            layers.append(Layer("targets", mark_targets(pictures, self.block.target[places].numpy())))
        if "groups" in names:
            layers.append(Layer("groups", fill_groups(pictures, self.block.group[places].numpy(), self.colors)))
        return layers


def enlarge(frames: Tensor, grid: tuple[int, int], side: int) -> Bytes:
    """Resize frames (T, 3, Y, X) to (T, H · c, W · d, 3), whole numbers of pixels for each of H × W tokens.

    Args:
        frames: uint8.
        grid: (H, W).
        side: pixels of each side at least.
    """
    height, width = (n * ceil(side / n) for n in grid)
    resized = F.interpolate(frames, (height, width), mode="bicubic", antialias=True)
    return resized.movedim(1, -1).contiguous().numpy()


def heat(pictures: Bytes, level: Bytes) -> Bytes:
    """Lay saliency over grey pictures.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        level: (T, H, W) from `Scale.level`.
    """
    gray = np.dot(pictures, np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return _mix(HEAT_COLORS[_cells(level, pictures)], gray[..., None], HEAT_SHARE)


def heat_shades() -> Bytes:
    """List the colours of `heat` (256, 3) over a picture of medium grey, for a scale beside it."""
    return _mix(HEAT_COLORS, 128.0, HEAT_SHARE)


def mark_targets(pictures: Bytes, target: NDArray[np.bool_]) -> Bytes:
    """Leave the targets as they are, outline each, and fade the rest.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        target: (T, H, W).
    """
    height, width = target.shape[1:]
    alone = np.where(target, np.arange(height * width).reshape(height, width), -1)
    number = _cells(alone, pictures)
    drawn = np.where((number >= 0)[..., None], pictures, _mix(pictures, 255.0, FADED))
    drawn[(number >= 0) & edges(number, _line(pictures, alone))] = TARGET
    return drawn


def fill_groups(pictures: Bytes, group: Ints, colors: GroupColors) -> Bytes:
    """Fill merged tokens with the average of their group, within a border; tokens that stayed alone stay as they are.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        group: (T, H, W).
        colours: of the groups.
    """
    number = _cells(group, pictures)
    merged = colors.size[number] > 1
    drawn = np.where(merged[..., None], colors.fill[number], pictures)
    border = merged & edges(number, _line(pictures, group))
    drawn[border] = BORDERS[colors.border[number[border]]]
    return drawn


def edges(number: Ints, width: int) -> NDArray[np.bool_]:
    """Find the pixels (T, Y, X) from which another number is at most `width` pixels away; so is what is outside.

    >>> edges(np.array([[[0, 0, 0, 1, 1, 1]] * 5]), 1)[0, 2].astype(int)
    array([1, 0, 1, 1, 0, 1])
    """
    height, breadth = number.shape[1:]
    padded = np.pad(number, ((0, 0), (width, width), (width, width)), constant_values=-2)
    found = np.zeros(number.shape, dtype=bool)
    for y, x in product((0, width, 2 * width), repeat=2):
        found |= padded[:, y : y + height, x : x + breadth] != number
    return found


def _line(pictures: Bytes, cells: NDArray[np.generic]) -> int:
    """Choose the width of a border: a tenth of a token."""
    pixels = int(pictures.shape[1]) // int(cells.shape[1])
    return max(1, round(pixels / 10))


def _cells(values: NDArray[_Value], pictures: Bytes) -> NDArray[_Value]:
    """Give every pixel of pictures (T, Y, X, 3) the value of its token: (T, H, W) -> (T, Y, X)."""
    height, width = (pixels // tokens for pixels, tokens in zip(pictures.shape[1:3], values.shape[1:], strict=True))
    return values.repeat(height, axis=1).repeat(width, axis=2)


def _mix(over: Bytes, under: NDArray[np.float32] | float, share: float) -> Bytes:
    mixed: NDArray[np.float32] = over * np.float32(share) + under * np.float32(1 - share)
    return mixed.round().astype(np.uint8)
