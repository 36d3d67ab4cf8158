import pytest
import torch

from vtm.data.sampling import Single, Windows, every_second, spread, windows


def test_spread_takes_the_middles_of_equal_parts():
    assert spread(6.0, 3) == [1.0, 3.0, 5.0]
    assert all(0 < time < 0.7 for time in spread(0.7, 64))


def test_every_second_starts_at_the_start():
    assert every_second(7.5, 3) == [7.5, 8.5, 9.5]


@pytest.mark.parametrize(
    ("duration", "stride", "expected"),
    [
        (62.0, 1, [0.0, 1.0, 2.0]),
        (61.9, 1, [0.0, 1.0]),
        (60.0, 1, [0.0]),
        (59.0, 1, [0.0]),
        (0.2, 1, [0.0]),
        (85.0, 10, [0.0, 10.0, 20.0]),
        (61.0, 0.5, [0.0, 0.5, 1.0]),
    ],
)
def test_windows_are_complete_or_the_only_one(duration, stride, expected):
    assert windows(duration, 60, stride) == expected


def test_single_looks_at_the_whole_once():
    protocol = Single(num_frames=4)
    assert protocol.starts(8.0) == [0.0]
    assert protocol.draw(8.0) == 0.0
    assert protocol.times(0.0, 8.0) == [1.0, 3.0, 5.0, 7.0]


def test_windows_cover_the_video_in_evaluation():
    protocol = Windows(num_frames=4, stride=2)
    assert protocol.starts(9.0) == [0.0, 2.0, 4.0]
    assert protocol.times(4.0, 9.0) == [4.0, 5.0, 6.0, 7.0]


def test_windows_leave_out_the_times_after_the_end():
    protocol = Windows(num_frames=4, stride=2)
    assert protocol.times(0.0, 2.5) == [0.0, 1.0, 2.0]
    assert protocol.times(0.0, 2.0) == [0.0, 1.0]
    assert protocol.times(0.0, 0.3) == [0.0]


def test_training_windows_start_at_any_second_alike_often():
    protocol = Windows(num_frames=4, stride=3)
    torch.manual_seed(0)
    drawn = [protocol.draw(8.5) for _ in range(1000)]
    counts = [drawn.count(float(start)) for start in range(5)]
    assert sum(counts) == 1000
    assert min(counts) > 150
    torch.manual_seed(0)
    assert drawn == [protocol.draw(8.5) for _ in range(1000)]
    assert protocol.draw(2.0) == 0.0
