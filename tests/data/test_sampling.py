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
    assert protocol.times(0.0, 8.0) == protocol.draw(8.0) == [1.0, 3.0, 5.0, 7.0]
    assert protocol.stored(8.0, train=True) == protocol.stored(8.0, train=False) == [1.0, 3.0, 5.0, 7.0]
    assert protocol.sampling == "spread4"


def test_single_can_draw_training_steps_from_more_positions():
    protocol = Single(num_frames=2, train_positions=8)
    assert protocol.stored(8.0, train=True) == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert protocol.times(0.0, 8.0) == protocol.stored(8.0, train=False) == [2.5, 6.5]
    torch.manual_seed(0)
    drawn = [tuple(protocol.draw(8.0)) for _ in range(2000)]
    assert all(first < second for first, second in drawn)
    assert len(set(drawn)) == 28
    counts = [sum(time in pair for pair in drawn) for time in protocol.stored(8.0, train=True)]
    assert min(counts) > 400
    assert protocol.sampling == "spread2of8"


@pytest.mark.parametrize("positions", [0, 3, -4])
def test_training_positions_are_a_multiple_of_the_steps(positions):
    with pytest.raises(ValueError, match=f"multiple of num_frames = 2, got {positions}"):
        Single(num_frames=2, train_positions=positions)


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
    counts = [drawn.count([float(start + second) for second in range(4)]) for start in range(5)]
    assert sum(counts) == 1000
    assert min(counts) > 150
    torch.manual_seed(0)
    assert drawn == [protocol.draw(8.5) for _ in range(1000)]
    assert protocol.draw(2.0) == [0.0, 1.0]


@pytest.mark.parametrize("duration", [0.3, 1.0, 9.0, 8.01, 61.5])
def test_every_clip_looks_only_at_what_is_stored(duration):
    for protocol in (Windows(num_frames=4, stride=2), Single(num_frames=3, train_positions=9)):
        clips = [protocol.times(start, duration) for start in protocol.starts(duration)]
        assert {time for clip in clips for time in clip} <= set(protocol.stored(duration, train=False))
        assert {time for _ in range(50) for time in protocol.draw(duration)} <= set(
            protocol.stored(duration, train=True)
        )


def test_windows_of_any_length_share_what_is_stored():
    short, long = Windows(num_frames=4, stride=2), Windows(num_frames=100, stride=1)
    assert short.sampling == long.sampling
    assert short.stored(9.5, train=True) == long.stored(9.5, train=False) == [float(i) for i in range(10)]


@pytest.mark.parametrize("stride", [0, 0.5, -1])
def test_strides_are_whole_seconds(stride):
    with pytest.raises(ValueError, match=f"whole number of seconds, at least 1, got {stride}"):
        Windows(num_frames=4, stride=stride)
