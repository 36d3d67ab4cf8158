"""What a model says of a video, and what it does with a clip of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vtm.merging import Grid
from vtm.models import VTMOutput


@dataclass(frozen=True)
class Window:
    """What the model says of one stretch of a video.

    Attributes:
        start: in seconds from the first frame.
        end: in seconds, not after the end of the video.
        scores: K probabilities, or the one value of a regression.
    """

    start: float
    end: float
    scores: list[float]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a video: the vote of its windows.

    Attributes:
        video: the path as it was given.
        seconds: length of the video.
        labels: K names of classes; None for a regression.
        scores: K probabilities averaged over the windows, or the one value of a regression.
        windows: in order of time; a model that looks at the whole video at once has one.
        short: the video has fewer frames to look at than a clip has steps; padding or repeated frames fill the rest.
        damaged: some frames could not be decoded, and others stand in for them.
    """

    video: str
    seconds: float
    labels: list[str] | None
    scores: list[float]
    windows: list[Window]
    short: bool
    damaged: bool

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """List the classes of highest probability, best first; of a regression, ("value", x)."""
        return ranked(self.labels, self.scores)[:count]

    def timeline(self, count: int = 5) -> list[tuple[Window, list[tuple[str, float]]]]:
        """List the windows, each with its classes of highest probability as `top` gives them."""
        return [(window, ranked(self.labels, window.scores)[:count]) for window in self.windows]

    @property
    def label(self) -> str | None:
        """The class of highest probability; None for a regression."""
        return None if self.labels is None else self.top(1)[0][0]

    @property
    def score(self) -> float:
        """The probability of `label`, or the value of a regression."""
        return self.top(1)[0][1]


class Look(NamedTuple):
    """What the model sees of one clip and does with it.

    Attributes:
        video: the path as it was given.
        frames: (T, 3, S, S) uint8, the first frame of each step inside the video.
        times: of the T steps, in seconds from the first frame.
        output: of one clip, padded to the number of steps that the model takes.
        grid: of that clip's tokens.
        prefix: number of tokens of each step that stand before those of the frame, such as CLS; then the grid is a row.
        window_frames: L of each block that ran.
        scores: as `Prediction.top`, of this clip.
    """

    video: str
    frames: Tensor
    times: list[float]
    output: VTMOutput
    grid: Grid
    prefix: int
    window_frames: list[int]
    scores: list[tuple[str, float]]


def ranked(labels: Sequence[str] | None, scores: Sequence[float]) -> list[tuple[str, float]]:
    """Pair scores with the names of their classes, best first.

    >>> ranked(["day", "night"], [0.2, 0.8]), ranked(None, [3.5])
    ([('night', 0.8), ('day', 0.2)], [('value', 3.5)])
    """
    if labels is None:
        return [("value", scores[0])]
    return sorted(zip(labels, scores, strict=True), key=lambda item: -item[1])
