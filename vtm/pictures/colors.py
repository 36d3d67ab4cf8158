"""Two colours for every group of tokens, its average inside and another one at its border, so that it can be told.

Tokens with the same inner and border colour are merged. Groups that touch, in a frame or from one frame to the next,
get different border colours as far as there are any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtm.pictures.view import BlockView

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

# those of Okabe and Ito, and five more that stay as far from them and from one another as can be, also for people who
# do not see red or green
BORDERS: Bytes = np.array(
    [
        (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66),
        (173, 23, 110), (93, 247, 234), (52, 54, 254), (176, 42, 29), (102, 208, 150),
    ],
    dtype=np.uint8,
)  # fmt: skip
_DISTANCE = np.linalg.norm(BORDERS[:, None].astype(np.float64) - BORDERS, axis=-1)
_ALIKE = np.where(_DISTANCE == 0, 1.0, np.where(_DISTANCE < 125, 0.25, 0.0))  # thin lines of orange and red, say


class GroupColors(NamedTuple):
    """Colour the G groups of a block.

    Attributes:
        size: (G,) int64, tokens of each group in all frames.
        fill: (G, 3) uint8 in RGB, the average of all pixels of its tokens.
        border: (G,) int64, a place in `BORDERS`. Groups of one token have one, too, but nobody draws it.
    """

    size: Ints
    fill: Bytes
    border: Ints


def group_colors(frames: Tensor, block: BlockView) -> GroupColors:
    """Choose the colours of all groups of a clip, the same ones for the same clip.

    Args:
        frames: (T, 3, Y, X) uint8.
        block: what it did to them.
    """
    _, height, width = block.group.shape
    cells = F.adaptive_avg_pool2d(frames.float(), (height, width))  # (T, 3, H, W)
    colors = cells.movedim(1, -1).reshape(-1, 3).double()
    group = block.group.flatten()
    size = torch.bincount(group, minlength=block.num_groups)
    total = torch.zeros(block.num_groups, 3, dtype=torch.float64).index_add(0, group, colors)
    fill = (total / size[:, None]).round().to(torch.uint8)
    return GroupColors(size.numpy(), fill.numpy(), _borders(block.group.numpy(), size.numpy()))


def _borders(group: Ints, size: Ints) -> Ints:
    """Give each group the border colour that touches itself and its like least, large groups first."""
    first, second, shared = _contacts(group, size > 1)
    starts = np.searchsorted(first, np.arange(len(size) + 1))
    chosen = np.full(len(size), len(BORDERS))  # nobody's colour
    for rank, one in enumerate(np.argsort(-size, kind="stable").tolist()):
        near = slice(starts[one], starts[one + 1])
        taken = np.bincount(chosen[second[near]], shared[near], minlength=len(BORDERS))[: len(BORDERS)] @ _ALIKE
        chosen[one] = (np.roll(taken, -rank).argmin() + rank) % len(BORDERS)  # of equals, each in its turn
    return chosen


def _contacts(group: Ints, merged: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """List the pairs of merged groups that touch, both ways and in order, and in how many places they do."""
    sides = [(group[:-1], group[1:]), (group[:, :-1], group[:, 1:]), (group[:, :, :-1], group[:, :, 1:])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in sides])
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & merged[pairs].all(1)]
    codes, shared = np.unique(np.concatenate([pairs, pairs[:, ::-1]]) @ [len(merged), 1], return_counts=True)
    return codes // len(merged), codes % len(merged), shared
