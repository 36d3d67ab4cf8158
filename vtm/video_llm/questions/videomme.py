"""Video-MME without subtitles (Fu et al., CVPR 2025).

The format is that of `videomme/test-00000-of-00001.parquet` in the data set `lmms-lab/Video-MME` on Hugging Face, whose
card lists the columns. Options begin with their letter ("A. Apples."), and the answer is a letter; videos are named by
`videoID`, as in `lmms_eval/tasks/videomme/utils.py` of `EvolvingLMMs-Lab/lmms-eval`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vtm.video_llm.questions.listing import QuestionList, check_questions, texts
from vtm.video_llm.questions.question import Question

_FILE = "test-00000-of-00001.parquet"
_TEXTS = ("duration", "domain", "videoID", "question_id", "task_type", "question", "answer")
_LETTERS = "ABCD"


class VideoMME(QuestionList):
    """List of Video-MME, with three questions about each video, in `videos/<videoID>.<suffix>`."""

    def read(self) -> list[Question]:
        path = self.annotation(_FILE)
        questions, origins = [], []
        for number, row in enumerate(_read_parquet(path), start=1):
            origin = f"{path}, row {number}"
            duration, domain, video, id, kind, text, answer = texts(row, _TEXTS, origin)
            if answer not in tuple(_LETTERS):
                raise ValueError(f"{origin}: expected a letter A to D as answer, got {answer!r}; get the original file")
            questions.append(
                Question(
                    id=id,
                    video=video,
                    path=self.videos.find(video),
                    text=text,
                    options=_options(row["options"], origin),
                    answer=_LETTERS.index(answer),
                    groups={"duration": duration, "domain": domain, "type": kind},
                )
            )
            origins.append(origin)
        return check_questions(questions, origins)


def _options(options: Any, origin: str) -> tuple[str, ...]:
    """Return the options without the letters that they begin with."""
    if isinstance(options, list) and len(options) == len(_LETTERS):
        found = [re.match(rf"{letter}[.:)]\s*", str(text)) for letter, text in zip(_LETTERS, options, strict=True)]
        if all(found):
            return tuple(str(text)[match.end() :] for text, match in zip(options, found, strict=True) if match)
    raise ValueError(
        f"{origin}: expected four options that begin with 'A. ', 'B. ', 'C. ' and 'D. ', got {options!r}; get the "
        "original file"
    )


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path} is read by pyarrow, which is not installed; pip install pyarrow") from error
    columns = [*_TEXTS, "options"]
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a Parquet file ({reason}); get the original file") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise ValueError(
            f"{path}: expected the columns {columns}, got {table.column_names} without {', '.join(missing)}; get the "
            "original file"
        )
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return rows
