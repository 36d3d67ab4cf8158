"""The overlay video plays as many steps as there are, and what it shows is what is drawn."""

import numpy as np
import pytest

from vtm.data.video import duration, read_frames
from vtm.pictures.film import _frames, write_film


@pytest.mark.parametrize(("estimates", "rows"), [(True, 2), (False, 1)])
def test_the_video_has_a_picture_for_every_step(tmp_path, make_clip, scores, estimates, rows):
    view = make_clip(estimates=estimates).view()
    path = tmp_path / "new" / "clip.mp4"
    write_film(path, view, title="a clip", scores=scores)
    drawn = list(_frames(view, "a clip", scores))
    assert duration(path) == pytest.approx(len(drawn) / 2) == 2
    height, width = drawn[0].shape[:2]
    assert height % 2 == width % 2 == 0
    assert height == 128 + rows * (282 + 8) - 8 + 16
    frames, *_ = read_frames(path, [0.1, 0.6, 1.1, 1.6], size=96, frames_per_step=1, squash=True)
    for found, expected in zip(frames, drawn, strict=True):
        small = expected[: height // 96 * 96, : width // 96 * 96]
        assert found.float().mean() == pytest.approx(small.mean(), abs=12)
    assert not np.array_equal(drawn[0], drawn[1])
    assert list(path.parent.iterdir()) == [path]


def test_the_time_and_the_frame_change_and_the_labels_stay(view, scores):
    first, second = list(_frames(view, "a clip", scores))[:2]
    changed = (first != second).any(axis=2)
    assert changed[100:124, 16:100].any()  # the clock
    assert changed[128:, 16:580].mean() > 0.9  # the frame
    assert not changed[:90].any()
    assert first[:90].min() < 100  # title and prediction
