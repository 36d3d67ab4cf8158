"""Something-Something v2 (Goyal et al., ICCV 2017): 174 actions of hands with objects, in the official lists.

Format of the lists: github.com/facebookresearch/SlowFast (slowfast/datasets/ssv2.py) and the dataset card
huggingface.co/datasets/HuggingFaceM4/something_something_v2. Qualcomm's newer package has the same files with shorter
names, and `test-answers.csv`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtm.data.datasets.annotations import class_index, name_classes, read_text
from vtm.data.datasets.official import Listed, OfficialDataModule, check_class_count
from vtm.system.names import explain_missing

_BRACKETS = str.maketrans("", "", "[]")


class SSv2DataModule(OfficialDataModule):
    """Data module of Something-Something v2, whose test split is the validation list.

    The class of a video is its template without brackets, "Holding something next to something", not its `label`, in
    which the names of objects are filled in. Classes have the numbers of the list of labels, as in published
    checkpoints. Video files are expected as `videos/<id>.webm`, or with any other suffix.
    """

    def read_lists(self) -> tuple[list[str], Sequence[Listed], Sequence[Listed]]:
        """Read the 174 labels, and the videos of the training list and the validation list."""
        labels, training, validation = (
            self.annotation(f"something-something-v2-{name}.json", f"{name}.json")
            for name in ("labels", "train", "validation")
        )
        content = _read_json(labels)
        if not isinstance(content, dict):
            raise ValueError(f'{labels}: expected {{"<template>": "<number>"}}; get the original file')
        targets = {name: class_index(number, f"{labels}: {name}") for name, number in content.items()}
        check_class_count(list(targets), 174, source=labels)
        names = name_classes(((target, name) for name, target in targets.items()), source=labels)
        check_class_count(names, 174, source=labels)
        return names, _videos(training, targets, labels.name), _videos(validation, targets, labels.name)


def _videos(path: Path, targets: dict[str, int], labels: str) -> list[Listed]:
    """Read the videos of a list."""
    content = _read_json(path)
    if not isinstance(content, list):
        raise ValueError(f'{path}: expected [{{"id": …, "template": …}}, …]; get the original file')
    videos = []
    for number, entry in enumerate(content, start=1):
        origin = f"{path}, entry {number}"
        fields = entry if isinstance(entry, dict) else {}
        key, template = fields.get("id"), fields.get("template")
        if not isinstance(key, str) or not key.isdecimal() or not isinstance(template, str):
            raise ValueError(
                f"{origin}: expected an id, digits as text, and a template, got {str(entry)[:100]}; get the original "
                "file, and not the list of test videos, which has no templates"
            )
        name = template.translate(_BRACKETS)
        if name not in targets:
            hint = explain_missing(name, targets, here="the list", there=labels)
            raise ValueError(f"{origin}: expected a template that is in {labels}, got {name!r}{hint}; correct it")
        videos.append(Listed(key, targets[name], (key,), origin))
    return videos


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON in UTF-8 ({error}); download the file itself, not its web page"
        ) from error
