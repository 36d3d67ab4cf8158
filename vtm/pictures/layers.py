"""Draw what a block did, over the frames of a clip: saliency as heat, targets, and merged groups."""

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

from vtm.pictures.colors import PALETTE, Bytes, GroupColors, Ints, group_colors
from vtm.pictures.view import BlockView

_Value = TypeVar("_Value", bound=np.generic)

LAYERS = ("saliency", "targets", "groups")
HEAT_COLORS: Bytes = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
HEAT_SHARE = 0.7  # of the color in the picture; the rest is the frame in gray
FILL_SHARE = 0.6  # likewise, of the color of a group
TARGET: Bytes = np.array([0, 0, 0], dtype=np.uint8)  # outlines a target
DROPPED: Bytes = np.array([226, 226, 226], dtype=np.uint8)  # a token that was dropped
FADED = 0.3  # share of the frame that is kept where there is no target; the rest is white


class Scale(NamedTuple):
    """The range of saliency from dark to bright."""

    low: float
    high: float

    @classmethod
    def of(cls, blocks: Sequence[BlockView]) -> Scale | None:
        """Return the range of these blocks, or None without an estimator."""
        found = [block.saliency.flatten() for block in blocks if block.saliency is not None]
        return cls(*(bound.item() for bound in torch.cat(found).aminmax())) if found else None

    def level(self, saliency: Tensor) -> Bytes:
        """Convert saliency to levels from 0 (low) to 255 (high); 0 if there is only one value."""
        share = (saliency - self.low) / max(self.high - self.low, 1e-12)
        return (share.clamp(0, 1) * 255).round().byte().numpy()


class Layer(NamedTuple):
    """The pictures of one layer, one for each drawn frame."""

    name: str
    pictures: Bytes  # (T, Y, X, 3)


class Painter:
    """A painter of the layers of one block, in any of the frames, with the same colors in the whole clip.

    Args:
        frames: frames of the whole clip, (T, 3, Y, X) uint8.
        block: view of the block.
        scale: scale of saliency; without it, saliency is not drawn.
    """

    def __init__(self, frames: Tensor, block: BlockView, scale: Scale | None = None) -> None:
        self.block = block
        self.colors = group_colors(frames, block)
        self.scale = scale

    def __call__(self, pictures: Bytes, steps: Ints, names: Sequence[str] = LAYERS) -> list[Layer]:
        """Draw layers, in the order of their names. Without an estimator there is no saliency to draw.

        Args:
            pictures: (n, Y, X, 3) from `enlarge`.
            steps: steps of these frames in the clip, (n,).
            names: names of the layers, some of `LAYERS`.
        """
        layers = []
        for name in names:
            if name == "targets":
                layers.append(Layer(name, mark_targets(pictures, self.block.target[steps].numpy())))
            elif name == "groups":
                group, dropped = self.block.group[steps].numpy(), self.block.dropped[steps].numpy()
                layers.append(Layer(name, fill_groups(pictures, group, self.colors, dropped=dropped)))
            elif self.block.saliency is not None and self.scale is not None:
                layers.append(Layer(name, heat(pictures, self.scale.level(self.block.saliency[steps]))))
        return layers


def enlarge(frames: Tensor, grid: tuple[int, int], side: int) -> Bytes:
    """Resize frames (T, 3, Y, X) to (T, H · c, W · d, 3), a whole number of pixels for each of H × W tokens.

    Args:
        frames: frames, uint8.
        grid: (H, W).
        side: minimum of both sides in pixels.
    """
    height, width = (n * ceil(side / n) for n in grid)
    resized = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    return resized.movedim(1, -1).contiguous().numpy()


def heat(pictures: Bytes, level: Bytes) -> Bytes:
    """Draw saliency over gray pictures.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        level: levels (T, H, W) from `Scale.level`.
    """
    return _mix(HEAT_COLORS[_cells(level, pictures)], _gray(pictures), HEAT_SHARE)


def heat_shades() -> Bytes:
    """Return the colors of `heat` (256, 3) over medium gray, for a color bar."""
    return _mix(HEAT_COLORS, 128.0, HEAT_SHARE)


def mark_targets(pictures: Bytes, target: NDArray[np.bool_]) -> Bytes:
    """Outline each target and fade the rest.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        target: which tokens are targets, (T, H, W).
    """
    height, width = target.shape[1:]
    alone = np.where(target, np.arange(height * width).reshape(height, width), -1)
    number = _cells(alone, pictures)
    drawn = np.where((number >= 0)[..., None], pictures, _mix(pictures, 255.0, FADED))
    drawn[(number >= 0) & edges(number, _line(pictures, alone))] = TARGET
    return drawn


def fill_groups(
    pictures: Bytes, group: Ints, colors: GroupColors, *, dropped: NDArray[np.bool_] | None = None
) -> Bytes:
    """Draw merged tokens in gray, tinted with the color of their group, with a border; leave the others unchanged.

    A token that was dropped is blank.

    Args:
        pictures: (T, Y, X, 3) from `enlarge`.
        group: group of each token, (T, H, W).
        colors: colors of the groups.
        dropped: which tokens were dropped, (T, H, W); None if none was.
    """
    number = _cells(group, pictures)
    merged = colors.size[number] > 1
    tinted = _mix(PALETTE[colors.fill[number]], _gray(pictures), FILL_SHARE)
    drawn = np.where(merged[..., None], tinted, pictures)
    border = merged & edges(number, _line(pictures, group))
    drawn[border] = PALETTE[colors.border[number[border]]]
    if dropped is not None:
        drawn[_cells(dropped, pictures)] = DROPPED
    return drawn


def fill_shades() -> Bytes:
    """Return the colors of merged tokens (colors, 3) over medium gray."""
    return _mix(PALETTE, 128.0, FILL_SHARE)


def edges(number: Ints, width: int) -> NDArray[np.bool_]:
    """Find the pixels (T, Y, X) that are at most `width` pixels away from another value or from the outside.

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
    """Compute the width of a border in pixels, a tenth of a token."""
    pixels = int(pictures.shape[1]) // int(cells.shape[1])
    return max(1, round(pixels / 10))


def _cells(values: NDArray[_Value], pictures: Bytes) -> NDArray[_Value]:
    """Repeat the values of tokens for their pixels in pictures (T, Y, X, 3): (T, H, W) -> (T, Y, X)."""
    height, width = (pixels // tokens for pixels, tokens in zip(pictures.shape[1:3], values.shape[1:], strict=True))
    return values.repeat(height, axis=1).repeat(width, axis=2)


def _gray(pictures: Bytes) -> NDArray[np.float32]:
    """Compute the brightness (T, Y, X, 1) of pictures (T, Y, X, 3)."""
    gray: NDArray[np.float32] = np.dot(pictures, np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return gray[..., None]


def _mix(over: Bytes, under: NDArray[np.float32] | float, share: float) -> Bytes:
    mixed: NDArray[np.float32] = over * np.float32(share) + under * np.float32(1 - share)
    return mixed.round().astype(np.uint8)
