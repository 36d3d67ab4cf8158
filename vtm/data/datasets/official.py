"""The base class of Kinetics-400, SSv2 and EPIC-KITCHENS-100: labeled lists for training and validation, none for test.

The test labels of these sets are not public, or hardly used: the field reports scores on the official validation list,
which is therefore the test split here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple, Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.checking import Item, check_items
from vtm.data.source import Video
from vtm.video.listing import VideoIndex


class Listed(NamedTuple):
    """A video, or a segment of one, in an official list."""

    id: str
    target: int
    stems: tuple[str, ...]  # possible paths of the file without suffix, relative to `videos`
    origin: str  # file and line, for error messages
    start: float = 0.0  # start of the segment in seconds
    end: float | None = None  # end of the segment in seconds; None for the end of the file
    recording: str | None = None  # recording that the segment is part of; None if the video is independent of others


class OfficialDataModule(VideoDataModule):
    """Base class of data modules whose official validation list is the test split.

    Args:
        hold_out: validate on a tenth of the training list: of the videos of each class or, if the videos are segments,
            of the recordings. A hash of the ids selects them, so they do not depend on the seed. Otherwise train on the
            whole training list and validate on the test split too, as most published models do; checkpoints are then
            selected on test videos, and a run with `train=false` needs no training videos.
        options: see `VideoDataModule`.
    """

    def __init__(self, *, hold_out: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        self.hold_out = hold_out
        self._class_names: list[str] = []
        self._entries: dict[Split, Sequence[Listed]] | None = None

    @abstractmethod
    def read_lists(self) -> tuple[list[str], Sequence[Listed], Sequence[Listed]]:
        """Read the names of the classes by index, the training list and the validation list.

        Raises:
            ValueError: if a list is wrong.
            FileNotFoundError: if a list is missing.
        """

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order that published checkpoints use."""
        self._checked()
        return self._class_names

    @property
    def selection(self) -> Split:
        """Split on which checkpoints are selected."""
        return "val" if self.hold_out else "test"

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split in the order of the lists."""
        part: Split = "test" if split == "val" and not self.hold_out else split
        files = VideoIndex(self.root / "videos")
        return [
            Video(entry.id, files.find(*entry.stems), entry.target, entry.start, entry.end, entry.recording)
            for entry in self._checked()[part]
        ]

    def _checked(self) -> dict[Split, Sequence[Listed]]:
        """Read and check the lists and divide them into splits; this is done only once, and no files are looked up."""
        if self._entries is None:
            names, training, validation = self.read_lists()
            _check_recordings(training, validation)
            held_out = _hold_out(training) if self.hold_out else set()
            entries: dict[Split, Sequence[Listed]] = {
                "train": [entry for entry in training if (entry.recording or entry.id) not in held_out],
                "val": [entry for entry in training if (entry.recording or entry.id) in held_out],
                "test": validation,
            }
            check_items(
                [Item(e.id, names[e.target], split, e.origin) for split, part in entries.items() for e in part],
                source=self.root / "annotations",
                splits=SPLITS if self.hold_out else ("train", "test"),
                known=set(names),
            )
            self._class_names, self._entries = names, entries
        return self._entries


def check_class_count(names: Sequence[str], count: int, *, source: object) -> None:
    """Check the number of classes, on which the indices of the classes depend.

    Args:
        names: names of the classes.
        count: official number.
        source: file of the classes, for the error message.

    Raises:
        ValueError: if the number differs.
    """
    if len(names) != count:
        raise ValueError(
            f"{source}: expected the {count} official classes, got {len(names)}, so that the indices of classes differ "
            "from those of published checkpoints; get the original file, or use data=folder for other lists"
        )


def hold_out_tenth(classes: dict[str, int]) -> set[str]:
    """Select a tenth of the ids of each class, rounded and at least one, in the order of their SHA-256.

    Args:
        classes: class index by id.

    >>> len(hold_out_tenth({str(number): number % 2 for number in range(60)}))
    6
    """
    members = defaultdict(list)
    for key, label in classes.items():
        members[label].append(key)
    held_out: set[str] = set()
    for keys in members.values():
        keys.sort(key=lambda key: sha256(key.encode()).digest())
        held_out.update(keys[: max(1, round(len(keys) / 10))])
    return held_out


def _hold_out(training: Sequence[Listed]) -> set[str]:
    """Select a tenth of the videos of each class, or of all recordings."""
    return hold_out_tenth({e.recording or e.id: 0 if e.recording else e.target for e in training})


def _check_recordings(training: Sequence[Listed], validation: Sequence[Listed]) -> None:
    """Check that no recording has segments in both lists."""
    origins = {entry.recording: entry.origin for entry in training if entry.recording}
    for entry in validation:
        if entry.recording in origins:
            raise ValueError(
                f"{entry.origin}: expected recordings that are only in one list, got {entry.recording}, which is also "
                f"in {origins[entry.recording]}; get the original files"
            )
