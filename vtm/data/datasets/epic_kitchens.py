"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022): segments of long kitchen recordings with a verb and a noun.

Format of the lists: README.md of github.com/epic-kitchens/epic-kitchens-100-annotations, "File Structure". Folders of
the recordings: epic_downloader.py of github.com/epic-kitchens/epic-kitchens-download-scripts.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack, get_args

from vtm.data.datamodule import LoaderOptions
from vtm.data.datasets.annotations import Row, name_classes, read_rows
from vtm.data.datasets.official import Listed, OfficialDataModule, check_class_count
from vtm.system.names import explain_missing

Target = Literal["verb", "noun"]

_COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip
_COUNTS: dict[str, int] = {"verb": 97, "noun": 300}
_RECORDING = re.compile(r"(P\d\d)_\d{2,3}", re.ASCII)
_TIME = re.compile(r"(\d\d):([0-5]\d):([0-5]\d(?:\.\d+)?)", re.ASCII)


class EpicKitchensDataModule(OfficialDataModule):
    """Data module of the verbs or the nouns of EPIC-KITCHENS-100, whose test split is the validation list.

    A segment lasts from `start_timestamp` to `stop_timestamp` of its recording. The frame numbers of the lists are not
    read: they count the published frames, which have other rates than the recordings. A segment with several nouns
    has the class of the first one, as in the official evaluation. The segments of one recording are a cluster.

    Recordings are expected as the official downloader writes them, `videos/P01/videos/P01_101.MP4`, or as
    `videos/P01_101.MP4`.

    Args:
        target: verb or noun.
        hold_out: see `OfficialDataModule`.
        options: see `VideoDataModule`.

    Raises:
        ValueError: if the target is unknown.
    """

    def __init__(self, *, target: Target, hold_out: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(hold_out=hold_out, **options)
        if target not in get_args(Target):
            hint = explain_missing(target, get_args(Target), here="data.target", there="the targets")
            raise ValueError(f"expected data.target={' or '.join(get_args(Target))}, got {target}{hint}")
        self.target = target

    def read_lists(self) -> tuple[list[str], Sequence[Listed], Sequence[Listed]]:
        """Read the classes, and the segments of `EPIC_100_train.csv` and `EPIC_100_validation.csv`."""
        table = self.annotation(f"EPIC_100_{self.target}_classes.csv")
        rows = read_rows(table, ("id", "key", "instances", "category"), delimiter=",", quoted=True)
        check_class_count([row["key"] for row in rows], _COUNTS[self.target], source=table)
        names = name_classes(((row.class_index("id"), row["key"]) for row in rows), source=table)
        check_class_count(names, _COUNTS[self.target], source=table)
        training, validation = (
            self._segments(self.annotation(f"EPIC_100_{name}.csv"), names) for name in ("train", "validation")
        )
        return names, training, validation

    def _segments(self, path: Path, names: Sequence[str]) -> list[Listed]:
        """Read the segments of a list."""
        segments = []
        for row in read_rows(path, _COLUMNS, delimiter=",", quoted=True):
            recording, target = row["video_id"], row.class_index(f"{self.target}_class")
            match = _RECORDING.fullmatch(recording)
            if match is None:
                raise ValueError(
                    f"{row.origin}: expected a recording such as P01_01 or P01_101 as video_id, got {recording!r}; get "
                    "the original file"
                )
            if target >= len(names):
                raise ValueError(
                    f"{row.origin}: expected a {self.target}_class below {len(names)}, got {target}; get the original "
                    "file"
                )
            start, end = seconds(row, "start_timestamp"), seconds(row, "stop_timestamp")
            if end <= start:
                raise ValueError(
                    f"{row.origin}: expected start_timestamp < stop_timestamp, got {row['start_timestamp']} and "
                    f"{row['stop_timestamp']}; get the original file"
                )
            stems = (f"{match[1]}/videos/{recording}", recording)
            segments.append(Listed(row["narration_id"], target, stems, row.origin, start, end, recording))
        return segments


def seconds(row: Row, column: str) -> float:
    """Return the time in a column in seconds.

    >>> round(seconds(Row([("start_timestamp", "01:02:03.45")], "list.csv, line 2"), "start_timestamp"), 2)
    3723.45
    """
    match = _TIME.fullmatch(row[column])
    if match is None:
        raise ValueError(
            f"{row.origin}: {column}: expected HH:MM:SS.ss, got {row[column]!r}; get the original file, which "
            "spreadsheets change"
        )
    hours, minutes, rest = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)
