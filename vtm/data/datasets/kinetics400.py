"""Kinetics-400 (Kay et al., 2017): clips of about 10 s with 400 human actions, in DeepMind's lists.

Format of the lists and names of the files, as in the copy of the CVD Foundation (github.com/cvdfoundation/
kinetics-dataset: k400_downloader.sh, k400_extractor.sh, arrange_by_classes.py) and ActivityNet's downloader
(github.com/activitynet/ActivityNet, Crawler/Kinetics/download.py).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from vtm.data.datasets.annotations import Row, read_rows
from vtm.data.datasets.official import Listed, OfficialDataModule, check_class_count
from vtm.system.names import explain_missing

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_YOUTUBE_ID = re.compile(r"[\w-]{11}", re.ASCII)


class Kinetics400DataModule(OfficialDataModule):
    """Data module of Kinetics-400, whose test split is the validation list `val.csv`.

    Classes are the labels in alphabetical order, as in torchvision's weights, pytorchvideo's `kinetics_classnames.json`
    and the checkpoints of transformers; the lists have no numbers.

    Video files are the clips, `<YouTube id>_<start>_<end>.<suffix>` with six digits for each time, expected in
    `videos/<train or val>/<label>`, `videos/<train or val>`, `videos/<label>` or `videos`. A file `<YouTube id>.mp4` is
    not read, because it may be the clip or the whole video.
    """

    def read_lists(self) -> tuple[list[str], Sequence[Listed], Sequence[Listed]]:
        """Read the 400 labels, and the clips of `train.csv` and `val.csv`."""
        paths = {name: self.annotation(f"{name}.csv") for name in ("train", "val")}
        rows = {name: _read(path, name) for name, path in paths.items()}
        names = sorted({row["label"] for row in rows["train"]})
        check_class_count(names, 400, source=paths["train"])
        targets = {name: target for target, name in enumerate(names)}
        training, validation = ([_clip(row, targets, name) for row in part] for name, part in rows.items())
        return names, training, validation


def _read(path: Path, name: str) -> list[Row]:
    """Read a list and check that it is the one that its file name says."""
    rows = read_rows(path, _COLUMNS, delimiter=",", optional=("is_cc",), quoted=True)
    for row in rows:
        if not row["split"].startswith(name):  # validate in later versions
            raise ValueError(
                f"{row.origin}: expected {name} as split, got {row['split']!r}; get the original file, or give the "
                "file its original name"
            )
    return rows


def _clip(row: Row, targets: dict[str, int], name: str) -> Listed:
    video, label = row["youtube_id"], row["label"]
    if label not in targets:
        hint = explain_missing(label, targets, here="val.csv", there="train.csv")
        raise ValueError(f"{row.origin}: expected a label that is in train.csv, got {label!r}{hint}; correct it")
    if not _YOUTUBE_ID.fullmatch(video):
        raise ValueError(
            f"{row.origin}: expected a YouTube id of 11 letters, digits, - and _, got {video!r}; get the original file"
        )
    start, end = (row.number(column, minimum=0) for column in ("time_start", "time_end"))
    if end <= start or start != int(start) or end != int(end):
        raise ValueError(
            f"{row.origin}: expected whole seconds, time_start < time_end, got {row['time_start']} and "
            f"{row['time_end']}; get the original file"
        )
    stem = f"{video}_{int(start):06}_{int(end):06}"
    folders = (f"{name}/{label}/", f"{name}/", f"{label}/", "")
    return Listed(stem, targets[label], tuple(folder + stem for folder in folders), row.origin)
