"""The measured motion agrees with the known motion of synthetic videos."""

import gc
import math
import struct

import av
import numpy as np
import pytest
import torch
from torch.nn import functional

from vtm.video.motion import VectorMotion, difference_motion, stop_plain_blocks, vector_field
from vtm.video.reading import read_frames
from vtm.video.view import View
from vtm.video.writing import write_video

HEIGHT, WIDTH = 128, 192
BLOCK = np.dtype([(name, "i4") for name in ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y")])


def texture(height, width, *, seed=0, step=8):
    """Draw smooth random blobs of about `step` pixels."""
    noise = torch.rand(1, 3, height // step + 1, width // step + 1, generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(noise, scale_factor=step, mode="bicubic").clamp(0, 1)
    return (255 * smooth[0, :, :height, :width]).byte().permute(1, 2, 0).numpy()


def pan(count=40):
    """Move the whole picture by 3 pixels to the left and 2 up in each frame."""
    wide = texture(HEIGHT + 2 * count, WIDTH + 3 * count)
    return [wide[2 * n : 2 * n + HEIGHT, 3 * n : 3 * n + WIDTH] for n in range(count)]


def patch(count=30, height=HEIGHT, width=WIDTH):
    """Move a square of 32 pixels by 2 pixels to the right in each frame, over a still background."""
    background, square = texture(height, width), 255 - texture(32, 32, seed=1, step=4)
    for number in range(count):
        picture = background.copy()
        picture[16:48, 64 + 2 * (number % 8) : 96 + 2 * (number % 8)] = square
        yield picture


def turn(path, matrix):
    """Write a display matrix into an mp4 file."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *(value << 16 for value in matrix), 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_a_pan_has_its_speed_everywhere(tmp_path, b_frames, squash):
    path = tmp_path / "pan.mp4"
    write_video(path, pan(), fps=30, options={"preset": "veryfast", "g": "24", "bf": b_frames})  # one reference frame
    read = read_frames(path, [0.0, 0.5, 0.9, 1.3], size=64, squash=squash, motion_grid=(7, 5))
    expected = math.hypot(3 * 64 / (WIDTH if squash else HEIGHT), 2 * 64 / HEIGHT)
    assert read.motion.shape == (4, 7, 5)
    assert read.motion.dtype == torch.float32
    assert read.from_codec.tolist() == [True] * 4
    near = (read.motion - expected).abs() < 0.1 * expected
    assert near.float().mean((1, 2)).min() > 0.85
    assert near.float().mean() > 0.95


def test_vectors_of_older_frames_are_outvoted(tmp_path):
    path = tmp_path / "pan.mp4"
    write_video(path, pan(), fps=30, options={"refs": "3", "g": "250", "bf": "3"})
    motion = read_frames(path, [0.5, 0.8, 1.1], size=64, motion_grid=(7, 7)).motion
    assert ((motion - 13**0.5 / 2).abs() < 0.1 * 13**0.5 / 2).float().mean() > 0.9


def cells(motion, least):
    """Return the cells that move faster than `least`."""
    return {tuple(cell) for cell in (motion > least).nonzero().tolist()}


SQUARE = {(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)}  # of 8 x 8 on the center: x 64..110 - 32, y 16..48, by 16
SETTINGS = [
    (False, None, SQUARE),
    (True, None, {(row, column) for row in (1, 2) for column in (2, 3, 4)}),  # x 64..110 by 24
    (False, (0, 1, 0, -1, 0, 0), {(column, 7 - row) for row, column in SQUARE}),  # clockwise
    (False, (-1, 0, 0, 0, -1, 0), {(7 - row, 7 - column) for row, column in SQUARE}),
    (False, (0, -1, 0, 1, 0, 0), {(7 - column, row) for row, column in SQUARE}),
]


@pytest.mark.parametrize(("squash", "matrix", "expected"), SETTINGS, ids=["crop", "squash", "90", "180", "270"])
def test_only_the_cells_of_a_moving_square_move(tmp_path, squash, matrix, expected):
    path = tmp_path / "square.mp4"
    write_video(
        path, patch(), fps=30, options={"preset": "veryfast", "bf": "0", "crf": "10"}
    )  # vectors that follow the picture
    if matrix:
        turn(path, matrix)
    read = read_frames(path, [7 / 30, 15 / 30], size=64, squash=squash, motion_grid=(8, 8))
    assert read.from_codec.all()
    for motion in read.motion:
        assert len(cells(motion, 0.3)) >= 4
        assert cells(motion, 0.05) <= expected


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx265", {"x265-params": "log-level=none"}),
        ("a.webm", "libvpx-vp9", {"cpu-used": "8", "crf": "20"}),
        ("intra.mp4", "libx264", {"g": "1", "crf": "10"}),
    ],
)
def test_without_vectors_the_difference_of_frames_finds_the_square(tmp_path, name, codec, options):
    write_video(tmp_path / name, patch(), fps=30, codec=codec, options=options)
    read = read_frames(tmp_path / name, [3.2 / 30, 11.2 / 30, 29.2 / 30], size=64, motion_grid=(8, 8))
    assert read.from_codec.tolist() == [False] * 3
    for motion in read.motion:
        moving = {divmod(int(cell), 8) for cell in motion.flatten().topk(4).indices}
        assert moving <= SQUARE
        still = torch.ones(8, 8, dtype=torch.bool)
        still[0:4, 1:6] = False
        assert motion[still].median() < 0.1
        assert motion[1:3, 2:5].max() > 0.8


def test_motion_of_a_step_does_not_depend_on_the_others(tmp_path):
    path = tmp_path / "pan.mp4"
    write_video(path, pan(), fps=30, options={"g": "12", "bf": "2"})
    times = [number / 30 for number in range(40)]
    for frames in (1, 5):
        together = read_frames(path, times, size=32, frames_per_step=frames, motion_grid=(4, 4))
        for place in (0, 1, 12, 13, 22, 39):
            alone = read_frames(path, times[place : place + 1], size=32, frames_per_step=frames, motion_grid=(4, 4))
            assert torch.equal(alone.motion[0], together.motion[place])


def test_motion_changes_no_pixel(tmp_path):
    path = tmp_path / "pan.mp4"
    write_video(path, pan(), fps=30)
    plain, moving = (read_frames(path, [0.2, 1.0], size=32, motion_grid=grid) for grid in (None, (4, 4)))
    assert torch.equal(plain.pixels, moving.pixels)
    assert (plain.motion, plain.from_codec) == (None, None)


def test_frames_are_freed_at_once(tmp_path):
    write_video(tmp_path / "pan.mp4", pan(), fps=30)
    gc.collect()
    gc.disable()
    try:
        read_frames(tmp_path / "pan.mp4", [0.2, 1.0], size=32, motion_grid=(4, 4))
        assert not [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame]
    finally:
        gc.enable()


def test_one_frame_does_not_move(tmp_path):
    write_video(tmp_path / "one.mp4", pan(1), fps=30)
    read = read_frames(tmp_path / "one.mp4", [0.0], size=32, motion_grid=(2, 3))
    assert torch.equal(read.motion, torch.zeros(1, 2, 3))
    assert read.from_codec.tolist() == [False]


def block(x, y, motion_x, motion_y, side=16, source=-1):
    """Make one motion vector in whole pixels."""
    vector = np.zeros(1, [*BLOCK.descr, ("motion_scale", "u2")])
    vector[0] = (source, side, side, x, y, motion_x, motion_y, 1)
    return vector


def test_blocks_count_by_their_area_in_each_cell():
    view = View.of(32, 64, size=16, squash=False, turns=0)  # half the size; columns 16 .. 48 stay
    vectors = np.concatenate(
        [block(24, 8, 6, 0), block(40, 8, 0, 8), block(8, 8, 99, 99), block(32, 8, 50, 0, source=1)]
    )
    field = vector_field(vectors, 2, view, (2, 4))
    assert field[0].tolist() == [1.5, 1.5, 2.0, 2.0]  # pixels / 2 for the scale / 2 for the gap
    assert np.isnan(field[1]).all()
    assert vector_field(vectors, 1, view, (1, 1)).item() == 3.5
    tall = View.of(64, 32, size=16, squash=False, turns=0)  # rows 16 .. 48 stay
    upper = vector_field(np.concatenate([block(8, 24, 6, 0), block(8, 8, 99, 99)]), 1, tall, (2, 2))
    assert upper[0, 0] == 3
    assert np.isnan(upper).sum() == 3


def test_squashing_scales_each_direction_by_itself():
    view = View.of(32, 64, size=16, squash=True, turns=0)
    assert vector_field(block(32, 16, 8, 0, side=64), 1, view, (1, 1)).item() == 2.0
    assert vector_field(block(32, 16, 0, 8, side=64), 1, view, (1, 1)).item() == 4.0


TEXTURED = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)


def speed(frames, first, last):
    """Compute the speed of one step in frames of type I, P or B, where frame n moves by n pixels per frame."""
    collected = VectorMotion(np.array([first]), np.array([last]), (1, 1), size=16, squash=False)
    anchor = 0
    for row, kind in enumerate(frames):
        if kind == "I":
            collected.see_intra(row)
        if kind == "P":
            collected.see_predicted(row, block(8, 8, row * (row - anchor), 0), TEXTURED, depth=8, turns=0)
        anchor = row if kind in "IP" else anchor
    return collected.speed().item()


@pytest.mark.parametrize(
    ("frames", "step", "expected"),
    [
        ("IPPPPPPP", (7, 7), 5.5),  # median of 4, 5, 6 and 7
        ("IBBPBBPBBP", (4, 4), 3),  # the last P-frame before the step, not the next one
        ("IBBPBBPBBP", (0, 0), 3),  # the next P-frame, if there is none before
        ("IPPPIPPPIPP", (5, 5), 5),  # no P-frame of the previous group
        ("IPPPPPPPPP", (1, 6), 3.5),  # all P-frames of the step
        ("IPPPIBPPPP", (2, 6), 2.5),  # the P-frames of the step, 2, 3 and 6, and 1 to make four
    ],
)
def test_which_p_frames_count(frames, step, expected):
    assert speed(frames, *step) == expected


@pytest.mark.parametrize(("frames", "row"), [("IIIII", 3), ("IP" + "B" * 30, 20), ("I" + "B" * 30 + "P", 10)])
def test_a_step_without_p_frames_near_it_has_no_vectors(frames, row):
    assert math.isnan(speed(frames, row, row))


def test_difference_motion_is_the_speed_across_a_slope():
    column = np.arange(64)
    wave, moved = (100 + 80 * np.sin((column - shift) / 6) for shift in (0, 0.5))
    before, after = (np.broadcast_to(values.round().astype(np.uint8), (3, 64, 64)) for values in (wave, moved))
    assert difference_motion(before, after, (4, 4)) == pytest.approx(np.full((4, 4), 0.5), abs=0.1)
    assert difference_motion(before.mT, after.mT, (2, 2)) == pytest.approx(np.full((2, 2), 0.5), abs=0.1)
    assert not difference_motion(before, before, (4, 4)).any()
    assert difference_motion(np.full_like(before, 90), np.full_like(before, 91), (1, 1)) <= 1.01


@pytest.mark.parametrize("depth", [8, 10])
def test_vectors_of_blocks_without_texture_do_not_count(depth):
    noise = np.random.default_rng(0).integers(-40, 40, (70, 90))
    noise[:32] //= 40  # from -1 to 0
    luma = ((128 + noise) * 2 ** (depth - 8)).astype(np.uint8 if depth == 8 else np.uint16)
    at = [(8, 8), (24, 24), (24, 40), (88, 8), (88, 68), (8, 72), (-40, 300)]  # some reach over the frame
    vectors = np.concatenate([block(x, y, 9, -7) for x, y in at] + [block(20, 28, 3, 3, side=8)])
    moving = stop_plain_blocks(vectors, luma, depth=depth)
    kept = (moving["motion_x"] != 0).tolist()
    assert kept == [False, False, True, False, True, True, False, False]
    assert (moving["motion_y"] != 0).tolist() == kept
    assert moving[kept].tolist() == vectors[kept].tolist()
    assert vectors["motion_x"].all()  # the input stays as it was


def test_arbitrary_vectors_in_plain_areas_do_not_count_as_motion(tmp_path):
    """Half of the picture is a plain wall whose brightness flickers, the other half pans."""
    generator = np.random.default_rng(0)
    wide = texture(HEIGHT, WIDTH + 120)
    pictures = []
    for number in range(30):
        picture = wide[:, 3 * number : 3 * number + WIDTH].copy()
        wall = 100 + generator.integers(0, 3, (HEIGHT // 8, WIDTH // 16, 1), np.uint8).repeat(8, 0).repeat(8, 1)
        picture[:, : WIDTH // 2] = wall
        pictures.append(picture)
    write_video(tmp_path / "wall.mp4", pictures, fps=30, options={"bf": "0", "crf": "1", "subq": "1", "psy": "0"})
    motion = read_frames(tmp_path / "wall.mp4", [0.6, 0.9], size=64, squash=True, motion_grid=(4, 8)).motion
    assert motion[..., :3].max() < 0.1
    assert motion[..., 5:].min() > 0.5


def test_the_source_of_motion_can_be_chosen(tmp_path):
    write_video(tmp_path / "a.mp4", patch(), fps=30, options={"bf": "3"})
    read = {
        source: read_frames(tmp_path / "a.mp4", [0.4, 0.6], size=64, motion_grid=(8, 8), motion_source=source)
        for source in ("codec", "difference")
    }
    assert torch.equal(read["codec"].pixels, read["difference"].pixels)
    assert (read["codec"].from_codec.tolist(), read["difference"].from_codec.tolist()) == ([True] * 2, [False] * 2)
    pairs = [read_frames(tmp_path / "a.mp4", [time], size=64, frames_per_step=2).pixels.numpy() for time in (0.4, 0.6)]
    expected = np.stack([difference_motion(*pair, (8, 8)) for pair in pairs])
    assert np.array_equal(read["difference"].motion.numpy(), expected)


def test_a_frame_without_moving_blocks_is_still():
    vectors = np.concatenate([block(8, 8, 0, 0), block(24, 8, 0, 0)])
    assert stop_plain_blocks(vectors, np.zeros((16, 32), np.uint8), depth=8).tolist() == vectors.tolist()
