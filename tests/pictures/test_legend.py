"""The legend shows the colors of the layers that are drawn, within its width and height."""

import numpy as np
import pytest

from vtm.pictures.canvas import Canvas
from vtm.pictures.colors import PALETTE
from vtm.pictures.layers import LAYERS, TARGET, Scale, heat_shades
from vtm.pictures.legend import Legend

SCALE = Scale(-0.756, 0.25)


def drawn(scale, *, layers=LAYERS, width=1500, size=20):
    legend = Legend(layers, scale, width=width, size=size)
    canvas = Canvas(width + 40, legend.height + 40)
    legend.draw(canvas, 20, 20)
    return canvas, legend


def words(legend):
    return [" ".join(lines) for _, lines in legend.entries]


def test_the_bar_of_the_saliency_runs_from_low_to_high():
    canvas, legend = drawn(SCALE)
    bar = canvas.pixels[24:44, 20:80]
    assert (bar == bar[:1]).all()
    assert bar[0, 0].tolist() == heat_shades()[0].tolist()
    assert bar[0, -1].tolist() == heat_shades()[255].tolist()
    assert (canvas.pixels[24:44, 80] == 255).all()
    assert words(legend)[0] == "Saliency, from −0.76 (dark) to 0.25 (bright) on one scale for all blocks."
    assert words(legend)[-1].endswith(", range of saliency.")


def test_a_target_is_outlined_and_merged_tokens_have_the_same_two_colors():
    canvas, _ = drawn(SCALE)
    targets, groups = (canvas.pixels[top : top + 20, 20:80] for top in (50, 76))
    assert (targets[0, 20:40] == TARGET).all()
    assert not (targets[:, :20] == TARGET).all(-1).any()
    assert np.array_equal(groups[:, :20], groups[:, 40:])
    first, other = groups[:, :20], groups[:, 20:40]
    for place in ((0, 0), (10, 10)):  # border and inside
        assert first[place].tolist() != other[place].tolist()
    assert first[0, 0].tolist() in PALETTE.tolist()


def test_a_scale_for_each_block_has_no_numbers():
    _, legend = drawn(None)
    assert (
        words(legend)[0]
        == "Saliency, from the lowest (dark) to the highest (bright) value of each block: one scale per block."
    )


def test_layers_are_explained_in_their_order():
    _, legend = drawn(SCALE, layers=("groups", "saliency"))
    assert [text.split()[0] for text in words(legend)] == ["Groups:", "Saliency,", "Beside"]


def test_without_saliency_it_is_not_mentioned():
    with_saliency, without = (drawn(SCALE, layers=layers)[1] for layers in (LAYERS, LAYERS[1:]))
    assert [text.split()[0] for text in words(without)] == ["Targets:", "Groups:", "Beside"]
    assert "saliency" not in " ".join(words(without)).lower()
    assert with_saliency.height == without.height + 26


@pytest.mark.parametrize("width", [400, 700, 1500])
def test_it_stays_within_its_width_and_height(width):
    canvas, legend = drawn(SCALE, width=width)
    dark = canvas.picture().min(axis=2) < 200
    assert not any(edge.any() for edge in (dark[:20], dark[20 + legend.height :], dark[:, :20], dark[:, 20 + width :]))
    assert dark[20 + legend.height - 26 : 20 + legend.height].any()
