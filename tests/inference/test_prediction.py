"""A prediction ranks its classes, in the video and in each window."""

import pytest

from vtm.inference.prediction import Prediction, Segment
from vtm.tasks.task import ranked


@pytest.fixture
def prediction():
    segments = [Segment(0.0, 4.0, [0.1, 0.7, 0.2]), Segment(1.0, 4.5, [0.5, 0.1, 0.4])]
    return Prediction("a.mp4", 4.5, ["x", "y", "z"], [0.3, 0.4, 0.3], segments, short=False, damaged=False)


def test_the_best_class_comes_first(prediction):
    assert (prediction.label, prediction.score) == ("y", 0.4)
    assert prediction.top(2) == [("y", 0.4), ("x", 0.3)]


def test_the_timeline_ranks_each_window(prediction):
    assert prediction.timeline(1) == [
        (prediction.segments[0], [("y", 0.7)]),
        (prediction.segments[1], [("x", 0.5)]),
    ]


def test_a_value_has_no_label():
    prediction = Prediction("a.mp4", 4.5, None, [3.5], [Segment(0.0, 4.5, [3.5])], short=False, damaged=False)
    assert (prediction.label, prediction.score, prediction.top()) == (None, 3.5, [("value", 3.5)])


def test_equal_scores_keep_the_order_of_the_classes():
    assert ranked(["b", "a", "c"], [0.25, 0.25, 0.5]) == [("c", 0.5), ("b", 0.25), ("a", 0.25)]
