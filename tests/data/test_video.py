import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vtm.data.video import TooShortError, VideoError, duration, read_frames, write_video

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


@pytest.fixture(scope="module")
def clip(stamps, tmp_path_factory):
    return stamps.write(tmp_path_factory.mktemp("video") / "clip.mp4", 120, fps=30, g="24", bf="3")


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


def test_shortest_side_is_scaled_and_the_centre_cut_out(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:60] = 255  # a square with one white half, and black outside of it
    picture[::2, 60:90] = 255  # and one half that averages to grey
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


def packets(path):
    """Find where the packets of a file lie, in the order of display: (position, size)."""
    with av.open(str(path)) as container:
        found = [(packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    return [packet[1:] for packet in sorted(found)]


def spoil(source, path, numbers, make=bytes):
    """Overwrite the packets of some frames."""
    content = bytearray(source.read_bytes())
    for position, size in (packets(source)[number] for number in numbers):
        content[position : position + size] = make(size)
    path.write_bytes(content)


@pytest.mark.parametrize("make", [bytes, np.random.default_rng(0).bytes], ids=["zeroed", "noise"])
def test_the_nearest_frame_stands_in_for_a_damaged_one(stamps, tmp_path, make):
    whole = stamps.write(tmp_path / "whole.mp4", 60, g="1")
    spoil(whole, tmp_path / "damaged.mp4", [7, 30, 31, 32, 33, 59], make)
    frames = read_frames(tmp_path / "damaged.mp4", [number / 10 for number in range(60)], size=stamps.size)
    found = stamps.read(frames.pixels)
    assert frames.substituted.nonzero().flatten().tolist() == [7, 30, 31, 32, 33, 59]
    assert frames.substituted.sum() == 6
    assert found[7] in (6, 8)
    assert found[30:34] == [29, 29, 34, 34]
    assert found[59] == 58
    assert [found[number] for number in range(60) if number not in (7, 30, 31, 32, 33, 59)] == [
        number for number in range(60) if number not in (7, 30, 31, 32, 33, 59)
    ]
    few = read_frames(tmp_path / "damaged.mp4", [3.2, 0.2, 3.3, 5.9], size=stamps.size, frames_per_step=2)
    assert stamps.read(few.pixels) == [34, 34, 2, 3, 34, 34, 58, 58]
    assert few.substituted.tolist() == [2, 0, 1, 2]


def test_a_group_without_its_key_frame_never_shows_another_time(stamps, tmp_path):
    whole = stamps.write(tmp_path / "whole.mp4", 72, fps=24, g="24", bf="2", sc_threshold="0")
    spoil(whole, tmp_path / "damaged.mp4", range(24, 48))
    frames = read_frames(tmp_path / "damaged.mp4", [number / 24 for number in range(72)], size=stamps.size)
    found = stamps.read(frames.pixels)
    assert found[:24] == list(range(24))
    assert found[48:] == list(range(48, 72))
    assert frames.substituted.tolist() == [0] * 24 + [1] * 24 + [0] * 24
    assert set(found[24:48]) == {23, 48}


def test_the_nearest_frame_may_be_several_groups_away(stamps, tmp_path):
    options = {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=0:scenecut=0"}
    whole = stamps.write(tmp_path / "whole.mp4", 96, fps=12, codec="libx265", **options)
    spoil(whole, tmp_path / "damaged.mp4", range(12, 72))
    for wanted, nearest in (([40], [11]), ([44], [72]), ([14, 40, 44, 70], [11, 11, 72, 72])):
        frames = read_frames(tmp_path / "damaged.mp4", [number / 12 for number in wanted], size=stamps.size)
        assert stamps.read(frames.pixels) == nearest


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"g": "1"}), ("libx265", {"x265-params": "log-level=none:keyint=1"})]
)
def test_a_damaged_frame_does_not_move(stamps, tmp_path, codec, options):
    whole = stamps.write(tmp_path / "whole.mp4", 20, codec=codec, **options)
    spoil(whole, tmp_path / "damaged.mp4", [7])
    times = [number / 10 for number in (3, 6, 7, 8)]
    motion = read_frames(tmp_path / "damaged.mp4", times, size=stamps.size, motion_grid=(3, 3)).motion
    assert (motion.amax((1, 2)) > 0.1).tolist() == [True, False, False, True]


def test_a_damaged_frame_without_times_keeps_its_place(stamps, tmp_path):
    whole = stamps.write(tmp_path / "whole.h264", 40, fps=25, g="1")
    content = whole.read_bytes()
    starts = [place for place in range(len(content)) if content[place : place + 4] in (b"\0\0\1\x65", b"\0\0\1\x25")]
    assert len(starts) == 40
    (tmp_path / "damaged.h264").write_bytes(content[: starts[20] + 5] + bytes(3) + content[starts[21] - 1 :])
    frames = read_frames(tmp_path / "damaged.h264", [0.76, 0.8, 0.84, 1.56], size=stamps.size)
    found = stamps.read(frames.pixels)
    assert [found[0], found[2], found[3]] == [19, 21, 39]
    assert duration(tmp_path / "damaged.h264") == pytest.approx(1.6)


@pytest.mark.parametrize("name", ["flipped.mp4", "flipped.mkv", "flipped.ts", "flipped.avi"])
def test_flipped_bytes_cost_frames_but_not_the_file(stamps, tmp_path, name):
    path = stamps.write(tmp_path / name, 100, fps=25, g="1")
    content = bytearray(path.read_bytes())
    for position, length in packets(path)[40:60:4]:
        for byte in range(position + length // 2, position + length - 4, 5):
            content[byte] ^= 255
    path.write_bytes(content)
    frames = read_frames(path, [number / 25 for number in (*range(40), *range(57, 100))], size=stamps.size)
    assert (stamps.read(frames.pixels), frames.substituted.sum()) == ([*range(40), *range(57, 100)], 0)
    assert read_frames(path, [number / 25 for number in range(100)], size=16).pixels.shape[0] == 100


def test_a_file_in_which_no_frame_can_be_decoded_is_an_error(stamps, tmp_path):
    whole = stamps.write(tmp_path / "whole.mp4", 30, g="10")
    spoil(whole, tmp_path / "noise.mp4", range(30))
    assert duration(tmp_path / "noise.mp4") == pytest.approx(3.0)
    with pytest.raises(VideoError, match=r"noise\.mp4: no frame can be decoded"):
        read_frames(tmp_path / "noise.mp4", [0.0, 2.0], size=16)


def test_a_damaged_time_stamp_does_not_move_the_others(stamps, tmp_path):
    path = stamps.write(tmp_path / "stamp.ts", 100, fps=25, g="25", bf="0")
    content = bytearray(path.read_bytes())
    position, _ = packets(path)[10]
    header = content.index(b"\0\0\1\xe0", position)
    content[header + 9] |= 0x08  # the highest bit but one of the PTS: half a day
    path.write_bytes(content)
    assert duration(path) == pytest.approx(4.0, abs=0.1)
    frames = read_frames(path, [0.2, 2.0, 3.0], size=stamps.size)
    assert stamps.read(frames.pixels) == [5, 50, 75]


def remux(source, path, **options):
    """Copy the packets into another container."""
    with av.open(str(source)) as reader, av.open(path, "w", **options) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)


class Pipe(io.RawIOBase):
    """A file in which nothing can be corrected afterwards."""

    def __init__(self, path):
        self.file = path.open("wb")

    def writable(self):
        return True

    def seekable(self):
        return False

    def write(self, content):
        return self.file.write(content)

    def close(self):
        self.file.close()
        super().close()


def live(source, path):
    with Pipe(path) as pipe:
        remux(source, pipe, format="matroska", options={"live": "1"})


CONTAINERS = {
    "live.mkv": live,
    "fragments.mp4": lambda source, path: remux(source, str(path), options={"movflags": "frag_keyframe+empty_moov"}),
    "late.ts": lambda source, path: remux(source, str(path), options={"output_ts_offset": "10"}),
    "flash.flv": lambda source, path: remux(source, str(path)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_do_not_know_their_length_or_start(stamps, clip, tmp_path, name):
    CONTAINERS[name](clip, tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].frames == 0
    wanted = [119, 3, 97, 50, 26, 25, 24, 0]
    frames = read_frames(tmp_path / name, [(number + 0.2) / 30 for number in wanted], size=stamps.size)
    assert (stamps.read(frames.pixels), frames.substituted.sum()) == (wanted, 0)
    assert duration(tmp_path / name) == pytest.approx(4.0, abs=0.04)


def test_a_cut_file_is_read_up_to_the_cut(stamps, clip, tmp_path):
    remux(clip, str(tmp_path / "fast.mp4"), options={"movflags": "faststart"})
    remux(clip, str(tmp_path / "whole.mkv"))
    for name, cut in (("fast.mp4", "cut.mp4"), ("whole.mkv", "cut.mkv")):
        content = (tmp_path / name).read_bytes()
        position, _ = packets(tmp_path / name)[61]
        path = tmp_path / cut
        path.write_bytes(content[: position + 8])
        assert 1.9 < duration(path) < 2.2
        frames = read_frames(path, [number / 30 for number in range(60)], size=stamps.size)
        assert (stamps.read(frames.pixels), frames.substituted.sum()) == ([*range(60)], 0)
        with pytest.raises(TooShortError, match=rf"{cut}.*the file ends at (1|2)\."):
            read_frames(path, [0.0, 3.9], size=16)


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


def test_an_unknown_codec_is_one_error_with_the_path(stamps, tmp_path):
    path = stamps.write(tmp_path / "new.mkv", 5, codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_NEXT3/ISO/ASP"))
    for read in (duration, lambda path: read_frames(path, [0.0], size=16)):
        with pytest.raises(VideoError, match=r"new\.mkv.*no decoder"):
            read(path)


def test_a_file_that_changes_is_read_anew(stamps, tmp_path):
    path = stamps.write(tmp_path / "clip.mp4", 40)
    assert duration(path) == pytest.approx(4.0)
    stamps.write(path, 20)
    assert duration(path) == pytest.approx(2.0)
    assert stamps.read(read_frames(path, [1.9], size=stamps.size).pixels) == [19]


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


def moving(path, count=60, *, codec, fps=10, **options):
    """Write a texture that moves, so that damage shows."""
    base = np.kron(np.random.default_rng(0).integers(0, 255, (18, 20, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
    pictures = (np.roll(base, (2 * number, 3 * number), (0, 1))[:64, :96].copy() for number in range(count))
    write_video(path, pictures, fps=fps, codec=codec, options=options)
    return path


@pytest.mark.parametrize("make", [bytes, np.random.default_rng(0).bytes], ids=["zeroed", "noise"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "60", "bf": "0", "sc_threshold": "0"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:keyint=60:min-keyint=60:bframes=0:scenecut=0"}),
        ("a.mp4", "mpeg4", {"g": "60", "bf": "0", "sc_threshold": "1000000000"}),
    ],
    ids=["h264", "hevc", "mpeg4"],
)
def test_damage_counts_up_to_the_next_key_frame(tmp_path, name, codec, options, make):
    whole = moving(tmp_path / name, 120, codec=codec, **options)
    times = [number / 10 for number in range(120)]
    sound = read_frames(whole, times, size=32).pixels
    spoil(whole, tmp_path / "damaged.mp4", [10], make)
    frames = read_frames(tmp_path / "damaged.mp4", times, size=32)
    assert frames.substituted.tolist() == [0] * 10 + [1] * 50 + [0] * 60
    nearest = [*range(10), *[9] * 25, *[60] * 25, *range(60, 120)]
    assert torch.equal(frames.pixels, sound[nearest])


FRAGILE = [
    ("a.mp4", "libx264", {"g": "20", "bf": "2"}),
    ("a.mkv", "libx264", {"g": "20", "x264-params": "open-gop=1:bframes=3"}),
    ("a.ts", "libx264", {"g": "60", "bf": "2"}),
    ("a.avi", "mpeg4", {"g": "20", "bf": "2"}),
    ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    ("refreshed.mp4", "libx264", {"g": "20", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"}),
    ("without_times.avi", "libx264", {"g": "20", "bf": "2"}),
    ("a.webm", "libvpx-vp9", {"g": "20", "cpu-used": "8"}),
]


def flip(path, seed, count=8):
    """Flip bits anywhere but near the beginning and the end."""
    content, generator = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for position in generator.integers(len(content) // 10, len(content) * 9 // 10, count):
        content[position] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "codec", "options"), FRAGILE)
def test_frames_of_a_damaged_file_do_not_depend_on_the_others(tmp_path, name, codec, options, seed):
    path = moving(tmp_path / name, codec=codec, fps=25, **options)
    flip(path, seed)
    times = [number / 25 for number in range(0, 56, 5)]
    together = read_frames(path, times, size=32, motion_grid=(2, 2))
    for step in (1, 4):
        parts = [
            read_frames(path, times[start : start + step], size=32, motion_grid=(2, 2))
            for start in range(0, len(times), step)
        ]
        for part, expected in zip(zip(*parts, strict=True), together, strict=True):
            assert torch.equal(torch.cat(part), expected)


def test_most_frames_spoilt_by_flipped_bits_are_counted(tmp_path):
    times = [number / 25 for number in range(120)]
    wrong = counted = 0
    for seed in range(8):
        path = moving(tmp_path / "a.mp4", 120, codec="libx264", fps=25, g="60")
        sound = read_frames(path, times, size=32).pixels.float()
        flip(path, seed, 3)
        frames = read_frames(path, times, size=32)
        differs = (frames.pixels.float() - sound).abs().mean((1, 2, 3)) > 10
        wrong += int(differs.sum())
        counted += int((differs & (frames.substituted > 0)).sum())
    assert wrong > 200
    assert counted > 0.8 * wrong


def test_damaged_frames_are_shown_and_counted_if_there_are_no_others(tmp_path):
    whole = moving(tmp_path / "whole.mp4", 30, codec="libx264", g="30", bf="0", sc_threshold="0")
    position, size = packets(whole)[0]
    content = bytearray(whole.read_bytes())
    content[position + 3 * size // 4 : position + size] = bytes(size - 3 * size // 4)
    whole.write_bytes(content)
    frames = read_frames(whole, [number / 10 for number in range(30)], size=32)
    assert frames.substituted.tolist() == [1] * 30
    assert frames.pixels.float().std() > 30
