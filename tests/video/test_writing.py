"""Video files are written completely or not at all."""

import numpy as np
import pytest

from vtm.video.writing import write_video


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


def test_a_file_that_cannot_be_written_is_named(stamps, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for path, reason in ((tmp_path / "folder.mp4", IsADirectoryError), (tmp_path / "no" / "a.mp4", FileNotFoundError)):
        with pytest.raises(reason) as error:
            write_video(path, stamps.pictures(2), fps=10)
        assert error.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_errors_of_the_frames_stay_as_they_are(stamps, tmp_path):
    def lost():
        yield from stamps.pictures(2)
        raise FileNotFoundError(2, "lost", "source.png")

    with pytest.raises(FileNotFoundError, match=r"source\.png"):
        write_video(tmp_path / "a.mp4", lost(), fps=10)
