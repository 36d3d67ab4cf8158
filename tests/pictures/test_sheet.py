"""The sheet shows frames, times and layers, and is written as a PNG and a PDF file for print."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import image

from vtm.merging import FeatureGrid, Grouping
from vtm.models import HeadOutput
from vtm.models.head import BlockTrace
from vtm.pictures import ClipView
from vtm.pictures.layers import Painter, Scale, enlarge
from vtm.pictures.selection import Selection
from vtm.pictures.sheet import draw_sheet, write_sheet

LEFT, TOP, SIDE, GAP, BLOCK_GAP = 232, 196, 252, 10, 36


def picture_at(sheet, row, column, blocks):
    y, x = TOP + row * (SIDE + GAP) + blocks * (BLOCK_GAP - GAP), LEFT + column * (SIDE + GAP)
    return sheet[y : y + SIDE, x : x + SIDE]


def test_every_layer_of_every_block_is_in_its_row(view, scores):
    sheet = draw_sheet(view, title="a clip")
    pictures = enlarge(view.frames, view.grid, SIDE)
    rows, scale = [(0, pictures)], Scale.of(view.blocks)
    for number, block in enumerate(view.blocks, 1):
        rows += [(number, layer.pictures) for layer in Painter(view.frames, block, scale)(pictures, np.arange(4))]
    assert len(rows) == 7
    for row, (blocks, expected) in enumerate(rows):
        for column in range(4):
            assert np.array_equal(picture_at(sheet, row, column, blocks), expected[column])


def test_frames_are_spread_evenly(view, scores):
    sheet = draw_sheet(view, title="a clip", selection=Selection(frames=2))
    pictures = enlarge(view.frames, view.grid, SIDE)
    for column, step in enumerate((0, 3)):
        assert np.array_equal(picture_at(sheet, 0, column, 0), pictures[step])


@pytest.mark.parametrize("columns", [1, 4])
def test_text_is_in_the_margins_and_not_cut_off(view, scores, columns):
    sheet = draw_sheet(view, title="a clip with a long name " * 9, selection=Selection(frames=columns))
    dark = sheet.min(axis=2) < 200
    times, facts = np.s_[145:190, LEFT : LEFT + SIDE], np.s_[400:, :160]
    for place in (np.s_[20:78, LEFT:460], np.s_[82:130, LEFT:660], times, facts, np.s_[-70:, LEFT + 120 :]):
        assert dark[place].any()
    for edge in (dark[:8], dark[-8:], dark[:, :8], dark[:, -8:]):
        assert not edge.any()


def pictures_in(sheet, pictures):
    """Find out which of these pictures are on the sheet, wherever they are."""
    height, width = pictures[0].shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (1, width))[:, :, 0]
    found = []
    for number, picture in enumerate(pictures):
        for y, x in np.argwhere((windows[:, :, ::50] == picture[0, ::50, 0]).all(-1)):
            if np.array_equal(sheet[y : y + height, x : x + width], picture):
                found.append(number)
    return found


def test_only_the_selected_blocks_and_layers_are_drawn(view):
    pictures = enlarge(view.frames, view.grid, SIDE)
    selection = Selection(blocks=(2,), layers=("groups", "saliency"), frames=2)
    sheet = draw_sheet(view, title="a clip", selection=selection)
    drawn = {
        (number, layer.name): layer.pictures[[0, 3]]
        for number, block in enumerate(view.blocks, 1)
        for layer in Painter(view.frames, block, Scale.of(view.blocks))(pictures, np.arange(4))
    }
    for (number, name), expected in drawn.items():
        selected = number == 2 and name in ("groups", "saliency")
        assert pictures_in(sheet, expected) == ([0, 1] if selected else [])
    assert pictures_in(sheet, pictures) == [0, 3]


def test_saliency_may_be_on_one_scale_for_each_block(view):
    pictures = enlarge(view.frames, view.grid, SIDE)
    for scale in ("all", "block"):
        sheet = draw_sheet(view, title="a clip", selection=Selection(layers=("saliency",), scale=scale))
        for block in view.blocks:
            own = Scale.of(view.blocks if scale == "all" else [block])
            (layer,) = Painter(view.frames, block, own)(pictures, np.arange(4), ["saliency"])
            assert pictures_in(sheet, layer.pictures) == [0, 1, 2, 3]


def test_the_sheet_of_one_layer_keeps_its_text_apart(view):
    sheet = draw_sheet(view, title="a clip", selection=Selection(layers=("saliency",)))
    dark = sheet.min(axis=2) < 200
    frame = enlarge(view.frames, view.grid, SIDE)[0]
    left = next(x for x in range(100, 600) if np.array_equal(sheet[TOP : TOP + SIDE, x : x + SIDE], frame))
    for number in (1, 2):  # between the rows there is no text beside them
        gap = TOP + number * (SIDE + BLOCK_GAP) - BLOCK_GAP
        assert not dark[gap + 4 : gap + BLOCK_GAP - 4, :left].any()


def test_a_repeated_frame_has_no_second_label(view):
    different, equal = (
        draw_sheet(replace(view, times=times), title="a clip") for times in ((0, 1, 2, 3), (0, 1, 2, 2))
    )
    dark = [sheet[130:TOP, LEFT + 3 * (SIDE + GAP) :].min(axis=2) < 200 for sheet in (different, equal)]
    assert [found.any() for found in dark] == [True, False]


def test_without_saliency_there_are_two_rows_for_each_block(make_clip, scores):
    with_saliency = draw_sheet(make_clip().view(), title="a clip")
    without = draw_sheet(make_clip(estimates=False).view(), title="a clip")
    assert len(with_saliency) - len(without) in range(
        2 * (SIDE + GAP) + 32, 2 * (SIDE + GAP) + 100
    )  # and its line of the legend


def test_the_truth_is_written_where_it_is_known(view, scores):
    plain, known = (draw_sheet(view, title="a clip", truth=truth) for truth in (None, "running"))
    changed = (plain != known).any(axis=(1, 2)).nonzero()[0]
    assert len(changed)
    assert 82 <= changed.min() <= changed.max() < 130  # in the line of the prediction


def test_the_file_is_the_sheet(tmp_path, view, scores):
    path = tmp_path / "new" / "sheet.png"
    write_sheet(path, view, title="a clip")
    found = image.imread(path)  # in [0, 1]
    sheet = draw_sheet(view, title="a clip")
    assert np.array_equal((found * 255).round().astype(np.uint8), sheet)
    pdf = path.with_suffix(".pdf")
    assert sorted(path.parent.iterdir()) == [pdf, path]
    size = [float(number) for number in re.search(rb"/MediaBox \[([^]]*)\]", pdf.read_bytes())[1].split()[2:]]
    assert size == pytest.approx([sheet.shape[1] * 72 / 300, sheet.shape[0] * 72 / 300], abs=0.01)


def test_where_nothing_is_merged_all_tokens_are_targets_and_keep_their_picture(scores):
    identity = Grouping.identity(1, 4)
    output = HeadOutput(torch.zeros(1, 2), None, (BlockTrace(identity, identity.index, None, 1),))
    frames = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    view = ClipView.of(frames, [0.0], output, FeatureGrid(2, 2), scores=scores)
    sheet = draw_sheet(view, title="a still")
    picture = enlarge(frames, (2, 2), 250)[0]
    height = len(picture)
    for top in (TOP, TOP + height + BLOCK_GAP + height + GAP):  # of the frames and of the groups
        assert np.array_equal(sheet[top : top + height, LEFT : LEFT + height], picture)
