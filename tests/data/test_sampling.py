import pickle
from functools import partial

import pytest
import torch

from vtm.data.sampling import Dense, Length, Single, Windows, every_second, spread, windows


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


def at(frames: int, fps: float) -> Length:
    """The length of a video of so many frames."""
    return Length(frames / fps, lambda: fps)


def frames(times: list[float], fps: float) -> list[int]:
    """The frames of the file on screen at some times."""
    return [int(time * fps) for time in times]


@pytest.mark.parametrize("fps", [24000 / 1001, 25.0, 29.97, 60.0])
def test_dense_clips_are_frames_of_the_file_at_equal_distances(fps):
    protocol = Dense(num_frames=4, rate=3, views=1, num_crops=1)
    length = at(100, fps)
    (start,) = protocol.starts(length)
    assert frames(protocol.times(start, length), fps) == [45, 48, 51, 54]  # the middle of 0, …, 90
    assert (protocol.sampling, protocol.crops) == ("dense4x3", (0.5,))
    torch.manual_seed(0)
    drawn = [frames(protocol.draw(length), fps) for _ in range(2000)]
    assert {clip[0] for clip in drawn} == set(range(91))
    assert all(clip == [clip[0] + 3 * i for i in range(4)] for clip in drawn)
    assert frames(protocol.stored(length, train=True), fps) == list(range(100))


def test_dense_views_reach_from_the_first_start_to_the_last():
    protocol = Dense(num_frames=4, rate=3, views=5, num_crops=3)
    length = at(110, 30.0)
    assert [frames(protocol.times(start, length), 30.0)[0] for start in protocol.starts(length)] == [0, 25, 50, 75, 100]
    assert frames(protocol.times(protocol.starts(length)[-1], length), 30.0)[-1] == 109
    assert protocol.crops == (0.0, 0.5, 1.0)
    stored = protocol.stored(length, train=False)
    assert stored == sorted(stored)
    assert len(stored) == 20


def test_dense_clips_repeat_the_last_frame_of_a_short_video():
    protocol = Dense(num_frames=4, rate=3, views=5, num_crops=1)
    for count, expected in ((10, [0, 3, 6, 9]), (9, [0, 3, 6, 8]), (5, [0, 3, 4, 4]), (1, [0, 0, 0, 0])):
        length = at(count, 25.0)
        assert protocol.starts(length) == [0.0]
        assert protocol.is_short(length) == (count < 10)
        assert frames(protocol.times(0.0, length), 25.0) == frames(protocol.draw(length), 25.0) == expected


def test_dense_needs_the_frame_rate_of_a_file_and_sound_numbers():
    with pytest.raises(ValueError, match=r"counts the frames of video files; set data/source=videos"):
        Dense(num_frames=4, rate=3, views=1, num_crops=1).starts(8.0)
    with pytest.raises(ValueError, match=r"data\.protocol\.rate as a whole number of at least 1, got 0"):
        Dense(num_frames=4, rate=0, views=1, num_crops=1)
    with pytest.raises(ValueError, match=r"num_crops to be 1 or 3, got 2"):
        Dense(num_frames=4, rate=1, views=1, num_crops=2)


def test_a_length_is_a_number_that_can_be_copied():
    length = pickle.loads(pickle.dumps(Length(2.5, partial(float, 25))))
    assert (length, length.frame_rate(), type(length)) == (2.5, 25.0, Length)
