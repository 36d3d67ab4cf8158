"""A multiple-choice question about a video, as all lists return it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """A multiple-choice question about a video.

    Attributes:
        id: name that is unique in the list.
        video: name of the video in the list; the questions about one video share it.
        path: video file, which may be missing.
        text: question.
        options: answers to choose from, in the official order.
        answer: index of the right option; None if it is not public.
        groups: groups of the question by kind, such as its type, or the duration of the video.
    """

    id: str
    video: str
    path: Path
    text: str
    options: tuple[str, ...]
    answer: int | None
    groups: Mapping[str, str] = field(default_factory=dict)
