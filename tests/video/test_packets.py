from fractions import Fraction

import numpy as np
import pytest

from vtm.video.packets import PacketTable, in_order


@pytest.fixture
def table():
    """A table of frames at 0, 0.1, 0.2, 1.2 and 1.3 s after a start at 5 s, with key frames first and fourth."""
    pts = np.array([5000, 5100, 5200, 6200, 6300])
    return PacketTable(pts, pts[[0, 3]], 6400, Fraction(1, 1000), "h264", None)


def test_length_counts_the_last_frame_and_not_the_offset(table):
    assert table.length == pytest.approx(1.4)


def test_a_time_belongs_to_the_last_frame_before_it(table):
    assert table.rows([0.0, 0.0999, 0.1, 0.1001, 1.1, 1.2, 9.0]).tolist() == [0, 1, 1, 1, 2, 3, 4]
    assert table.rows([0.05, 0.0994]).tolist() == [0, 0]  # half a millisecond is the rounding error of Matroska


def test_a_stamp_belongs_to_its_frame_or_the_next(table):
    assert [table.row(pts) for pts in (5000, 5100, 5101, 6300)] == [0, 1, 2, 4]


def test_groups_begin_at_their_key_frames(table):
    assert list(table.groups([5000, 5200, 6200, 6300])) == [(0, {5000, 5200}), (1, {6200, 6300})]
    assert list(table.groups([6300])) == [(1, {6300})]


def test_reordered_stamps_are_sound_and_those_far_off_are_not():
    stamps = [place + (2, -1, -1)[place % 3] for place in range(300)]
    assert in_order(stamps).all()
    for far in (1 << 40, -(1 << 40), 250):
        spoilt = [*stamps[:100], far, *stamps[101:]]
        assert np.flatnonzero(~in_order(spoilt)).tolist() == [100]
