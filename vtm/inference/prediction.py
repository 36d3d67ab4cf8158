"""What a model says of a video, and what it does with a clip of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtm.tasks.task import ranked


@dataclass(frozen=True)
class Segment:
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
    segments: list[Segment]
    short: bool
    damaged: bool

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """List the classes of highest probability, best first; of a regression, ("value", x)."""
        return ranked(self.labels, self.scores)[:count]

    def timeline(self, count: int = 5) -> list[tuple[Segment, list[tuple[str, float]]]]:
        """List the windows, each with its classes of highest probability as `top` gives them."""
        return [(segment, ranked(self.labels, segment.scores)[:count]) for segment in self.segments]

    @property
    def label(self) -> str | None:
        """The class of highest probability; None for a regression."""
        return None if self.labels is None else self.top(1)[0][0]

    @property
    def score(self) -> float:
        """The probability of `label`, or the value of a regression."""
        return self.top(1)[0][1]


def as_dict(prediction: Prediction, *, top: int, timeline: bool) -> dict[str, Any]:
    """Put a prediction into plain containers, as `--json` prints it."""
    regression = prediction.labels is None
    found: dict[str, Any] = {"video": prediction.video, "seconds": round(prediction.seconds, 3)}
    found |= {"short": prediction.short, "damaged": prediction.damaged}
    found |= _answer(prediction.top(top), regression)
    found["windows"] = len(prediction.segments)
    if timeline:
        found["timeline"] = [
            {"start": segment.start, "end": round(segment.end, 3), **_answer(best, regression)}
            for segment, best in prediction.timeline(top)
        ]
    return found


def as_lines(prediction: Prediction, *, top: int, timeline: bool) -> list[str]:
    """Write a prediction as text: a line of the video and, with `timeline`, one of each window."""
    regression = prediction.labels is None
    facts = [f"{prediction.seconds:.1f} s"]
    facts += [f"{len(prediction.segments)} windows" if len(prediction.segments) > 1 else "1 window"]
    facts += ["short"] * prediction.short + ["damaged"] * prediction.damaged
    lines = [f"{printable(prediction.video)}  {_text(prediction.top(top), regression)}  ({', '.join(facts)})"]
    for segment, best in prediction.timeline(1) if timeline else ():
        lines.append(f"  {segment.start:9.1f} to {segment.end:.1f} s  {_text(best, regression)}")
    return lines


def printable(text: str) -> str:
    """Escape what would break a line or move the cursor, as names of files may."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _answer(best: Sequence[tuple[str, float]], regression: bool) -> dict[str, Any]:
    name, score = best[0]
    if regression:
        return {"value": score}
    return {"label": name, "probability": score, "top": [{"label": k, "probability": p} for k, p in best]}


def _text(best: Sequence[tuple[str, float]], regression: bool) -> str:
    return ", ".join(f"{score:.4g}" if regression else f"{name} {score:.3f}" for name, score in best)
