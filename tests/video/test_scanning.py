"""Durations and time stamps come from the packets, even if the header disagrees."""

import io
import tracemalloc

import av
import numpy as np
import pytest

from tests.video.files import packets, remux
from vtm.video.decoding import TooShortError
from vtm.video.reading import read_frames
from vtm.video.scanning import duration, packet_table
from vtm.video.writing import write_video


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


def test_a_damaged_time_stamp_does_not_move_the_others(stamps, tmp_path):
    path = stamps.write(tmp_path / "stamp.ts", 100, fps=25, g="25", bf="0")
    content = bytearray(path.read_bytes())
    position, _ = packets(path)[10]
    header = content.index(b"\0\0\1\xe0", position)
    content[header + 9] |= 0x08  # the second-highest bit of the PTS: half a day
    path.write_bytes(content)
    assert duration(path) == pytest.approx(4.0, abs=0.1)
    frames = read_frames(path, [0.2, 2.0, 3.0], size=stamps.size)
    assert stamps.read(frames.pixels) == [5, 50, 75]


class Pipe(io.RawIOBase):
    """A file object that cannot seek, so that the muxer cannot correct its header."""

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


def test_a_file_that_changes_is_read_anew(stamps, tmp_path):
    path = stamps.write(tmp_path / "clip.mp4", 40)
    assert duration(path) == pytest.approx(4.0)
    stamps.write(path, 20)
    assert duration(path) == pytest.approx(2.0)
    assert stamps.read(read_frames(path, [1.9], size=stamps.size).pixels) == [19]


def test_a_long_video_takes_some_bytes_for_each_frame(tmp_path):
    count, picture = 20_000, np.zeros((16, 16, 3), np.uint8)
    write_video(
        tmp_path / "long.mkv", (picture for _ in range(count)), fps=30, codec="mpeg4", options={"g": "300", "bf": "2"}
    )
    tracemalloc.start()
    try:
        table = packet_table(tmp_path / "long.mkv")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table.pts) == count
    assert peak < 120 * count
