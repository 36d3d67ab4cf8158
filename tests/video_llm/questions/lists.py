"""Lists of questions in the official form, with rows like those that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEXTQA_HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
NEXTQA_ROWS = [
    "4010069381,369,640,480,how do the two man play the instrument,0,6,CH,roll the handle,tap their feet,strum,hit,pat",
    "4882821564,2697,640,480,why did the boy pick up one present,2,1,CW,share,approach lady,unwrap it,play,gesture",
    "4010069381,369,640,480,what did he do before that,3,7,TP,sing,wave,jump,drink again,clap",
    '2435100235,1906,640,480,"how many, in all",4,0,DC,one,two,three,four,"five, or so"',
]


def write(path: Path, content: Any) -> Path:
    """Write a text, or other content as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_nextqa(root: Path, rows: list[str] | None = None, *, folders: dict[str, str] | None = None) -> None:
    write(root / "annotations" / "val.csv", "\n".join([NEXTQA_HEADER, *(rows or NEXTQA_ROWS)]) + "\n")
    if folders is not None:
        write(root / "annotations" / "map_vid_vidorID.json", folders)


def write_egoschema(root: Path, count: int = 4, **answers: int) -> None:
    entries = [
        {
            "q_uid": f"uid{number}",
            "google_drive_id": "15yGB0TI5zG5usdQZOXn0CrRzkJNB0gMl",
            "question": f"What is the aim in {number}?",
            **{f"option {index}": f"C does {index}" for index in range(5)},
        }
        for number in range(count)
    ]
    write(root / "annotations" / "questions.json", entries)
    write(root / "annotations" / "subset_answers.json", answers or {"uid1": 3, "uid3": 0})


def write_mlvu(root: Path, **changes: list[dict[str, Any]]) -> None:
    for task in ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning"):
        kind = task.partition("_")[2]
        entry = {
            "video": f"{kind}_1.mp4",
            "duration": 246,
            "question": "What color is the main male character in the video?",
            "candidates": ["Yellow", "Red", "Green", "Blue"],
            "answer": "Green",
            "question_type": kind,
        }
        write(root / "annotations" / f"{task}.json", changes.get(kind, [entry]))


def videomme_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "video_id": f"{number // 3 + 1:03}",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "url": "https://www.youtube.com/watch?v=-fFjv93ACGo",
        "videoID": f"-fFjv93ACGo{number // 3}",
        "question_id": f"{number // 3 + 1:03}-{number % 3 + 1}",
        "task_type": "Counting Problem",
        "question": "Which kind of decoration has the largest number?",
        "options": ["A. Apples.", "B. Candles.", "C. B. B. King.", "D. The three kinds are of the same number."],
        "answer": "C",
        **changes,
    }
