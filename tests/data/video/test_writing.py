"""Written files are whole or absent."""

import numpy as np
import pytest

from vtm.data.video import write_video


def test_an_interrupted_write_leaves_nothing_behind(stamps, tmp_path):
    def interrupted():
        yield from stamps.pictures(20)
        raise KeyboardInterrupt

    stamps.write(tmp_path / "old.mp4", 5)
    before = (tmp_path / "old.mp4").read_bytes()
    for name in ("old.mp4", "new.mp4"):
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / name, interrupted(), fps=10)
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "one or more frames"),
        ([np.zeros((16, 17, 3), np.uint8)], "even"),
        ([np.zeros((16, 16, 3), np.float32)], "uint8"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], "expected all frames"),
    ],
)
def test_write_checks_its_frames(tmp_path, frames, says):
    with pytest.raises(ValueError, match=says):
        write_video(tmp_path / "video.mp4", frames, fps=10)
    assert not list(tmp_path.iterdir())
