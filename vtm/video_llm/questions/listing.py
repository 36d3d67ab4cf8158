"""What the lists of questions have in common: their folder, the checks of their rows, and missing videos."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vtm.data.datasets.annotations import read_text
from vtm.system.names import PathIndex
from vtm.video.listing import SUFFIXES, VideoIndex
from vtm.video_llm.questions.question import Question

_HELP = "data/README.md"
_MOST_OPTIONS = 26  # letters


class Selection(NamedTuple):
    """Questions to answer.

    Attributes:
        questions: questions whose videos exist, in the order of the list.
        missing: names of the videos that are missing, without repetition.
        missing_questions: number of questions that are left out because of them.
    """

    questions: list[Question]
    missing: list[str]
    missing_questions: int


class QuestionList(ABC):
    """Base class of the official lists, in `root/annotations`, with their videos in `root/videos`.

    Args:
        root: folder of the data set.
        allow_missing: leave out the questions whose video is missing, and report them in the results. Otherwise a
            missing video stops the command before it starts.

    Raises:
        NotADirectoryError: if the root is a file.
    """

    def __init__(self, *, root: Path | str, allow_missing: bool) -> None:
        self.root = Path(root).expanduser()
        if self.root.is_file():
            raise NotADirectoryError(f"questions.root={root} is a file; give the folder of the data set, see {_HELP}")
        self.allow_missing = allow_missing
        self.videos = VideoIndex(self.root / "videos")

    @abstractmethod
    def read(self) -> list[Question]:
        """Read all questions in the order of the list, whether or not their videos exist.

        Raises:
            FileNotFoundError: if the folder or an annotation file is missing.
            ValueError: if a row is wrong; the error names the file and the row.
        """

    def annotation(self, name: str) -> Path:
        """Return the path of an annotation file.

        Raises:
            FileNotFoundError: if it is missing.
        """
        if not self.root.is_dir():
            hint = PathIndex().explain(self.root, here="questions.root")
            raise FileNotFoundError(f"The folder {self.root} is missing{hint}; {_HELP} says how to get it.")
        path = self.root / "annotations" / name
        if not path.is_file():
            hint = PathIndex().explain(path, here="this program")
            raise FileNotFoundError(f"The file {path} is missing{hint}; {_HELP} says how to get it.")
        return path

    def select(self, questions: Sequence[Question], limit: int | None = None) -> Selection:
        """Return the questions to answer.

        Args:
            questions: questions of the list.
            limit: number of questions to take, spread evenly over the list; None takes all. With `allow_missing`, over
                the questions whose videos exist.

        Raises:
            FileNotFoundError: if some of the videos are missing without `allow_missing`, or all of them are.
            ValueError: if the list is empty, or the limit is not a whole number of at least 1.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"expected limit to be a whole number of at least 1, or null for all, got {limit!r}")
        if not questions:
            raise ValueError(f"{self.root}: expected at least one question, got an empty list; get the original files")
        if not self.allow_missing:
            questions = spread(questions, limit)
        exists = {path: path.is_file() for path in {question.path for question in questions}}
        present = [question for question in questions if exists[question.path]]
        absent = [question for question in questions if not exists[question.path]]
        missing = {question.video: question.path for question in absent}
        if missing and not (present and self.allow_missing):
            paths = PathIndex()
            hint = next(filter(None, (paths.explain(p, suffixes=SUFFIXES) for p in list(missing.values())[:3])), "")
            raise FileNotFoundError(
                f"{len(missing)} of the {len({question.video for question in questions})} videos are missing, such as "
                f"{', '.join(map(str, list(missing.values())[:3]))}{hint}; {_HELP} says where to get them"
                + (
                    ", and questions.allow_missing=true leaves out their questions and reports this in the results"
                    if present
                    else ""
                )
            )
        return Selection(spread(present, limit), list(missing), len(absent))


def spread(items: Sequence[Question], limit: int | None) -> list[Question]:
    """Return at most `limit` items at equal distances, in order; all of them if it is None."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


def check_questions(questions: Sequence[Question], origins: Sequence[str]) -> list[Question]:
    """Check what the rows of all lists must fulfill, and return the questions.

    Args:
        questions: questions in the order of the list.
        origins: path and row of each, for error messages.

    Raises:
        ValueError: if a question or an option is empty, an id is that of another question, there are fewer than two or
            too many options, or the answer is not one of them.
    """
    seen: dict[str, str] = {}
    for question, origin in zip(questions, origins, strict=True):
        if not question.text.strip():
            raise ValueError(f"{origin}: expected a question, got an empty text; get the original file")
        if question.id in seen:
            raise ValueError(
                f"{origin}: expected ids that are unique, got {question.id} as in {seen[question.id]}; remove one of "
                "them"
            )
        seen[question.id] = origin
        count = len(question.options)
        if not 2 <= count <= _MOST_OPTIONS:
            raise ValueError(f"{origin}: expected 2 to {_MOST_OPTIONS} options, got {count}; get the original file")
        if (empty := next((i for i, option in enumerate(question.options, 1) if not option.strip()), None)) is not None:
            raise ValueError(
                f"{origin}: expected a text as each option, got none as option {empty}; get the original file"
            )
        if question.answer is not None and not 0 <= question.answer < count:
            raise ValueError(
                f"{origin}: expected the index of an option, 0 to {count - 1}, as answer, got {question.answer}; get "
                "the original file"
            )
    return list(questions)


def whole_number(value: Any, origin: str) -> int:
    """Return a whole number from a list, which may be written as text.

    Raises:
        ValueError: if it is not a whole number of at least 0.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    raise ValueError(f"{origin}: expected a whole number of at least 0, got {value!r}; get the original file")


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file whose outermost value is a list or a dictionary.

    Raises:
        ValueError: if it is not.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: expected JSON, got {error.msg} in column {error.colno}; get the original "
            "file"
        ) from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{path}: expected a {kind.__name__} as the outermost value, got a {type(content).__name__}; get the "
            "original file"
        )
    return content


def texts(entry: Any, keys: Sequence[str], origin: str) -> list[str]:
    """Return texts in an entry of a JSON file.

    Raises:
        ValueError: if a key is missing or its value is not a text.
    """
    for key in keys:
        value = entry.get(key) if isinstance(entry, Mapping) else entry
        if not isinstance(value, str):
            raise ValueError(f"{origin}: expected a text as {key!r}, got {value!r}; get the original file")
    return [entry[key] for key in keys]
