"""LVU 1.0 (Wu and Krähenbühl, CVPR 2021): nine tasks on movie clips, in the lists published with ViS4mer."""

from collections.abc import Callable
from math import log
from typing import Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import name_classes, read_rows
from vtm.data.source import Video
from vtm.video.listing import VideoIndex

_CLASSES = ("relationship", "way_speaking", "scene", "director", "genre", "writer", "year")


def like_ratio(likes: float, dislikes: float) -> float:
    """Scale the share of likes to 0 … 10 and center it with LVU's constant; published errors are on this scale.

    >>> round(like_ratio(9, 1), 4)
    -0.1382
    """
    return 10 * likes / (likes + dislikes) - 9.138220535629456


def view_count(views: float) -> float:
    """Take the natural logarithm of the views and center it with LVU's constant; published errors are on this scale.

    >>> round(view_count(100_000), 4)
    -0.2513
    """
    return log(views) - 11.76425435683139


_VALUES: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "like_ratio": (like_ratio, ("like_count", "dislike_count")),
    "view_count": (view_count, ("view_count",)),
}


class LVUDataModule(VideoDataModule):
    """Data module of one task of LVU.

    Video files are expected as `videos/<YouTube id>.<suffix>`. Their lengths in whole seconds are read from
    `lvu_durations.csv`, so that all results are on the same windows. The videos of one movie are a cluster.

    Args:
        task: one of the nine tasks, the name of its folder of lists.
        options: see `VideoDataModule`.

    Raises:
        ValueError: if the task is unknown.
    """

    def __init__(self, *, task: str, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        if task not in (*_CLASSES, *_VALUES):
            raise ValueError(f"expected task to be one of {', '.join((*_CLASSES, *_VALUES))}, got {task}")
        self.task = task
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, with placeholders for the classes of director and writer that have no videos."""
        rows = [row for split in SPLITS for row in self._rows(split)]
        if self.task in _CLASSES and self._class_names is None:
            pairs = ((int(row["class_id"]), row["class_name"]) for row in rows)
            self._class_names = name_classes(pairs, source=self.root / "annotations" / self.task)
        return self._class_names

    def read_split(self, split: Split) -> list[Video]:
        """List the videos in the task's list of a split."""
        durations = {
            row["videoid"]: float(row["duration"])
            for row in read_rows(self.annotation("lvu_durations.csv"), ("videoid", "duration"), delimiter=",")
        }
        files, videos = VideoIndex(self.root / "videos"), []
        for row in self._rows(split):
            name = row["youtube_id"]
            if name not in durations:
                raise ValueError(
                    f"{self.annotation('lvu_durations.csv')}: expected a row for {name}, a video of {split}"
                )
            target, cluster = self._target(row), row["imdb_id"]
            videos.append(Video(name, files.find(name), target, end=durations[name], cluster=cluster))
        return videos

    def _rows(self, split: Split) -> list[dict[str, str]]:
        _, columns = _VALUES.get(self.task, (None, ("class_id", "class_name")))
        path = self.annotation(f"{self.task}/{split}.csv")
        return read_rows(path, (*columns, "youtube_id", "imdb_id"), delimiter=" ")  # spaces, despite the suffix

    def _target(self, row: dict[str, str]) -> int | float:
        if self.task in _CLASSES:
            return int(row["class_id"])
        value, columns = _VALUES[self.task]
        return value(*(float(row[column]) for column in columns))
