"""Frames come in the order in which the decoder shows them, also where the time stamps of the file contradict it."""

from itertools import pairwise

import av
import pytest
import torch

from tests.video.files import pack, retime
from vtm.video.reading import read_frames
from vtm.video.scanning import duration, packet_table
from vtm.video.writing import write_video

WITHOUT_PRESENTATION_TIMES = [
    ("a.mp4", "libx264", {"g": "24", "bf": "3"}),
    ("a.mkv", "libx264", {"g": "250", "bf": "2"}),
    ("a.ts", "libx264", {"g": "24", "bf": "2"}),
    ("a.flv", "libx264", {"g": "24", "bf": "2"}),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=24"}),
    ("mpeg2.mp4", "mpeg2video", {"g": "12", "bf": "2"}),
    ("mpeg4.mp4", "mpeg4", {"g": "12", "bf": "2"}),
]


def check(stamps, path, count, fps):
    """Check that a video shows the pictures 0 .. count - 1, whether read together or one by one."""
    assert duration(path) == pytest.approx(count / fps, abs=0.06)
    times = [(number + 0.3) / fps for number in range(count)]
    together = read_frames(path, times, size=stamps.size, motion_grid=(3, 3))
    assert stamps.read(together.pixels) == list(range(count))
    assert together.substituted.sum() == 0
    for number in range(2, count, 7):
        alone = read_frames(path, times[number : number + 1], size=stamps.size, motion_grid=(3, 3))
        assert torch.equal(alone.pixels[0], together.pixels[number])
        assert torch.equal(alone.motion[0], together.motion[number])


def backward_steps(path):
    with av.open(str(path)) as container:
        shown = [frame.pts for frame in container.decode(video=0)]
    return sum(after < before for before, after in pairwise(shown))


@pytest.mark.parametrize(("name", "codec", "options"), WITHOUT_PRESENTATION_TIMES)
def test_decoding_times_in_place_of_presentation_times(stamps, tmp_path, name, codec, options):
    source = stamps.write(tmp_path / "source.mkv", 100, fps=20, codec=codec, **options)
    path = retime(source, tmp_path / name, lambda index, pts, dts: (50 * index, 50 * index))
    assert backward_steps(path) > 20
    check(stamps, path, 100, 20)


def test_b_frames_that_share_a_packet(stamps, tmp_path):
    source = stamps.write(tmp_path / "source.mkv", 120, fps=20, codec="mpeg4", g="24", bf="1", b_strategy="0")
    path = pack(source, tmp_path / "packed.avi")
    assert backward_steps(path) > 40
    check(stamps, path, 120, 20)


def test_frames_in_order_need_no_decoding(tmp_path, stamps):
    """An MPEG-2 stream without B-frames announces that frames may be reordered, but its time stamps are right."""
    write_video(tmp_path / "p.mp4", stamps.pictures(100), fps=20, codec="mpeg2video", options={"g": "12", "bf": "0"})
    assert packet_table(tmp_path / "p.mp4").stamps is None
    check(stamps, tmp_path / "p.mp4", 100, 20)
