"""Lists of Kinetics-400, SSv2 and EPIC-KITCHENS-100 with few videos: rows like the real ones, and as many classes."""

import csv
import json
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

LABELS = ["abseiling", "air drumming", "passing American football (in game)", *(f"x action {n:03}" for n in range(397))]
TEMPLATES = ["Approaching something with your camera", "Attaching something to something"]
TEMPLATES += [f"Doing {number} things with something" for number in range(172)]
KEYS = {"verb": ["take", "put", "wash", *(f"verb-{n}" for n in range(94))]}
KEYS["noun"] = ["tap", "spoon", "board:chopping", *(f"noun:{n}" for n in range(297))]
EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)

Clip = tuple[str, str, int, int]  # label, YouTube id, start and end
Segment = tuple[str, str, str, int, int]  # narration id, start, stop, class of the verb, class of the noun


def write_kinetics400(root: Path, *, val: Sequence[Clip], train: Sequence[Clip] = ()) -> Path:
    """Write both lists; the training list also has two clips of each class."""
    every = [(label, f"filler{number:05}", 3, 13) for number, label in enumerate(2 * LABELS)]
    for name, clips in (("train", [*train, *every]), ("val", val)):
        lines = [f"{_quoted(label)},{key},{start},{end},{name},0" for label, key, start, end in clips]
        _write(root, f"{name}.csv", "\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines, ""]))
    return root


def write_ssv2(
    root: Path, *, train: Iterable[tuple[str, str]], validation: Iterable[tuple[str, str]], prefix: str = ""
) -> Path:
    """Write the labels and both lists of pairs of an id and a template."""
    _write(root, f"{prefix}labels.json", json.dumps({name: str(number) for number, name in enumerate(TEMPLATES)}))
    for name, pairs in (("train", train), ("validation", validation)):
        entries = [
            {"id": key, "label": "some text", "template": template, "placeholders": ["a potato"]}
            for key, template in pairs
        ]
        _write(root, f"{prefix}{name}.json", json.dumps(entries))
    return root


def write_epic_kitchens(root: Path, *, train: Iterable[Segment], validation: Iterable[Segment]) -> Path:
    """Write the classes and both lists."""
    for target, keys in KEYS.items():
        rows = [f"{number},{key},\"['{key}', 'other']\",a category" for number, key in enumerate(keys)]
        _write(root, f"EPIC_100_{target}_classes.csv", "\n".join(["id,key,instances,category", *rows, ""]))
    for name, segments in (("train", train), ("validation", validation)):
        text = StringIO(f"{EPIC_COLUMNS}\n")
        text.seek(0, 2)
        for key, start, stop, verb, noun in segments:
            video = key.rpartition("_")[0]
            words = ["take spoon, then wash", KEYS["verb"][verb], verb, KEYS["noun"][noun], noun]
            nouns = [str([KEYS["noun"][noun], "tap"]), str([noun, 0])]
            frames = [999_990, 999_999]  # of another rate: nothing may depend on them
            row = [key, video[:3], video, "", start, stop, *frames, *words, *nouns]
            csv.writer(text, lineterminator="\n").writerow(row)
        _write(root, f"EPIC_100_{name}.csv", text.getvalue())
    return root


def _quoted(label: str) -> str:
    return f'"{label}"' if " " in label else label


def _write(root: Path, name: str, text: str) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / name).write_text(text, encoding="utf-8")
