"""Frames of every shape become the right squares at a bounded cost."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from vtm.video.reading import has_plain_pixels, read_frames
from vtm.video.view import View


def waves(height, width):
    """Draw smooth waves, as seen in the middle of a plane."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2]).reshape(2, 1, 1)
    return np.stack([127 + 120 * np.sin(x / 9 + y / 7 + color) for color in range(3)], -1).astype(np.uint8)


def write(path, pictures, *, codec="rawvideo", pix_fmt="yuv420p", pixel_aspect=None, **options):
    """Write pictures of any size, without loss by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
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


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shape", [(16, 27), (27, 16)])
def test_crops_lie_along_the_longer_side_of_the_upright_frame(shape, turns):
    stored = np.arange(16 * 27).reshape(shape)
    upright = np.rot90(stored, turns)
    for crop, start in ((0.0, 0), (1.0, 11)):
        view = View.of(*shape, size=16, squash=False, turns=turns, crop=crop)
        rows, columns = (start if side > 16 else 0 for side in upright.shape)
        assert (view.cut(stored) == upright[rows : rows + 16, columns : columns + 16]).all()


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


def stretched(picture, pixel_aspect):
    """Sample a picture with pixels of another shape: the mean of its columns that each pixel covers."""
    height, width = picture.shape[:2]
    edges = np.linspace(0, width, round(width / Fraction(pixel_aspect)) + 1)
    sums = np.concatenate([np.zeros((height, 1, 3)), picture.cumsum(1)], 1)  # up to each edge of the columns
    at = np.stack([np.stack([np.interp(edges, np.arange(width + 1), row[:, c]) for c in range(3)], -1) for row in sums])
    return (np.diff(at, axis=1) / np.diff(edges)[:, None]).round().astype(np.uint8)


def difference(a, b):
    return (a.float() - b.float()).abs().mean()


SHAPES = [
    ("a.mp4", "libx264", "2"),
    ("a.mkv", "libx264", "1/2"),
    ("a.ts", "libx264", "4/3"),
    ("a.avi", "mpeg4", "8/5"),
    ("a.mov", "mpeg4", "4"),
    ("vp9.mp4", "libvpx-vp9", "4/3"),  # in the container only
    ("a.h264", "libx264", "1/4"),
]


@pytest.mark.parametrize("size", [(96, 160), (160, 96)], ids=["wide", "tall"])
@pytest.mark.parametrize(("name", "codec", "pixel_aspect"), SHAPES)
def test_pixels_that_are_not_square_are_shown_as_such(tmp_path, name, codec, pixel_aspect, size):
    picture = waves(*size)
    options = {"b": "4000000"} if codec != "libx264" else {"crf": "5"}
    plain = write(tmp_path / f"plain_{name}", [picture] * 3, codec=codec, **options)
    other = [stretched(picture, pixel_aspect)] * 3
    shaped = write(tmp_path / name, other, codec=codec, pixel_aspect=pixel_aspect, **options)
    squeezed = write(tmp_path / f"squeezed_{name}", other, codec=codec, **options)
    pixels = [read_frames(path, [0.1], size=48).pixels for path in (plain, shaped, squeezed)]
    assert difference(pixels[0], pixels[1]) < 10
    assert difference(pixels[0], pixels[2]) > 20
    squashed = [read_frames(path, [0.1], size=48, squash=True).pixels for path in (shaped, squeezed)]
    assert torch.equal(*squashed)
    assert (has_plain_pixels(plain), has_plain_pixels(shaped)) == (True, False)


@pytest.mark.parametrize("pixel_aspect", ["1000", "1/1000", "17"])
def test_absurd_shapes_of_pixels_are_ignored(tmp_path, pixel_aspect):
    shapes = (pixel_aspect, None)
    paths = [
        write(tmp_path / f"{bool(shape)}.ts", [waves(64, 96)], codec="libx264", pixel_aspect=shape) for shape in shapes
    ]
    assert torch.equal(*(read_frames(path, [0.0], size=32).pixels for path in paths))


def test_pixels_that_are_not_square_are_rotated(tmp_path):
    path = write(tmp_path / "a.mp4", [waves(96, 96)] * 3, codec="libx264", pixel_aspect="16/9")
    upright, turned = (read_frames(name, [0.1], size=32).pixels for name in (path, turn(path, tmp_path / "turned.mp4")))
    assert torch.equal(turned, torch.rot90(upright, -1, (2, 3)))


def test_the_shape_of_pixels_may_change_within_a_stream(tmp_path):
    picture, shapes = waves(96, 160), ("1", "2", "3/4")
    parts = [
        write(
            tmp_path / f"{number}.h264",
            [stretched(waves(96, round(160 * Fraction(shape))), shape)] * 8,
            codec="libx264",
            pixel_aspect=shape,
            bf="3",
        )
        for number, shape in enumerate(shapes)
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    expected = read_frames(write(tmp_path / "plain.nut", [picture]), [0.0], size=48).pixels
    times = [(number + 0.5) / 10 for number in range(24)]
    frames = read_frames(joined, [time * 10 / 25 for time in times], size=48).pixels  # raw streams have 25 frames/s
    for frame in frames:
        assert difference(frame, expected[0]) < 8
    for number in (7, 8, 15, 16):
        assert torch.equal(read_frames(joined, [times[number] * 10 / 25], size=48).pixels[0], frames[number])


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("pixel_aspect", ["2", "1/2"])
def test_motion_is_measured_in_square_pixels(tmp_path, pixel_aspect, squash):
    wide = np.kron(np.random.default_rng(0).integers(0, 255, (16, 40, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    path = write(
        tmp_path / "pan.mp4",
        [wide[:, 4 * number : 4 * number + 128] for number in range(20)],
        codec="libx264",
        pixel_aspect=pixel_aspect,
        preset="veryfast",
        bf="0",
    )
    speed = 2 if squash else 4 * float(Fraction(pixel_aspect)) * 64 / (128 * min(1, float(Fraction(pixel_aspect))))
    for name in (path, turn(path, tmp_path / "turned.mp4")):
        read = read_frames(name, [1.0, 1.5], size=64, squash=squash, motion_grid=(4, 4))
        assert read.from_codec.all()
        assert ((read.motion - speed).abs() < 0.1 * speed).float().mean() > 0.85


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "option"),
    [
        ("libx264", "yuv420p", {"x264-params": "tff=1"}),
        ("libx264", "yuv420p10le", {"x264-params": "bff=1"}),
        ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "b": "4000000"}),
        ("mpeg4", "yuv420p", {"flags": "+ildct", "b": "4000000"}),
    ],
)
def test_frames_that_are_marked_as_interlaced_are_scaled_like_others(tmp_path, codec, pix_fmt, option, squash):
    y = np.arange(144)[:, None, None]
    pictures = [
        (127 + 100 * np.sin(y * (1 + 0.1 * number)) * np.ones((1, 192, 3))).astype(np.uint8) for number in range(4)
    ]
    progressive = {name: value for name, value in option.items() if name == "b"}
    plain, marked = (
        write(tmp_path / f"{name}.mp4", pictures, codec=codec, pix_fmt=pix_fmt, **options)
        for name, options in (("plain", progressive), ("marked", option))
    )
    pixels = [read_frames(path, [0.2], size=64, squash=squash).pixels for path in (plain, marked)]
    assert difference(*pixels) < 2
    assert (has_plain_pixels(plain), has_plain_pixels(marked)) == (True, False)
    turned = read_frames(turn(marked, tmp_path / "turned.mp4"), [0.2], size=64, squash=squash).pixels
    assert torch.equal(turned, torch.rot90(pixels[1], -1, (2, 3)))


def test_a_file_that_cannot_be_read_counts_as_plain(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    assert has_plain_pixels(tmp_path / "a.mp4")
