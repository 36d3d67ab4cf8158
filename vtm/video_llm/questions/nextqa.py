"""NExT-QA, multiple choice (Xiao et al., CVPR 2021).

The format is that of `dataset/nextqa` in the repository `doc-doc/NExT-QA` (`val.csv`, `test.csv` and
`map_vid_vidorID.json`); ids and groups are those of its `eval_mc.py`, which counts `TP` (before) as `TN` (after).
"""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from vtm.data.datasets.annotations import header_hint, read_text
from vtm.video_llm.questions.listing import QuestionList, check_questions, read_json, whole_number
from vtm.video_llm.questions.question import Question

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_COLUMNS = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type", *_OPTIONS]
_TYPES = {"CW": "causal", "CH": "causal", "TN": "temporal", "TP": "temporal", "TC": "temporal"}
_TYPES |= {"DC": "descriptive", "DL": "descriptive", "DO": "descriptive"}
_MAP = "map_vid_vidorID.json"


class NExTQA(QuestionList):
    """List of NExT-QA.

    Videos are expected in the folders of VidOR, `videos/<folder>/<video>.<suffix>`, which `map_vid_vidorID.json` names,
    or as `videos/<video>.<suffix>`.

    Args:
        split: "val" or "test".
        options: see `QuestionList`.
    """

    def __init__(self, *, split: str, **options: Any) -> None:
        super().__init__(**options)
        if split not in ("val", "test"):
            raise ValueError(f"expected questions.split=val or test, got {split}")
        self._split = split

    def read(self) -> list[Question]:
        path = self.annotation(f"{self._split}.csv")
        folders: dict[str, str] = {}
        if (self.root / "annotations" / _MAP).is_file():
            folders = read_json(self.root / "annotations" / _MAP, dict)
        rows, origins = _read_rows(path)
        return check_questions(
            [self._question(row, folders, origin) for row, origin in zip(rows, origins, strict=True)], origins
        )

    def _question(self, row: dict[str, str], folders: dict[str, str], origin: str) -> Question:
        if row["type"] not in _TYPES:
            raise ValueError(f"{origin}: expected a type of {', '.join(_TYPES)}, got {row['type']!r}; correct it")
        video = row["video"]
        return Question(
            id=f"{video}_{row['qid']}",
            video=video,
            path=self.videos.find(*dict.fromkeys((folders.get(video, video), video))),
            text=row["question"],
            options=tuple(row[name] for name in _OPTIONS),
            answer=whole_number(row["answer"], f"{origin}: answer"),
            groups={"category": _TYPES[row["type"]], "type": row["type"].replace("TP", "TN")},
        )


def _read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows of a list by column, and the path and line of each."""
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    rows, origins, line = [], [], 1
    try:
        for row in reader:
            origin = f"{path}, line {line}"
            if line == 1 and row != _COLUMNS:
                hint = header_hint(row, _COLUMNS, delimiter=",")
                raise ValueError(f"{origin}: expected the columns {_COLUMNS}, got {row}{hint}; get the original file")
            if len(row) != len(_COLUMNS):
                raise ValueError(
                    f"{origin}: expected {len(_COLUMNS)} fields with commas between them, got {row}; correct the line, "
                    "or get the original file"
                )
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
            origins.append(origin)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: expected a row of CSV ({error}); get the original file") from error
    if len(rows) < 2:
        raise ValueError(f"{path}: expected a header and questions, got {len(rows)} lines; get the original file")
    return rows[1:], origins[1:]
