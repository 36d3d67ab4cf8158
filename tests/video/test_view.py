"""Frames of every shape become the right squares at a bounded cost."""

import struct

import av
import numpy as np
import pytest
import torch

from vtm.video.reading import read_frames
from vtm.video.view import View


def waves(height, width):
    """Draw smooth waves, as seen in the middle of a plane."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2]).reshape(2, 1, 1)
    return np.stack([127 + 120 * np.sin(x / 9 + y / 7 + color) for color in range(3)], -1).astype(np.uint8)


def write(path, pictures, *, codec="rawvideo", pix_fmt="yuv420p", **options):
    """Write pictures of any size, without loss by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def turn(source, path, matrix=(0, 1, 0, -1, 0, 0)):
    """Write a copy of an mp4 file with a display matrix, a quarter turn clockwise by default."""
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *(value << 16 for value in matrix), 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("squash", "corner", "scaled"), [(False, (0, 8), (16, 32)), (True, (0, 0), (16, 16))])
def test_a_view_cuts_the_center_or_squashes(squash, corner, scaled):
    view = View.of(90, 180, size=16, squash=squash, turns=-3)
    assert (view.corner, view.scaled, view.turns) == (corner, scaled, 1)


@pytest.mark.parametrize("shape", [(480, 640), (1080, 1920), (720, 2880), (90, 360), (1, 4), (239, 421)])
def test_ordinary_frames_are_scaled_whole(shape):
    for height, width in (shape, shape[::-1]):
        assert View.of(height, width, size=224, squash=False, turns=0).part == (0, 0, height, width)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (1, 60000), (2, 4096), (16, 16000), (15, 16001), (3, 2**31)])
def test_the_cost_of_a_frame_is_bounded(shape, squash):
    for height, width in (shape, shape[::-1]):
        view = View.of(height, width, size=224, squash=squash, turns=1)
        top, left, rows, columns = view.part
        assert view.scaled[0] * view.scaled[1] <= 12 * 224**2
        assert (top % 4, left % 4) == (0, 0)  # whole chroma samples
        assert (height - rows, width - columns) == (2 * top, 2 * left)  # the middle


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv411p", "rgb24", "gray"])
@pytest.mark.parametrize("shape", [(2, 4096), (16, 16000), (15, 1601), (40, 800)])
def test_the_center_of_a_long_frame_is_that_of_its_middle(tmp_path, shape, pix_fmt):
    for height, width in (shape, shape[::-1]):
        picture = waves(height, width)
        margins = [max(0, long - 4 * short) // 8 * 4 for long, short in ((height, width), (width, height))]
        middle = picture[margins[0] : height - margins[0], margins[1] : width - margins[1]]
        pixels = [
            read_frames(write(tmp_path / "long.nut", [part], pix_fmt=pix_fmt), [0.0], size=32).pixels.float()
            for part in (picture, middle)
        ]
        difference = (pixels[0] - pixels[1]).abs()
        assert difference.max() <= 6  # the writer filters chroma across the ends of the middle
        assert pixels[0].std() > 5  # it is not blank


def test_a_long_frame_is_rotated(tmp_path):
    path = write(tmp_path / "long.mp4", [waves(16, 1024)] * 3, codec="libx264")
    upright, turned = (read_frames(name, [0.1], size=32).pixels for name in (path, turn(path, tmp_path / "turned.mp4")))
    assert torch.equal(turned, torch.rot90(upright, -1, (2, 3)))


def test_motion_in_a_long_frame_has_its_speed(tmp_path):
    wide = waves(64, 1100)
    path = write(
        tmp_path / "pan.mp4",
        [wide[:, 3 * number : 3 * number + 1024] for number in range(20)],
        codec="libx264",
        preset="veryfast",
        bf="0",
    )
    for name, cells in ((path, (2, 8)), (turn(path, tmp_path / "turned.mp4"), (8, 2))):
        read = read_frames(name, [1.0], size=64, motion_grid=cells)
        assert read.from_codec.all()
        assert ((read.motion - 3).abs() < 0.3).float().mean() > 0.85
