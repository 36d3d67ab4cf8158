import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vtm.data.video import VideoError, duration, read_frames, write_video

ENCODERS = [
    ("b_frames.mp4", "libx264", {"g": "24", "bf": "3"}),
    ("open_gop.mp4", "libx264", {"g": "24", "bf": "3", "x264-params": "open-gop=1"}),
    ("one_gop.mkv", "libx264", {"g": "250", "bf": "2"}),
    ("transport.ts", "libx264", {"g": "24", "bf": "3"}),
    ("b_frames.avi", "mpeg4", {"g": "12", "bf": "2"}),
    ("hidden_frames.webm", "libvpx-vp9", {"g": "40", "cpu-used": "8"}),
]


@pytest.fixture(scope="module")
def clip(stamps, tmp_path_factory):
    return stamps.write(tmp_path_factory.mktemp("video") / "clip.mp4", 120, fps=30, g="24", bf="3")


@pytest.mark.parametrize(("name", "codec", "options"), ENCODERS)
def test_every_frame_is_found_by_its_time(stamps, tmp_path, name, codec, options):
    path = stamps.write(tmp_path / name, 120, fps=30, codec=codec, **options)
    wanted = [0, 119, *torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()]
    frames = read_frames(path, [number / 30 for number in wanted], size=stamps.size)
    assert frames.shape == (122, 3, stamps.size, stamps.size)
    assert frames.dtype == torch.uint8
    assert stamps.read(frames) == wanted


@pytest.mark.parametrize(("name", "codec", "options"), ENCODERS)
def test_few_frames_are_exact_too(stamps, tmp_path, name, codec, options):
    path = stamps.write(tmp_path / name, 120, fps=30, codec=codec, **options)
    for wanted in ([97], [20, 71], [3, 26, 50, 118]):
        times = [(number + 0.4) / 30 for number in wanted]
        assert stamps.read(read_frames(path, times, size=stamps.size)) == wanted


def test_a_frame_stays_until_the_next(stamps, clip):
    times = [1.95 / 30, 2 / 30, 2.01 / 30, 2.95 / 30]
    assert stamps.read(read_frames(clip, times, size=stamps.size)) == [1, 2, 2, 2]


def test_after_the_end_comes_the_last_frame(stamps, clip):
    assert stamps.read(read_frames(clip, [119 / 30, 4.0, 5.4], size=stamps.size)) == [119, 119, 119]


def test_a_file_that_is_shorter_than_its_annotation_is_refused(clip):
    with pytest.raises(VideoError, match=r"clip\.mp4: expected a frame at 6\.00 s, but the file ends at 4\.00 s"):
        read_frames(clip, [1.0, 6.0], size=8)


def test_steps_of_several_frames_are_consecutive(stamps, clip):
    frames = read_frames(clip, [1.01, 0.0, 118 / 30], size=stamps.size, frames_per_step=3)
    assert stamps.read(frames) == [30, 31, 32, 0, 1, 2, 118, 119, 119]


@pytest.mark.parametrize("offset", [0, 7])
def test_time_stamps_rule_at_variable_rates_and_start_offsets(stamps, tmp_path, offset):
    at = [0.0, 0.1, 0.2, 1.2, 1.3, 4.0, 4.5]
    path = tmp_path / "variable.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2"})
        stream.height, stream.width = stamps.picture(0).shape[:2]
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(at):
            frame = av.VideoFrame.from_ndarray(stamps.picture(number), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (offset + time)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = read_frames(path, [0.0, 0.15, 1.1, 1.2, 3.9, 4.0, 4.4, 5.4], size=stamps.size)
    assert stamps.read(frames) == [0, 1, 2, 3, 4, 5, 5, 6]
    assert 4.5 < duration(path) < 5.5


def test_shortest_side_is_scaled_and_the_centre_cut_out(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:60] = 255  # a square with one white half, and black outside of it
    picture[::2, 60:90] = 255  # and one half that averages to grey
    write_video(tmp_path / "wide.mp4", [picture] * 3, fps=5, options={"crf": "1"})
    frame = read_frames(tmp_path / "wide.mp4", [0.0], size=30)[0].float().mean(0)
    assert frame[3:-3, :13].min() > 245
    assert 100 < frame[3:-3, 17:].min() <= frame[3:-3, 17:].max() < 155


def test_rotation_of_the_container_is_applied(stamps, clip, tmp_path):
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "portrait.mp4").write_bytes(content)
    upright = read_frames(clip, [1.0], size=stamps.size)
    turned = read_frames(tmp_path / "portrait.mp4", [1.0], size=stamps.size)
    assert torch.equal(turned, torch.rot90(upright, -1, (2, 3)))  # a quarter turn clockwise


def test_duration_counts_the_time_of_the_last_frame(stamps, clip, tmp_path):
    assert duration(clip) == pytest.approx(4.0)
    assert duration(stamps.write(tmp_path / "one.mp4", 1, fps=10)) == pytest.approx(0.1)


def test_duration_comes_from_the_packets_and_not_from_the_header(stamps, tmp_path):
    path = stamps.write(tmp_path / "cut.mkv", 200, fps=10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(20e6)
    assert 5 < duration(path) < 15


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


def test_damaged_frames_are_an_error_and_nothing_is_put_in_their_place(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 48, 3), dtype=np.uint8)
    path = tmp_path / "damaged.mp4"
    write_video(path, noise, fps=10, options={"g": "20"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = bytes(5000)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged.mp4"):
        read_frames(path, [number / 10 for number in range(60)], size=48)
    assert len(read_frames(path, [0.0, 0.5], size=48)) == 2  # the part before is as good as ever


def test_avi_with_unordered_b_frames_is_refused(stamps, tmp_path):
    path = stamps.write(tmp_path / "old.avi", 40, bf="2")
    with pytest.raises(VideoError, match=r"old.avi.*B-frames"):
        read_frames(path, [0.0], size=16)


@pytest.mark.parametrize("times", [[], [1.0, -0.5]])
def test_times_must_be_there_and_not_negative(clip, times):
    with pytest.raises(ValueError, match=r"not negative"):
        read_frames(clip, times, size=16)


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
