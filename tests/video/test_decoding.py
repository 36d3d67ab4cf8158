"""Files that cannot be opened or decoded raise one error with the path, and no file stays open."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.video.files import spoil
from vtm.video.decoding import VideoError
from vtm.video.reading import read_frames
from vtm.video.scanning import duration


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
@pytest.mark.parametrize("read", [duration, lambda path: read_frames(path, [0.0], size=16)], ids=["duration", "frames"])
def test_unreadable_files_are_one_error_with_the_path(clip, tmp_path, make, says, read):
    path = tmp_path / "bad.mp4"
    make(path, clip.read_bytes())
    with pytest.raises(VideoError, match=f"bad.mp4.*{says}"):
        read(path)


def write_cover(path: Path, codec: str) -> None:
    """Write a second of silence with a cover picture."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        sound = container.add_stream(codec, rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        kind, dtype = ("fltp", np.float32) if codec == "aac" else ("s16", np.int16)
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype), format=kind, layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


@pytest.mark.parametrize(("name", "codec"), [("song.flac", "flac"), ("song.m4a", "aac")])
def test_sound_with_a_cover_is_not_a_video(tmp_path, name, codec):
    write_cover(tmp_path / name, codec)
    for read in (duration, lambda path: read_frames(path, [0.0], size=16)):
        with pytest.raises(VideoError, match=rf"{name}: has no video stream, only a cover picture; give a video file"):
            read(tmp_path / name)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.jpg", "mjpeg", "yuvj420p"), ("a.png", "png", "rgb24")])
def test_a_picture_is_not_a_video(tmp_path, name, codec, pix_fmt):
    with av.open(str(tmp_path / name), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
        container.mux([*stream.encode(picture), *stream.encode(None)])
    (tmp_path / "renamed.mp4").write_bytes((tmp_path / name).read_bytes())
    for path in (tmp_path / name, tmp_path / "renamed.mp4"):
        with pytest.raises(VideoError, match=rf"{path.name}: is a picture, not a video; give a video file"):
            duration(path)


def test_an_unknown_codec_is_one_error_with_the_path(stamps, tmp_path):
    path = stamps.write(tmp_path / "new.mkv", 5, codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_NEXT3/ISO/ASP"))
    for read in (duration, lambda path: read_frames(path, [0.0], size=16)):
        with pytest.raises(VideoError, match=r"new\.mkv.*no decoder"):
            read(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_opened(tmp_path, make):
    make(tmp_path / "pipe.mp4")
    for read in (duration, lambda path: read_frames(path, [0.0], size=16)):
        with pytest.raises(VideoError, match=r"pipe\.mp4: cannot be read as a video \(it is not a regular file\)"):
            read(tmp_path / "pipe.mp4")


def test_a_colon_in_a_name_is_no_protocol(stamps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 talk.mp4", "file:100%25.mp4", "http://x.mp4"):
        stamps.write(Path(name), 5)
        assert stamps.read(read_frames(name, [0.3], size=stamps.size).pixels) == [3]
    Path("12:30 notes.mp4").write_text("words")
    for name, reason in (("12:30 notes.mp4", "Invalid data"), ("12:31.mp4", "No such file")):
        with pytest.raises(VideoError) as error:
            duration(name)
        assert str(error.value).startswith(f"{name}: cannot be read as a video ({reason}")
        assert "file:" not in str(error.value)


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
