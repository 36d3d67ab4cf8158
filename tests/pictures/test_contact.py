"""The contact sheet shows kept frames in color and the others faded, merged tokens tinted, and stays bounded."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtm.pictures.contact import TokenView, draw_contact_sheet, write_contact_sheet

KEPT = np.array([0, 158, 115])


def make(group: torch.Tensor, *, height: int = 36, width: int = 64) -> TokenView:
    """Make a view of plain red frames."""
    frames = torch.zeros(len(group), 3, height, width, dtype=torch.uint8)
    frames[:, 0] = 200
    times = [2 * number + 1.0 for number in range(len(group))]
    return TokenView(frames, times, 2.0 * len(group), group)


def share(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((sheet == color).all(-1).sum())


def alone(steps: int, height: int = 2, width: int = 4) -> torch.Tensor:
    """Number every token."""
    return torch.arange(steps * height * width).view(steps, height, width)


def test_frames_that_were_left_out_are_faded():
    everything = draw_contact_sheet(make(alone(6)), title="a")
    group = alone(6)
    group[[0, 2, 5]] = -1
    some = draw_contact_sheet(make(group), title="a")
    per_frame = share(everything, (200, 0, 0)) // 6
    frame_without_border = share(some, (200, 0, 0)) // 3
    assert 0.9 * per_frame < frame_without_border < per_frame
    gray = round(0.299 * 200 * 0.3 + 255 * 0.7)
    assert share(some, (gray, gray, gray)) == pytest.approx(3 * per_frame, rel=0.01)
    assert share(everything, (gray, gray, gray)) < per_frame / 100  # of letters
    assert share(some, tuple(KEPT)) > share(everything, tuple(KEPT)) > 0  # borders, and marks on the axis


def test_marks_on_the_axis_are_at_the_times():
    group = alone(10)
    group[:9] = -1
    view = make(group)
    sheet = draw_contact_sheet(view, title="a")
    rows = sheet[:200]  # above the pictures
    columns = np.flatnonzero((rows == KEPT).all(-1).any(0))
    start, end = 36 + 90, 36 + 1848 - 130
    assert columns.mean() == pytest.approx(start + 19 / 20 * (end - start), abs=6)
    assert len(columns) == 6


def test_merged_tokens_are_tinted_and_others_are_not():
    group = alone(1)
    merged = group.clone()
    merged[0, 0, 1] = merged[0, 0, 0]
    merged = merged.flatten().unique(return_inverse=True)[1].view(1, 2, 4)
    plain = draw_contact_sheet(make(group), title="a")
    tinted = draw_contact_sheet(make(merged), title="a")
    assert len(tinted) > len(plain)  # a section of its own
    larger = tinted[len(plain) - 60 :]
    colored = share(larger, (200, 0, 0))
    rows = np.flatnonzero((larger == (200, 0, 0)).all(-1).any(1))
    columns = np.flatnonzero((larger == (200, 0, 0)).all(-1).any(0))
    height, width = len(rows), columns.max() - columns.min() + 1
    assert colored == pytest.approx(height * width * 6 / 8, rel=0.02)  # six of eight tokens are alone


def test_tokens_that_were_left_out_are_blank():
    group = alone(1)
    group[0, 1, 1:] = -1
    sheet = draw_contact_sheet(make(group), title="a")
    red, blank = share(sheet, (200, 0, 0)), share(sheet, (226, 226, 226))
    assert share(draw_contact_sheet(make(alone(1)), title="a"), (226, 226, 226)) < blank / 1000  # of letters
    small = share(draw_contact_sheet(make(alone(1)), title="a"), (200, 0, 0))
    assert blank == pytest.approx((red - small) * 3 / 5, rel=0.05)  # with the symbol of the legend


@pytest.mark.parametrize("shape", [(36, 64), (64, 36), (4, 200), (200, 4)])
def test_the_size_is_bounded(shape):
    group = torch.arange(500 * 2).view(500, 1, 2) // 2
    sheet = draw_contact_sheet(make(group, height=shape[0], width=shape[1]), title="a" * 500, lines=["b" * 5000])
    assert sheet.shape[1] == 1920
    assert sheet.shape[0] < 10_000
    large = draw_contact_sheet(make(group[:1], height=shape[0], width=shape[1]), title="a")
    assert large.shape[0] < 2500


def test_the_file_is_a_picture_that_appears_at_once(tmp_path):
    view = make(alone(3))
    write_contact_sheet(tmp_path / "new" / "a.png", view, title="a", lines=["Question: $why?"])
    with Image.open(tmp_path / "new" / "a.png") as picture:
        drawn = np.asarray(picture)
    assert np.array_equal(drawn, draw_contact_sheet(view, title="a", lines=["Question: $why?"]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
