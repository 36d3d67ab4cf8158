"""LVU 1.0 (Wu and Krähenbühl, CVPR 2021): nine tasks on movie clips, in the lists published with ViS4mer."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from typing import Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import Row, name_classes, read_rows
from vtm.data.datasets.checking import Item, check_items
from vtm.data.source import Video
from vtm.system.names import explain_missing
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
            hint = explain_missing(task, (*_CLASSES, *_VALUES), here="data.task", there="the tasks")
            raise ValueError(f"expected task to be one of {', '.join((*_CLASSES, *_VALUES))}, got {task}{hint}")
        self.task = task
        self._class_names: list[str] | None = None
        self._entries: list[tuple[Item, Video]] | None = None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, with placeholders for the classes of director and writer that have no videos."""
        self._checked()
        return self._class_names

    def read_split(self, split: Split) -> list[Video]:
        """List the videos in the task's list of a split."""
        files = VideoIndex(self.root / "videos")
        return [replace(video, path=files.find(item.id)) for item, video in self._checked() if item.split == split]

    def _checked(self) -> list[tuple[Item, Video]]:
        """Read and check the lists of all splits; this is done only once, and the files are not looked up."""
        if self._entries is None:
            folder, lengths = self.root / "annotations" / self.task, self._lengths()
            rows = [(split, row) for split in SPLITS for row in self._rows(split)]
            classes = [(row.class_index("class_id"), row["class_name"]) for _, row in rows if self.task in _CLASSES]
            entries = []
            for split, row in rows:
                name, target = row["youtube_id"], self._target(row)
                if name not in lengths:
                    hint = explain_missing(name, lengths, here="the list", there="lvu_durations.csv")
                    raise ValueError(
                        f"{self.annotation('lvu_durations.csv')}: expected a row for {name}, a video of {split} "
                        f"({row.origin}), got none{hint}; get the original file, or add the row"
                    )
                video = Video(name, self.root, target, end=lengths[name], cluster=row["imdb_id"])
                entries.append((Item(name, row.get("class_name", target), split, row.origin), video))
            # a class without training videos is only warned of: the indices are fixed, and some classes are empty
            check_items([item for item, _ in entries], source=folder, known={name for _, name in classes})
            if classes:
                self._class_names = name_classes(classes, source=folder)
            self._entries = entries
        return self._entries

    def _lengths(self) -> dict[str, float]:
        """Read the lengths of the videos in seconds by id."""
        lengths: dict[str, float] = {}
        for row in read_rows(self.annotation("lvu_durations.csv"), ("videoid", "duration"), delimiter=","):
            length = row.number("duration", minimum=1)
            if lengths.setdefault(row["videoid"], length) != length:
                raise ValueError(
                    f"{row.origin}: expected one duration of {row['videoid']}, got {length:g} after "
                    f"{lengths[row['videoid']]:g}; remove the wrong one"
                )
        return lengths

    def _rows(self, split: Split) -> list[Row]:
        _, columns = _VALUES.get(self.task, (None, ("class_id", "class_name")))
        path = self.annotation(f"{self.task}/{split}.csv")
        return read_rows(path, (*columns, "youtube_id", "imdb_id"), delimiter=" ")  # spaces, despite the suffix

    def _target(self, row: Row) -> int | float:
        if self.task in _CLASSES:
            return row.class_index("class_id")
        value, columns = _VALUES[self.task]
        counts = [row.number(column, minimum=0) for column in columns]
        if not sum(counts):
            raise ValueError(
                f"{row.origin}: expected {' or '.join(columns)} of {row['youtube_id']} above 0, got "
                f"{' and '.join(row[column] for column in columns)}; correct or remove the line"
            )
        return value(*counts)
