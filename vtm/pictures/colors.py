"""Choose two colors for each group of tokens, one inside and one at its border, so that groups can be told apart."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtm.pictures.view import BlockView

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

# The colors of Okabe and Ito, and five more that differ as much as possible from them and from each other, also for
# people who do not see red or green.
PALETTE: Bytes = np.array(
    [
        (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66),
        (173, 23, 110), (93, 247, 234), (52, 54, 254), (176, 42, 29), (102, 208, 150),
    ],
    dtype=np.uint8,
)  # fmt: skip
_COUNT = len(PALETTE)
_NONE = _COUNT  # of groups without a color yet
_DISTANCE = np.linalg.norm(PALETTE[:, None].astype(np.float64) - PALETTE, axis=-1)
_ALIKE = np.where(_DISTANCE == 0, 1.0, np.where(_DISTANCE < 125, 0.25, 0.0))  # such as thin lines of orange and red


class GroupColors(NamedTuple):
    """The colors of the G groups of a block.

    Attributes:
        size: tokens of each group in all frames, (G,) int64; a token that was dropped counts as a group here.
        fill: color inside each group, an index of `PALETTE`, (G,) int64. Groups of one token have one too, which is
            not drawn.
        border: color of the border of each group, an index of `PALETTE`, (G,) int64.
    """

    size: Ints
    fill: Ints
    border: Ints


def group_colors(frames: Tensor, block: BlockView) -> GroupColors:
    """Choose the colors of all groups of a clip, the same ones each time for the same clip.

    Groups that touch, in a frame or from one frame to the next, get different borders and different fills as far as
    possible. Groups of the same frame or of adjacent frames differ in one of the two. Ties go to the
    color closest to the average hue of the group.

    Args:
        frames: frames of the clip, (T, 3, Y, X) uint8.
        block: view of a block of this clip.
    """
    size = torch.bincount(block.group.flatten(), minlength=block.num_groups).numpy()
    return GroupColors(size, *_choose(block.group.numpy(), size, _likeness(frames, block.group, len(size))))


def _likeness(frames: Tensor, group: Tensor, count: int) -> NDArray[np.float64]:
    """Compare the hue of the average pixel of each group with each color, (G, colors) from -1 to 1."""
    _, height, width = group.shape
    cells = F.adaptive_avg_pool2d(frames.float(), (height, width)).movedim(1, -1).reshape(-1, 3)
    total = torch.zeros(count, 3).index_add(0, group.flatten(), cells)
    hues = [F.normalize(color - color.mean(1, keepdim=True)) for color in (total, torch.from_numpy(PALETTE).float())]
    likeness: NDArray[np.float64] = (hues[0] @ hues[1].T).double().numpy()
    return likeness


def _choose(group: Ints, size: Ints, likeness: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Choose fills and borders (G,) one group after the other, the largest first."""
    first, second, shared = _contacts(group, size > 1)
    starts = np.searchsorted(first, np.arange(len(size) + 1))
    frames, near = _presence(group, len(size))
    fill, border = np.full((2, len(size)), _NONE)
    used = np.zeros((len(group), _COUNT, _COUNT))  # how many groups of each frame have a border and a fill
    lone = size <= 1
    fill[lone] = border[lone] = likeness[lone].argmax(1)
    for one in np.argsort(-size, kind="stable")[: (~lone).sum()].tolist():
        touching = slice(starts[one], starts[one + 1])
        other, times = second[touching], shared[touching]
        pairs = used[near[one]].sum(0)
        cost = 1000 * _cost(border[other], times) + 2 * pairs.sum(1) - likeness[one]
        border[one] = cost.argmin()
        same = 3 * (np.arange(_COUNT) == border[one])  # one color where that is enough
        cost = 1000 * _cost(fill[other], times) + 1e6 * pairs[border[one]] - likeness[one] - same
        fill[one] = cost.argmin()
        used[frames[one], border[one], fill[one]] += 1
    return fill, border


def _cost(colors: Ints, times: Ints) -> NDArray[np.float64]:
    """Count the contacts with each color, or one like it."""
    touched = np.bincount(colors, times, minlength=_COUNT + 1)[:_COUNT].astype(np.float64)
    return touched @ _ALIKE


def _presence(group: Ints, count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the frames (G, T) that contain each group, and the same with the adjacent frames added."""
    frames = np.zeros((count, len(group)), dtype=bool)
    frames[group.reshape(len(group), -1), np.arange(len(group))[:, None]] = True
    near = frames.copy()
    near[:, 1:] |= frames[:, :-1]
    near[:, :-1] |= frames[:, 1:]
    return frames, near


def _contacts(group: Ints, merged: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """List the pairs of merged groups that touch, in both directions and sorted, and the contacts of each pair.

    Tokens touch if they are at most one row, one column and one frame apart.
    """
    _, height, width = group.shape
    padded = np.pad(group, ((0, 1), (1, 1), (1, 1)), constant_values=-1)
    here = padded[:-1, 1:-1, 1:-1]
    pairs = []
    for t, y, x in product((0, 1), (-1, 0, 1), (-1, 0, 1)):
        there = padded[t : t + len(group), 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        pairs.append(np.stack([here.ravel(), there.ravel()], 1))
    found = np.concatenate(pairs)
    found = found[(found[:, 0] != found[:, 1]) & (found[:, 1] >= 0)]
    found = found[merged[found].all(1)]
    codes, shared = np.unique(np.concatenate([found, found[:, ::-1]]) @ [len(merged), 1], return_counts=True)
    return codes // len(merged), codes % len(merged), shared
