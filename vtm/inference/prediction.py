"""The prediction of a model for a video, as an object, as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtm.tasks.task import ranked


@dataclass(frozen=True)
class Segment:
    """The prediction for one window of a video.

    Attributes:
        start: start of the window in seconds from the first frame.
        end: end of the window in seconds, at most the length of the video.
        scores: K probabilities, or the single value of a regression.
    """

    start: float
    end: float
    scores: list[float]


@dataclass(frozen=True)
class Prediction:
    """The prediction for a video, averaged over its windows.

    Attributes:
        video: path of the video as it was given.
        seconds: length of the video.
        labels: K class names; None for a regression.
        scores: K probabilities averaged over the windows, or the average value of a regression.
        segments: predictions for the windows in order of time; a model that sees the whole video has one.
        short: whether the video has fewer frames than a clip has steps; padding or repeated frames fill the rest.
        damaged: whether some frames could not be decoded; their nearest neighbors replace them.
    """

    video: str
    seconds: float
    labels: list[str] | None
    scores: list[float]
    segments: list[Segment]
    short: bool
    damaged: bool

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the `count` classes with the highest probability, best first; for a regression, ("value", x)."""
        return ranked(self.labels, self.scores)[:count]

    def timeline(self, count: int = 5) -> list[tuple[Segment, list[tuple[str, float]]]]:
        """Return the windows, each with its best classes in the form of `top`."""
        return [(segment, ranked(self.labels, segment.scores)[:count]) for segment in self.segments]

    @property
    def label(self) -> str | None:
        """The class with the highest probability; None for a regression."""
        return None if self.labels is None else self.top(1)[0][0]

    @property
    def score(self) -> float:
        """The probability of `label`, or the value of a regression."""
        return self.top(1)[0][1]


def as_dict(prediction: Prediction, *, top: int, timeline: bool) -> dict[str, Any]:
    """Convert a prediction to plain containers, as `--json` prints it."""
    regression = prediction.labels is None
    result: dict[str, Any] = {"video": prediction.video, "seconds": round(prediction.seconds, 3)}
    result |= {"short": prediction.short, "damaged": prediction.damaged}
    result |= _answer(prediction.top(top), regression)
    result["windows"] = len(prediction.segments)
    if timeline:
        result["timeline"] = [
            {"start": segment.start, "end": round(segment.end, 3), **_answer(best, regression)}
            for segment, best in prediction.timeline(top)
        ]
    return result


def as_lines(prediction: Prediction, *, top: int, timeline: bool) -> list[str]:
    """Format a prediction as text: one line for the video and, with `timeline`, one for each window."""
    regression = prediction.labels is None
    facts = [f"{prediction.seconds:.1f} s"]
    facts += [f"{len(prediction.segments)} windows" if len(prediction.segments) > 1 else "1 window"]
    facts += ["short"] * prediction.short + ["damaged"] * prediction.damaged
    lines = [f"{printable(prediction.video)}  {_text(prediction.top(top), regression)}  ({', '.join(facts)})"]
    for segment, best in prediction.timeline(1) if timeline else ():
        lines.append(f"  {segment.start:9.1f} to {segment.end:.1f} s  {_text(best, regression)}")
    return lines


def printable(text: str) -> str:
    """Escape characters that would break a line or move the cursor; names of files and classes may contain them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _answer(best: Sequence[tuple[str, float]], regression: bool) -> dict[str, Any]:
    name, score = best[0]
    if regression:
        return {"value": score}
    return {"label": name, "probability": score, "top": [{"label": k, "probability": p} for k, p in best]}


def _text(best: Sequence[tuple[str, float]], regression: bool) -> str:
    return ", ".join(f"{score:.4g}" if regression else f"{printable(name)} {score:.3f}" for name, score in best)
