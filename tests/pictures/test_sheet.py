"""The sheet holds the frames, their layers and their times, and is a PNG and a PDF file for print."""

import re

import numpy as np
import pytest
import torch
from matplotlib import image

from vtm.merging import FeatureGrid, Grouping
from vtm.models import HeadOutput
from vtm.models.head import BlockTrace
from vtm.pictures import ClipView
from vtm.pictures.layers import Painter, Scale, enlarge
from vtm.pictures.sheet import draw_sheet, write_sheet

LEFT, TOP, SIDE, GAP, BLOCK_GAP = 232, 196, 252, 10, 36


def picture_at(sheet, row, column, blocks):
    y, x = TOP + row * (SIDE + GAP) + blocks * (BLOCK_GAP - GAP), LEFT + column * (SIDE + GAP)
    return sheet[y : y + SIDE, x : x + SIDE]


def test_every_layer_of_every_block_is_in_its_row(view, scores):
    sheet = draw_sheet(view, title="a clip")
    pictures = enlarge(view.frames, view.grid, SIDE)
    rows, scale = [(0, pictures)], Scale.of(view)
    for number, block in enumerate(view.blocks, 1):
        rows += [(number, layer.pictures) for layer in Painter(view.frames, block, scale)(pictures, np.arange(4))]
    assert len(rows) == 7
    for row, (blocks, expected) in enumerate(rows):
        for column in range(4):
            assert np.array_equal(picture_at(sheet, row, column, blocks), expected[column])


def test_frames_are_spread_evenly(view, scores):
    sheet = draw_sheet(view, title="a clip", columns=2)
    pictures = enlarge(view.frames, view.grid, SIDE)
    for column, place in enumerate((0, 3)):
        assert np.array_equal(picture_at(sheet, 0, column, 0), pictures[place])


@pytest.mark.parametrize("columns", [1, 4])
def test_there_are_words_in_the_margins_and_none_is_cut_off(view, scores, columns):
    sheet = draw_sheet(view, title="a clip with a long name " * 9, columns=columns)
    dark = sheet.min(axis=2) < 200
    times, facts = np.s_[145:190, LEFT : LEFT + SIDE], np.s_[400:, :160]
    for place in (np.s_[20:78, LEFT:460], np.s_[82:130, LEFT:660], times, facts, np.s_[-70:, LEFT + 120 :]):
        assert dark[place].any()
    for edge in (dark[:8], dark[-8:], dark[:, :8], dark[:, -8:]):
        assert not edge.any()


def test_without_saliency_there_are_two_rows_for_each_block(make_clip, scores):
    with_saliency = draw_sheet(make_clip().view(), title="a clip")
    without = draw_sheet(make_clip(estimates=False).view(), title="a clip")
    assert len(with_saliency) - len(without) in range(2 * (SIDE + GAP) + 32, 2 * (SIDE + GAP) + 100)  # with its key


def test_the_truth_is_said_where_it_is_known(view, scores):
    plain, known = (draw_sheet(view, title="a clip", truth=truth) for truth in (None, "running"))
    changed = (plain != known).any(axis=(1, 2)).nonzero()[0]
    assert len(changed)
    assert 82 <= changed.min() <= changed.max() < 130  # in the line of the prediction


def test_the_file_is_the_sheet(tmp_path, view, scores):
    path = tmp_path / "new" / "sheet.png"
    write_sheet(path, view, title="a clip")
    found = image.imread(path)  # in [0, 1], with an alpha channel
    sheet = draw_sheet(view, title="a clip")
    assert np.array_equal((found[..., :3] * 255).round().astype(np.uint8), sheet)
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
