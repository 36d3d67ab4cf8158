"""The right frames are read at given times, from many codecs and containers, as upright squares."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tests.video.files import join, moving, spoil
from vtm.video.decoding import TooShortError, VideoError
from vtm.video.reading import read_frames, read_whole_frames
from vtm.video.scanning import duration
from vtm.video.writing import write_video

ENCODERS = [
    ("b_frames.mp4", "libx264", {"g": "24", "bf": "3"}),
    ("open_gop.mp4", "libx264", {"g": "24", "bf": "3", "x264-params": "open-gop=1"}),
    ("one_gop.mkv", "libx264", {"g": "250", "bf": "2"}),
    ("transport.ts", "libx264", {"g": "24", "bf": "3"}),
    ("b_frames.avi", "mpeg4", {"g": "12", "bf": "2"}),
    ("hidden_frames.webm", "libvpx-vp9", {"g": "40", "cpu-used": "8"}),
    ("b_frames_without_times.avi", "libx264", {"g": "24", "bf": "3"}),
    ("raw.h264", "libx264", {"g": "24", "bf": "3"}),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=24"}),
    ("raw.hevc", "libx265", {"x265-params": "log-level=none:keyint=24"}),
    ("intra.mp4", "libx264", {"g": "1"}),
    ("refreshed_bit_by_bit.mp4", "libx264", {"g": "24", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"}),
    ("mpeg2.ts", "mpeg2video", {"g": "12", "bf": "2"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), ENCODERS)
def test_every_frame_is_found_by_its_time(stamps, tmp_path, name, codec, options):
    path = stamps.write(tmp_path / name, 120, fps=30, codec=codec, **options)
    wanted = [0, 119, *torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()]
    frames = read_frames(path, [number / 30 for number in wanted], size=stamps.size).pixels
    assert frames.shape == (122, 3, stamps.size, stamps.size)
    assert frames.dtype == torch.uint8
    assert stamps.read(frames) == wanted


@pytest.mark.parametrize(("name", "codec", "options"), ENCODERS)
def test_few_frames_are_exact_too(stamps, tmp_path, name, codec, options):
    path = stamps.write(tmp_path / name, 120, fps=30, codec=codec, **options)
    for wanted in ([97], [20, 71], [3, 26, 50, 118]):
        times = [(number + 0.4) / 30 for number in wanted]
        assert stamps.read(read_frames(path, times, size=stamps.size).pixels) == wanted


def test_a_frame_stays_until_the_next(stamps, clip):
    times = [1.95 / 30, 2 / 30, 2.01 / 30, 2.95 / 30]
    assert stamps.read(read_frames(clip, times, size=stamps.size).pixels) == [1, 2, 2, 2]


def test_after_the_end_comes_the_last_frame(stamps, clip):
    assert stamps.read(read_frames(clip, [119 / 30, 4.0, 5.4], size=stamps.size).pixels) == [119, 119, 119]


def test_a_file_that_is_shorter_than_its_annotation_is_refused(clip):
    with pytest.raises(TooShortError, match=r"clip\.mp4: expected a frame at 6\.00 s, but the file ends at 4\.00 s"):
        read_frames(clip, [1.0, 6.0], size=8)


def test_steps_of_several_frames_are_consecutive(stamps, clip):
    frames = read_frames(clip, [1.01, 0.0, 118 / 30], size=stamps.size, frames_per_step=3).pixels
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
    frames = read_frames(path, [0.0, 0.15, 1.1, 1.2, 3.9, 4.0, 4.4, 5.4], size=stamps.size).pixels
    assert stamps.read(frames) == [0, 1, 2, 3, 4, 5, 5, 6]
    assert 4.5 < duration(path) < 5.5


def test_shortest_side_is_scaled_and_the_center_cut_out(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:60] = 255  # a square with one white half, and black outside of it
    picture[::2, 60:90] = 255  # and one half that averages to gray
    write_video(tmp_path / "wide.mp4", [picture] * 3, fps=5, options={"crf": "1"})
    frame = read_frames(tmp_path / "wide.mp4", [0.0], size=30).pixels[0].float().mean(0)
    assert frame[3:-3, :13].min() > 245
    assert 100 < frame[3:-3, 17:].min() <= frame[3:-3, 17:].max() < 155


def test_squashing_ignores_the_aspect_ratio(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 60:] = 255
    picture[:30] //= 2
    write_video(tmp_path / "wide.mp4", [picture] * 3, fps=5, options={"crf": "1"})
    frame = read_frames(tmp_path / "wide.mp4", [0.0], size=30, squash=True).pixels[0].float().mean(0)
    quarters = [frame[row : row + 9, column : column + 9].mean() for row in (3, 18) for column in (3, 18)]
    assert quarters == pytest.approx([0, 127, 0, 255], abs=8)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(("quarters", "matrix"), [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))])
def test_rotation_of_the_container_is_applied(stamps, clip, tmp_path, quarters, matrix, squash):
    content = bytearray(clip.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    upright = read_frames(clip, [1.0], size=stamps.size, squash=squash).pixels
    turned = read_frames(tmp_path / "turned.mp4", [1.0], size=stamps.size, squash=squash).pixels
    assert torch.equal(turned, torch.rot90(upright, -quarters, (2, 3)))  # clockwise


def write_pictures(path, pictures, *, codec="libx264", pix_fmt="yuv420p", **options):
    """Write pictures of any size in any format, at 10 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (1, {}),
        (5, {"bf": "3"}),
        (20, {"pix_fmt": "yuv420p10le"}),
        (20, {"pix_fmt": "yuv444p"}),
        (20, {"codec": "libsvtav1", "preset": "12", "crf": "10", "svtav1-params": "keyint=8"}),
    ],
    ids=["one", "five", "10_bit", "odd_size", "av1"],
)
def test_short_deep_and_odd_videos(stamps, tmp_path, count, settings):
    pictures = [stamps.picture(number) for number in range(count)]
    if settings.get("pix_fmt") == "yuv444p":
        pictures = [np.pad(picture, ((0, 1), (0, 1), (0, 0)), mode="edge") for picture in pictures]
    write_pictures(tmp_path / "odd.mp4", pictures, **settings)
    assert duration(tmp_path / "odd.mp4") == pytest.approx(count / 10)
    order = [*range(count)][::-1]
    for wanted in (order, order[:1], order[len(order) // 2 :][:1]):
        frames = read_frames(tmp_path / "odd.mp4", [number / 10 for number in wanted], size=stamps.size)
        assert (stamps.read(frames.pixels), frames.substituted.sum()) == (wanted, 0)


@pytest.mark.parametrize("times", [[], [1.0, -0.5]])
def test_times_must_be_there_and_not_negative(clip, times):
    with pytest.raises(ValueError, match=r"not negative"):
        read_frames(clip, times, size=16)


def every_frame(path, shape=None):
    """Decode a whole file with PyAV alone: the time stamp of each frame, and its pixels (H, W, 3)."""
    with av.open(str(path)) as container:
        area = av.video.reformatter.Interpolation.AREA
        height, width = shape or (None, None)
        frames = [
            (frame.time, frame.reformat(width, height, "rgb24", interpolation=area).to_ndarray())
            for frame in container.decode(video=0)
        ]
    start = frames[0][0]
    return [time - start for time, _ in frames], np.stack([pixels for _, pixels in frames])


@pytest.mark.parametrize(("name", "codec", "options"), ENCODERS[:6])
@pytest.mark.parametrize("shortest_side", [None, 64, 40])
def test_whole_frames_are_those_of_a_slow_reader(tmp_path, name, codec, options, shortest_side):
    path = moving(tmp_path / name, 40, codec=codec, **options)  # 64 x 96
    stamps, pixels = every_frame(path, (40, 60) if shortest_side == 40 else None)
    wanted = [3, 17, 18, 39]
    read = read_whole_frames(path, [stamps[number] + 0.04 for number in wanted[::-1]], shortest_side=shortest_side)
    assert read.pixels.shape == (4, 3, *pixels.shape[1:3])
    assert np.array_equal(read.pixels.numpy().transpose(0, 2, 3, 1), pixels[wanted])
    assert read.times == pytest.approx([stamps[number] for number in wanted])
    assert read.substituted == 0


def test_whole_frames_appear_once_and_in_order(stamps, clip):
    read = read_whole_frames(clip, [2.0, 0.0, 2.01, 1.0, 2.0])
    assert stamps.read(read.pixels[..., 8:56]) == [0, 30, 60]
    assert read.times == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("quarters", "matrix"), [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))])
def test_whole_frames_are_upright(clip, tmp_path, quarters, matrix):
    content = bytearray(clip.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    for shortest_side in (None, 24):
        upright = read_whole_frames(clip, [1.0], shortest_side=shortest_side).pixels
        turned = read_whole_frames(tmp_path / "turned.mp4", [1.0], shortest_side=shortest_side).pixels
        assert torch.equal(turned, torch.rot90(upright, -quarters, (2, 3)))  # clockwise


def test_whole_frames_have_square_pixels(tmp_path):
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.codec_context.sample_aspect_ratio = 48, 64, Fraction(3, 2)
        for number in range(3):
            picture = np.full((48, 64, 3), 50 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_whole_frames(tmp_path / "wide.mp4", [0.0, 0.1]).pixels.shape == (2, 3, 48, 96)
    assert read_whole_frames(tmp_path / "wide.mp4", [0.0, 0.1], shortest_side=24).pixels.shape == (2, 3, 24, 48)


def test_sizes_that_change_become_the_first(stamps, tmp_path):
    pictures = [stamps.picture(number) for number in range(4)]
    write_video(tmp_path / "small.h264", pictures[:2], fps=10, options={"bf": "0"})
    larger = (picture.repeat(2, 0).repeat(2, 1) for picture in pictures[2:])
    write_video(tmp_path / "large.h264", larger, fps=10, options={"bf": "0"})
    path = join(tmp_path / "both.h264", tmp_path / "small.h264", tmp_path / "large.h264")
    read = read_whole_frames(path, [number * duration(path) / 4 for number in range(4)])
    assert read.pixels.shape == (4, 3, 48, 64)
    assert stamps.read(read.pixels[..., 8:56]) == [0, 1, 2, 3]


def test_damaged_whole_frames_are_replaced_and_counted(tmp_path):
    path = moving(tmp_path / "clean.mp4", 60, codec="libx264", g="10", bf="0")
    _, pixels = every_frame(path)
    spoil(path, tmp_path / "damaged.mp4", [22])
    read = read_whole_frames(tmp_path / "damaged.mp4", [number / 10 for number in (5, 21, 25, 40)])
    shown = read.pixels.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(shown[[0, 1, 3]], pixels[[5, 21, 40]])
    assert any(np.array_equal(shown[2], pixels[number]) for number in (21, 30))
    assert read.substituted == 1
    assert read.times == pytest.approx([0.5, 2.1, 2.5, 4.0])


def test_whole_frames_that_cannot_be_read(clip, tmp_path):
    with pytest.raises(TooShortError, match=r"expected a frame at 6\.00 s, but the file ends at 4\.00 s"):
        read_whole_frames(clip, [6.0])
    with pytest.raises(ValueError, match="not negative"):
        read_whole_frames(clip, [])
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_whole_frames(tmp_path / "text.mp4", [0.0])
