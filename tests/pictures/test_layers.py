"""Layers are drawn pixel by pixel as loops would draw them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vtm.pictures.colors import PALETTE, group_colors
from vtm.pictures.layers import (
    FADED,
    FILL_SHARE,
    HEAT_COLORS,
    HEAT_SHARE,
    TARGET,
    Painter,
    Scale,
    edges,
    enlarge,
    fill_groups,
    heat,
    heat_shades,
    mark_targets,
)

CELL, LINE = 24, 2  # pixels of a token and of its border
GRAY = [0.299, 0.587, 0.114]


@pytest.fixture
def pictures(view):
    return enlarge(view.frames, view.grid, 3 * CELL)


def near_another(number, y, x, width):
    """Check whether a pixel is at most `width` pixels away from another number or from the outside."""
    height, breadth = number.shape
    around = [(v, u) for v in range(y - width, y + width + 1) for u in range(x - width, x + width + 1)]
    return any(not (0 <= v < height and 0 <= u < breadth) or number[v, u] != number[y, x] for v, u in around)


def test_frames_become_whole_pixels_for_each_token(view):
    assert enlarge(view.frames, (3, 3), 70).shape == (4, 72, 72, 3)
    assert enlarge(view.frames, (5, 7), 70).shape == (4, 70, 70, 3)
    flat = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    assert enlarge(flat, (3, 3), 64).min() == 255
    same = enlarge(view.frames, (3, 3), 24)
    assert np.array_equal(same, view.frames.movedim(1, -1).numpy())


def test_edges_are_where_numbers_change_and_nowhere_else(view):
    number = view.blocks[1].group.numpy().repeat(5, 1).repeat(5, 2)
    for width in (1, 2):
        found = edges(number, width)
        for t in range(4):
            for y in range(15):
                for x in range(15):
                    assert found[t, y, x] == near_another(number[t], y, x, width)


def test_merged_tokens_have_the_two_colors_of_their_group_and_lone_ones_their_picture(view, pictures):
    kinds = set()
    for block in view.blocks:
        colors = group_colors(view.frames, block)
        drawn = fill_groups(pictures, block.group.numpy(), colors)
        number = block.group.numpy().repeat(CELL, 1).repeat(CELL, 2)
        for t in range(4):
            for y in range(0, 3 * CELL, 3):
                for x in range(3 * CELL):
                    group = number[t, y, x]
                    if colors.size[group] == 1:
                        kind, expected = "alone", pictures[t, y, x]
                    elif near_another(number[t], y, x, LINE):
                        kind, expected = "border", PALETTE[colors.border[group]]
                    else:
                        tint = FILL_SHARE * PALETTE[colors.fill[group]]
                        kind, expected = "inside", tint + (1 - FILL_SHARE) * (pictures[t, y, x] @ GRAY)
                    kinds.add(kind)
                    assert np.abs(drawn[t, y, x] - expected).max() <= (0.51 if kind == "inside" else 0)
    assert kinds == {"alone", "border", "inside"}


def test_targets_keep_their_picture_and_the_rest_fades(view, pictures):
    target = view.blocks[0].target.numpy()
    assert 0 < target.sum() < target.size
    drawn = mark_targets(pictures, target)
    for t, row, column in np.ndindex(*target.shape):
        cell = np.s_[t, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        if target[t, row, column]:
            inner = np.s_[LINE:-LINE, LINE:-LINE]
            assert np.array_equal(drawn[cell][inner], pictures[cell][inner])
            outline = np.ones((CELL, CELL), dtype=bool)
            outline[inner] = False
            assert (drawn[cell][outline] == TARGET).all()
        else:
            faded = pictures[cell] * FADED + 255 * (1 - FADED)
            assert np.abs(drawn[cell] - faded).max() <= 0.51


def test_heat_is_the_color_of_the_saliency_over_gray(view, pictures):
    saliency = view.blocks[1].saliency
    scale = Scale.of(view.blocks)
    drawn = heat(pictures, scale.level(saliency))
    gray = pictures @ GRAY
    for t, row, column in np.ndindex(*saliency.shape):
        share = (float(saliency[t, row, column]) - scale.low) / (scale.high - scale.low)
        color = HEAT_COLORS[round(255 * share)]
        y, x = row * CELL + 5, column * CELL + 7
        expected = HEAT_SHARE * color + (1 - HEAT_SHARE) * gray[t, y, x]
        assert np.abs(drawn[t, y, x] - expected).max() <= 0.51
    assert np.abs(heat_shades()[255] - (HEAT_SHARE * HEAT_COLORS[255] + (1 - HEAT_SHARE) * 128)).max() <= 0.51


def test_brightness_grows_with_the_saliency():
    assert (np.diff(HEAT_COLORS @ [0.2126, 0.7152, 0.0722]) > -0.5).all()


def test_all_blocks_have_one_scale_from_the_least_to_the_greatest_saliency(view):
    low, high = view.blocks
    values = [value for block in view.blocks for value in block.saliency.flatten().tolist()]
    assert Scale.of(view.blocks) == (min(values), max(values))
    weak = replace(high, saliency=high.saliency / 100)
    scale = Scale.of((low, weak))
    assert scale == Scale.of((low,))
    levels = scale.level(weak.saliency)
    assert levels.max() - levels.min() <= 5  # so it looks uniform


def test_a_single_value_of_saliency_has_a_color():
    saliency = torch.zeros(1, 2, 2)
    assert Scale(0.0, 0.0).level(saliency).tolist() == [[[0, 0], [0, 0]]]


def test_a_painter_draws_some_frames_with_the_colors_of_all(view, pictures):
    painter = Painter(view.frames, view.blocks[0], Scale.of(view.blocks))
    together = painter(pictures, np.arange(4))
    assert [layer.name for layer in together] == ["saliency", "targets", "groups"]
    for layer, whole in zip(painter(pictures[2:3], np.array([2])), together, strict=True):
        assert np.array_equal(layer.pictures[0], whole.pictures[2])
    some = painter(pictures, np.arange(4), ("groups", "saliency"))
    assert [layer.name for layer in some] == ["groups", "saliency"]
    assert np.array_equal(some[0].pictures, together[2].pictures)


def test_without_an_estimator_saliency_is_not_drawn(make_clip):
    view = make_clip(estimates=False).view()
    pictures = enlarge(view.frames, view.grid, 24)
    assert Scale.of(view.blocks) is None
    for scale in (None, Scale(0.0, 1.0)):
        painter = Painter(view.frames, view.blocks[0], scale)
        assert [layer.name for layer in painter(pictures, np.arange(4))] == ["targets", "groups"]
