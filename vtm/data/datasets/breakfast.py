"""Breakfast (Kuehne et al., CVPR 2014): ten activities, in the split by participant of VideoGraph and ViS4mer."""

import re
from dataclasses import replace
from typing import Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import name_classes, read_rows
from vtm.data.datasets.checking import Item, check_items
from vtm.data.source import Video
from vtm.video.listing import VideoIndex

_COLUMNS = ("file_name", "duration", "action", "class_id")
_NAME = re.compile(r"(?P<participant>\w+)-\w+-(?P<performance>(?P=participant)_\w+?)(_ch0)?")
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
        self._class_names: list[str] = []
        self._entries: list[tuple[Item, Video]] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the ten activities, as in the lists."""
        self._checked()
        return self._class_names

    @property
    def selection(self) -> Split:
        """Split on which checkpoints are selected."""
        return "val" if self.hold_out else "test"

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split, one per camera; their ids are the names in the lists."""
        part = "test" if split == "val" and not self.hold_out else split
        files = VideoIndex(self.root / "videos")
        return [
            replace(video, path=files.find(item.id.replace("-", "/"), item.id))
            for item, video in self._checked()
            if item.split == part
        ]

    def _checked(self) -> list[tuple[Item, Video]]:
        """Read and check both lists; this is done only once, and the files are not looked up."""
        if self._entries is None:
            paths = {name: self.annotation(f"{name}.csv") for name in ("train", "test")}
            every = [(name, row) for name, path in paths.items() for row in read_rows(path, _COLUMNS, delimiter=",")]
            entries: list[tuple[Item, Video]] = []
            people: dict[str, tuple[str, str]] = {}  # list and line of the first video of each participant
            for name, row in every:
                match = _NAME.fullmatch(row["file_name"])
                if match is None:
                    raise ValueError(
                        f"{row.origin}: expected names <participant>-<camera>-<participant>_<activity>, got "
                        f"{row['file_name']}; correct it, or get the original file"
                    )
                participant = match["participant"]
                other, origin = people.setdefault(participant.casefold(), (name, row.origin))
                if other != name:
                    raise ValueError(
                        f"{row.origin}: expected participants who are only in train or only in test, got {participant} "
                        f"in {name}, who is in {other} too ({origin}); remove the videos from one of the lists"
                    )
                held_out = self.hold_out and name == "train" and participant in _VAL_PARTICIPANTS
                split: Split = "val" if held_out else "train" if name == "train" else "test"
                target = row.class_index("class_id")
                video = Video(match.string, self.root, target, cluster=match["performance"])
                entries.append((Item(match.string, row["action"], split, row.origin), video))
            check_items(
                [item for item, _ in entries],
                source=self.root / "annotations",
                splits=SPLITS if self.hold_out else ("train", "test"),
                known={row["action"] for name, row in every if name == "train"},
            )
            classes = ((row.class_index("class_id"), row["action"]) for _, row in every)
            self._class_names = name_classes(classes, source=self.root / "annotations")
            self._entries = entries
        return self._entries
