"""Files that cannot be opened or decoded are one error, and leave nothing open."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.video.files import spoil
from vtm.data.video import VideoError, duration, read_frames


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path, whole: None, "cannot be read"),
        (lambda path, whole: path.touch(), "cannot be read"),
        (lambda path, whole: path.write_text("not a video"), "cannot be read"),
        (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "cannot be read"),
        (lambda path, whole: write_audio(path), "no video stream"),
    ],
    ids=["absent", "empty", "text", "cut", "audio"],
)
@pytest.mark.parametrize("read", [duration, lambda path: read_frames(path, [0.0], size=16)])
def test_unreadable_files_are_one_error_with_the_path(clip, tmp_path, make, says, read):
    path = tmp_path / "bad.mp4"
    make(path, clip.read_bytes())
    with pytest.raises(VideoError, match=f"bad.mp4.*{says}"):
        read(path)


def test_an_unknown_codec_is_one_error_with_the_path(stamps, tmp_path):
    path = stamps.write(tmp_path / "new.mkv", 5, codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_NEXT3/ISO/ASP"))
    for read in (duration, lambda path: read_frames(path, [0.0], size=16)):
        with pytest.raises(VideoError, match=r"new\.mkv.*no decoder"):
            read(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_errors_leave_no_file_open(stamps, clip, tmp_path):
    whole = stamps.write(tmp_path / "whole.mp4", 30)
    spoil(whole, tmp_path / "noise.mp4", range(30))
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for path in (tmp_path / "noise.mp4", tmp_path / "cut.mp4", tmp_path / "absent.mp4", clip):
        with pytest.raises(VideoError) as error:
            read_frames(path, [0.0, 9.0] if path == clip else [0.0], size=16)
        kept.append(error)
    read_frames(clip, [0.5], size=16)
    assert len(os.listdir("/proc/self/fd")) == before
