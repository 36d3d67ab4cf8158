"""Group colours are the true averages, and neighbours can be told apart, whatever colours one sees."""

from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from vtm.pictures.colors import BORDERS, group_colors
from vtm.pictures.view import BlockView


def block_of(group: torch.Tensor) -> BlockView:
    count = int(group.max()) + 1
    return BlockView(group, torch.zeros_like(group, dtype=torch.bool), None, count, len(group))


def test_a_group_is_filled_with_the_average_of_all_its_pixels_in_all_frames(clip, view):
    for block in view.blocks:
        colors = group_colors(view.frames, block)
        pixels = defaultdict(list)
        for t in range(4):
            for y in range(24):
                for x in range(24):
                    pixels[int(block.group[t, y // 8, x // 8])].append(clip.frames[t, :, y, x].tolist())
        assert len(pixels) == block.num_groups == len(colors.fill)
        for group, values in pixels.items():
            assert colors.size[group] * 64 == len(values)
            assert np.abs(colors.fill[group] - np.mean(values, axis=0)).max() <= 0.5 + 1e-4


def test_the_same_clip_has_the_same_colours(view):
    first, second = (group_colors(view.frames, view.blocks[0]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_groups_that_touch_have_different_borders():
    generator = torch.Generator().manual_seed(0)
    rough = torch.randint(0, 40, (3, 8, 8), generator=generator)
    group = rough.repeat_interleave(2, 1).repeat_interleave(2, 2)  # each of several tokens
    border = group_colors(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), block_of(group)).border
    shared, total = 0, 0
    for t in range(3):
        for y in range(16):
            for x in range(16):
                here = group[t, y, x]
                for other in (group[t, (y + 1) % 16, x], group[t, y, (x + 1) % 16]):
                    total += bool(here != other)
                    shared += bool(here != other and border[here] == border[other])
    assert len(set(border.tolist())) == len(BORDERS)
    assert shared < total / len(BORDERS) / 2  # by chance it would be total / 12; each touches more than 12 others


def test_where_there_is_a_choice_groups_that_touch_have_borders_far_from_alike():
    group = torch.arange(16).reshape(1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)  # each of 2 × 2 tokens
    border = group_colors(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), block_of(group)).border.reshape(4, 4)
    colors = BORDERS[border].astype(float)
    for distance in (np.linalg.norm(np.diff(colors, axis=axis), axis=-1) for axis in (0, 1)):
        assert distance.min() > 125


def test_few_groups_that_touch_never_share_a_border():
    group = torch.arange(8).reshape(1, 1, 8).repeat(2, 4, 1)
    border = group_colors(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), block_of(group)).border
    assert all(a != b for a, b in pairwise(border))


@pytest.mark.parametrize(
    "seen",
    [
        np.eye(3),
        # Machado et al. 2009: no red cones, no green cones
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["all colours", "no red", "no green"],
)
def test_borders_can_be_told_apart_by_everyone(seen):
    value = BORDERS / 255
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
