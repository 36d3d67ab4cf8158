"""Breakfast (Kuehne et al., CVPR 2014): ten activities, in the split by participant of VideoGraph and ViS4mer."""

from typing import Unpack

from vtm.data.datamodule import LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import name_classes, read_rows
from vtm.data.source import Video
from vtm.video.listing import VideoIndex

_COLUMNS = ("file_name", "duration", "action", "class_id")
_VAL_PARTICIPANTS = frozenset(f"P{number}" for number in range(40, 47))


class BreakfastDataModule(VideoDataModule):
    """Data module of Breakfast.

    Each camera is a separate video, as in the published lists; of the stereo camera only channel 0 is used. Video files
    are expected as distributed, `videos/P03/cam01/P03_cereals.avi`, or under the names in the lists,
    `videos/P03-cam01-P03_cereals.avi`. Recordings of one performance by several cameras are a cluster.

    Args:
        hold_out: validate on participants P40 to P46 of the training list, because Breakfast has no validation list.
            Otherwise train on all training videos and validate on the test split, as in ViS4mer; checkpoints are then
            selected on test videos.
        options: see `VideoDataModule`.
    """

    def __init__(self, *, hold_out: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        self.hold_out = hold_out
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the ten activities, as in the lists."""
        if self._class_names is None:
            path = self.annotation("train.csv")
            rows = read_rows(path, _COLUMNS, delimiter=",")
            self._class_names = name_classes(((int(row["class_id"]), row["action"]) for row in rows), source=path)
        return self._class_names

    @property
    def selection(self) -> Split:
        """Split on which checkpoints are selected."""
        return "val" if self.hold_out else "test"

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split, one per camera; their ids are the names in the lists."""
        tests = split == "test" or (split == "val" and not self.hold_out)
        path = self.annotation("test.csv" if tests else "train.csv")
        files, videos = VideoIndex(self.root / "videos"), []
        for row in read_rows(path, _COLUMNS, delimiter=","):
            name = row["file_name"]
            if name.count("-") != 2:
                raise ValueError(f"{path}: expected names <participant>-<camera>-<participant>_<activity>, got {name}")
            held_out = self.hold_out and name.split("-")[0] in _VAL_PARTICIPANTS
            if tests or held_out == (split == "val"):
                file = files.find(name.replace("-", "/"), name)
                performance = name.rsplit("-", 1)[1].removesuffix("_ch0")
                videos.append(Video(name, file, int(row["class_id"]), cluster=performance))
        return videos
