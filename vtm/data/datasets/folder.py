"""A data set of the user's own videos, labeled by their folders or by a table."""

import csv
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from hashlib import sha256
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import header_hint
from vtm.data.datasets.checking import Item, check_ids, check_labels
from vtm.data.source import Video
from vtm.system.names import explain_missing, explain_path, fold
from vtm.video.listing import SUFFIXES, entries, is_video, walk

_LIKE_SPLITS = frozenset((*SPLITS, "training", "valid", "validation", "dev", "testing"))
_NUMBERS = "labels that are numbers to predict need task=regression data.regression=true"
_HELP = 'the section "folder" of data/README.md'


class FolderDataModule(VideoDataModule):
    """Data module of the user's own videos, whose ids are paths relative to `root/videos`.

    Labels and splits come from the first of these that exists:

    - the table `root/videos.csv` with the columns path, label and split, or path and label,
    - the folders `root/videos/<split>/<class>`, with the splits train, val and test,
    - the folders `root/videos/<class>`.

    Class folders may have subfolders. Without splits, a hash of the ids divides the videos, see `split_by_hash`.

    Args:
        regression: predict numbers, which are the labels in the table, instead of classes.
        options: see `VideoDataModule`.
    """

    def __init__(self, *, regression: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        self.regression = regression
        self._items: list[Item] | None = None

    @property
    def class_names(self) -> list[str] | None:
        """Labels of the training videos, sorted by code points; None for regression."""
        items = self._labeled()
        return None if self.regression else sorted({str(item.label) for item in items if item.split == "train"})

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split, sorted by id."""
        items = [item for item in self._labeled() if item.split == split]
        folder, number = self.root / "videos", {name: index for index, name in enumerate(self.class_names or ())}
        return [
            Video(item.id, folder / item.id, number[item.label] if isinstance(item.label, str) else item.label)
            for item in items
        ]

    def _labeled(self) -> list["Item"]:
        """Read and check the labels and splits; this is done only once."""
        if self._items is None:
            table, folder = self.root / "videos.csv", self.root / "videos"
            if table.is_file():
                items = _read_table(table)
            elif not folder.is_dir():
                hint = explain_path(table) or explain_path(folder)
                raise FileNotFoundError(
                    f"{self.root}: expected videos.csv or the folder videos in it{hint}; see {_HELP}"
                )
            elif self.regression:
                raise ValueError(
                    f"{folder}: expected numbers to predict in {table}, got only class folders; write this table"
                )
            else:
                items = _list_folders(folder)
            self._items = sorted(_checked(items, folder, regression=self.regression))
        return self._items


def split_by_hash(labels: dict[str, str]) -> dict[str, Split]:
    """Divide the ids of each label into 15 % val, 15 % test and the rest train, in the order of their SHA-256.

    The shares are rounded, and at least one id each. Equal ids have equal splits on every machine, but adding ids may
    move existing ones to another split.

    Args:
        labels: label by id.

    Raises:
        ValueError: if a label has fewer than three ids.

    >>> Counter(split_by_hash({str(number): "a" for number in range(20)}).values())
    Counter({'train': 14, 'val': 3, 'test': 3})
    """
    members = defaultdict(list)
    for key, label in labels.items():
        members[label].append(key)
    splits: dict[str, Split] = {}
    for label, keys in members.items():
        if len(keys) < len(SPLITS):
            raise ValueError(
                f"expected at least 3 videos{f' of class {label!r}' * bool(label)} to divide them into train, val and "
                f"test, got {len(keys)}; add videos, or define the splits as {_HELP} describes"
            )
        keys.sort(key=lambda key: sha256(key.encode()).digest())
        share = max(1, round(0.15 * len(keys)))
        splits |= {key: "val" if i < share else "test" if i < 2 * share else "train" for i, key in enumerate(keys)}
    return splits


def _read_table(path: Path) -> list[Item]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a comma-separated table in UTF-8 ({error}); save it as such") from error
    columns = rows[0][1] if rows else []
    layouts = ["path", "label", "split"], ["path", "label"]
    if columns not in layouts:
        hints = (header_hint(columns, names, delimiter=",") for names in layouts)
        raise ValueError(
            f"{path}: expected the columns path,label,split or path,label, got {','.join(columns)!r}"
            f"{next(filter(None, hints), '')}"
        )
    items = []
    for origin, row in rows[1:]:
        if len(row) != len(columns):
            raise ValueError(f"{origin}: expected the fields {','.join(columns)}, got {row}; quote fields with a comma")
        name, label, split = PurePosixPath(row[0]), row[1].strip(), row[2].strip() if len(row) == 3 else None
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"{origin}: expected a path relative to {path.with_suffix('')}, got {row[0]!r}; put a link to it there"
            )
        if not label:
            raise ValueError(f"{origin}: expected a label for {name}, got none; add it, or remove the line")
        if split is not None and split not in SPLITS:
            hint = explain_missing(split, SPLITS, here="the table", there="the names of the splits")
            raise ValueError(
                f"{origin}: expected train, val or test as split of {name}, got {split!r}{hint}; correct it"
            )
        items.append(Item(name.as_posix(), label, split, origin))
    return items


def _list_folders(folder: Path) -> list[Item]:
    names = [path.name for path in entries(folder) if path.is_dir()]
    if not any(fold(name) in _LIKE_SPLITS for name in names):
        return list(_list_classes(folder, None))
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        hints = [explain_missing(name, SPLITS, here="the folder", there="the names of the splits") for name in unknown]
        raise ValueError(
            f"{folder}: expected only the splits {', '.join(SPLITS)} as folders, got "
            f"{', '.join(unknown)}{''.join(hints)}; rename or move them, or write {folder}.csv if these are names of "
            "classes"
        )
    return [item for split in SPLITS if split in names for item in _list_classes(folder, split)]


def _list_classes(videos: Path, split: Split | None) -> Iterator[Item]:
    """Yield the videos in the class folders of a split, or of the whole data set if the split is None."""
    for folder in entries(videos / (split or "")):
        if not folder.is_dir():
            if is_video(folder):
                raise ValueError(f"{folder}: expected videos in class folders; move this one into a class folder")
            continue
        files = list(walk(folder))
        videos_of_class = [file for file in files if is_video(file)]
        if not videos_of_class:
            raise ValueError(
                f"{folder}: expected a video, with one of the suffixes {' '.join(sorted(SUFFIXES))}, got "
                f"{len(files)} other files{', such as ' * bool(files)}{', '.join(f.name for f in files[:3])}; "
                "put videos there, or remove the folder"
            )
        for file in videos_of_class:
            yield Item(file.relative_to(videos).as_posix(), folder.name, split, str(folder))


def _checked(items: list[Item], folder: Path, *, regression: bool) -> list[Item]:
    """Assign a split to each item, and check for errors that would stop a run late or invalidate its scores."""
    table = folder.with_suffix(".csv")
    source = table if table.is_file() else folder
    if not items:
        raise ValueError(f"{source}: expected videos, got none; see {_HELP}")
    check_ids(items, identity=lambda item: _identity(folder / item.id))
    if items[0].split is None:
        splits = split_by_hash({item.id: "" if regression else str(item.label) for item in items})
        items = [item._replace(split=splits[item.id]) for item in items]
        counts = Counter(splits.values())
        warnings.warn(
            f"{source}: no splits are defined, so a hash of their paths divides the videos: "
            f"{', '.join(f'{counts[split]} {split}' for split in SPLITS)}. Videos of one recording may be in different "
            f"splits; {table} with a column split keeps them together",
            stacklevel=2,
        )
    if regression:
        items = [item._replace(label=_value(item)) for item in items]
    if source == table:
        _check_names(items)
    check_labels(items, source=source, remedy=f"; {_NUMBERS}")
    if not regression and all(_is_number(str(item.label)) for item in items):
        count = len({item.label for item in items})
        warnings.warn(f"{source}: all {count} classes have numbers as names; {_NUMBERS}", stacklevel=2)
    return items


def _identity(path: Path) -> Hashable:
    """Return a value that is equal for equal files, also behind links and in other spellings of their path."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _value(item: Item) -> float:
    """Return the label of an item as a finite number."""
    if not _is_number(str(item.label)):
        raise ValueError(
            f"{item.origin}: expected a finite number as label of {item.id}, got {item.label!r}; correct it, or "
            "set task=classification data.regression=false for names of classes"
        )
    return float(item.label)


def _check_names(items: list[Item]) -> None:
    for item in items:
        if item.label in ("nan", "NaN"):
            raise ValueError(
                f"{item.origin}: expected the name of a class as label of {item.id}, got {item.label!r}, which pandas "
                "writes for a missing one; correct it, or remove the line"
            )


def _is_number(label: str) -> bool:
    """Return whether a label is a finite number."""
    try:
        return isfinite(float(label)) and "_" not in label  # Python reads 1_5 as 15
    except ValueError:
        return False
