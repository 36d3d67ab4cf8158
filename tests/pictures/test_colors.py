"""Groups that are near each other can be told apart by their two colors, also by people who do not see all colors."""

from collections import Counter
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch

from vtm.pictures.colors import PALETTE, group_colors
from vtm.pictures.layers import fill_shades
from vtm.pictures.view import BlockView


def block_of(group: torch.Tensor) -> BlockView:
    count = int(group.max()) + 1
    return BlockView(group, torch.zeros_like(group, dtype=torch.bool), None, count, len(group))


def colors_of(group: torch.Tensor):
    return group_colors(torch.zeros(len(group), 3, *group.shape[1:], dtype=torch.uint8), block_of(group))


def neighbors(group: torch.Tensor):
    """List the pairs of groups of tokens that are at most one row, one column and one frame apart, by loops."""
    frames, height, width = group.shape
    for t, y, x in product(range(frames), range(height), range(width)):
        for v, u, w in product((t, t + 1), (y - 1, y, y + 1), (x - 1, x, x + 1)):
            if v < frames and 0 <= u < height and 0 <= w < width and group[t, y, x] != group[v, u, w]:
                yield int(group[t, y, x]), int(group[v, u, w])


def test_the_size_of_a_group_is_its_tokens_in_all_frames(view):
    for block in view.blocks:
        colors = group_colors(view.frames, block)
        assert dict(enumerate(colors.size.tolist())) == Counter(block.group.flatten().tolist())


def test_the_same_clip_has_the_same_colors(view):
    first, second = (group_colors(view.frames, view.blocks[0]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", ["border", "fill"])
def test_groups_that_touch_in_space_or_time_differ_where_colors_suffice(kind):
    blocks = torch.arange(8).reshape(2, 2, 2)  # of 2 × 2 tokens, in two frames: each touches all others
    group = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    chosen = getattr(colors_of(group), kind)
    assert len(set(chosen.tolist())) == 8


@pytest.mark.parametrize("kind", ["border", "fill"])
def test_of_many_groups_few_that_touch_share_a_color(kind):
    generator = torch.Generator().manual_seed(0)
    rough = torch.randint(0, 40, (3, 8, 8), generator=generator)
    group = rough.repeat_interleave(2, 1).repeat_interleave(2, 2)  # each of several tokens
    chosen = getattr(colors_of(group), kind)
    pairs = list(neighbors(group))
    shared = sum(chosen[one] == chosen[other] for one, other in pairs)
    assert len(set(chosen.tolist())) == len(PALETTE)
    assert shared < len(pairs) / len(PALETTE) / 2  # by chance a twelfth; each touches almost all others


def test_groups_of_a_frame_and_of_the_next_differ_in_fill_or_border():
    rows = torch.arange(40).reshape(2, 10, 2).repeat_interleave(3, 2)  # 40 groups of three tokens, and 12 colors
    colors = colors_of(rows)
    assert len(set(zip(colors.fill.tolist(), colors.border.tolist(), strict=True))) == 40


def test_groups_that_touch_have_borders_far_from_alike_where_there_is_a_choice():
    group = torch.arange(16).reshape(1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)  # each of 2 × 2 tokens
    colors = PALETTE[colors_of(group).border.reshape(4, 4)].astype(float)
    for distance in (np.linalg.norm(np.diff(colors, axis=axis), axis=-1) for axis in (0, 1)):
        assert distance.min() > 125


def test_a_row_of_groups_never_repeats_a_border():
    border = colors_of(torch.arange(8).reshape(1, 1, 8).repeat(2, 4, 1)).border
    assert all(a != b for a, b in pairwise(border))


@pytest.mark.parametrize("color", [(200, 40, 30), (60, 90, 230), (20, 150, 60)])
def test_a_large_group_has_the_hue_of_its_picture(color):
    frames = torch.tensor(color, dtype=torch.uint8)[None, :, None, None].expand(2, 3, 8, 8)
    fill = group_colors(frames, block_of(torch.zeros(2, 2, 2, dtype=torch.int64))).fill
    assert PALETTE[fill[0]].argmax() == np.argmax(color)


def test_fills_are_saturated():
    shades = fill_shades().astype(int)
    assert (shades.max(1) - shades.min(1)).min() > 45  # averages of textured pictures have 30 and less


@pytest.mark.parametrize(
    "seen",
    [
        np.eye(3),
        # Machado et al. 2009: no red cones, no green cones
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["all colors", "no red", "no green"],
)
def test_colors_can_be_told_apart_by_people_who_do_not_see_red_or_green(seen):
    value = PALETTE / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ np.transpose(seen)
    cones = np.cbrt(
        light.clip(0, 1)
        @ [
            [0.41222147, 0.21190350, 0.08830246],
            [0.53633254, 0.68069955, 0.28171884],
            [0.05144599, 0.10739696, 0.62997870],
        ]
    )
    lab = cones @ [
        [0.21045426, 1.97799850, 0.02590404],
        [0.79361778, -2.42859221, 0.78277177],
        [-0.00407205, 0.45059371, -0.80867577],
    ]
    # in Oklab a difference of 0.02 is just seen
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 0.07
