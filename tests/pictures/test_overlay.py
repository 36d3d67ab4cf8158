"""The overlay video plays as many steps as there are, and what it shows is what is drawn."""

import numpy as np
import pytest

from vtm.pictures.layers import Painter, Scale, enlarge
from vtm.pictures.overlay import _frames, write_overlay
from vtm.video.reading import read_frames
from vtm.video.scanning import duration

TOP = 172  # of the pictures


@pytest.mark.parametrize(("estimates", "rows"), [(True, 3), (False, 2)])
def test_the_video_has_a_picture_for_every_step(tmp_path, make_clip, scores, estimates, rows):
    view = make_clip(estimates=estimates).view()
    path = tmp_path / "new" / "clip.mp4"
    write_overlay(path, view, title="a clip")
    drawn = list(_frames(view, "a clip"))
    assert duration(path) == pytest.approx(len(drawn) / 2) == 2
    height, width = drawn[0].shape[:2]
    assert height % 2 == width % 2 == 0
    tall = TOP + rows * (282 + 8) - 8 + 16
    assert tall + 60 < height < tall + 200  # below is the key
    assert drawn[0][tall:].min() < 128
    frames, *_ = read_frames(path, [0.1, 0.6, 1.1, 1.6], size=96, frames_per_step=1, squash=True)
    for found, expected in zip(frames, drawn, strict=True):
        small = expected[: height // 96 * 96, : width // 96 * 96]
        assert found.float().mean() == pytest.approx(small.mean(), abs=12)
    assert not np.array_equal(drawn[0], drawn[1])
    assert list(path.parent.iterdir()) == [path]


def test_the_time_and_the_frame_change_and_the_labels_stay(view, scores):
    first, second = list(_frames(view, "a clip"))[:2]
    changed = (first != second).any(axis=2)
    tall = 3 * (282 + 8) - 8
    assert changed[TOP - 28 : TOP - 4, 16:100].any()  # the clock
    assert changed[TOP : TOP + tall, 16 : 16 + tall].mean() > 0.9  # the frame
    for words in (np.s_[:90], np.s_[TOP - 70 : TOP, 16 + tall :], np.s_[TOP + tall + 1 :]):
        assert not changed[words].any()
        assert first[words].min() < 128  # title and prediction, the blocks, the key


def test_every_layer_of_every_block_is_beside_the_frame(view, scores):
    drawn = list(_frames(view, "a clip"))[2]
    small = enlarge(view.frames[2:3], view.grid, 280)
    for column, block in enumerate(view.blocks):
        layers = Painter(view.frames, block, Scale.of(view))(small, np.array([2]))
        assert [layer.name for layer in layers] == ["saliency", "targets", "groups"]
        for row, layer in enumerate(layers):
            y, x = TOP + row * (282 + 8), 16 + 3 * (282 + 8) - 8 + 34 + 8 + column * (282 + 8)
            assert np.array_equal(drawn[y : y + 282, x : x + 282], layer.pictures[0])
