"""Videos of one's own, labelled by the folders that they lie in, or by a table."""

import csv
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import sha256
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.source import Video
from vtm.video.listing import SUFFIXES, entries, is_video, walk

_LIKE_SPLITS = frozenset((*SPLITS, "training", "valid", "validation", "dev", "testing"))
_HELP = 'the section "folder" of data/README.md'


class FolderDataModule(VideoDataModule):
    """Load videos of one's own; ids are paths relative to `root/videos`.

    Labels and splits come from the first of these that is there:

    - the table `root/videos.csv` with the columns path, label and split, or path and label,
    - the folders `root/videos/<split>/<class>`, with the splits train, val and test,
    - the folders `root/videos/<class>`.

    Below the folder of a class, videos may lie as deep as they like. Where nothing tells the split, a hash of the id
    does, as `split_by_hash` describes.

    Args:
        regression: The labels are numbers to predict, and not the names of classes; they come from the table.
    """

    def __init__(self, *, regression: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        self.regression = regression
        self._items: list[_Item] | None = None

    @property
    def class_names(self) -> list[str] | None:
        """List the labels of the training videos, sorted by their characters; None for regression."""
        items = self._labelled()
        return None if self.regression else sorted({item.label for item in items if item.split == "train"})

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split in the order of their ids."""
        items = [item for item in self._labelled() if item.split == split]
        folder, number = self.root / "videos", {name: index for index, name in enumerate(self.class_names or ())}
        return [
            Video(item.id, folder / item.id, float(item.label) if self.regression else number[item.label])
            for item in items
        ]

    def _labelled(self) -> list["_Item"]:
        """Read and check all labels once."""
        if self._items is None:
            table, folder = self.root / "videos.csv", self.root / "videos"
            if table.is_file():
                items = _read_table(table)
            elif not folder.is_dir():
                raise FileNotFoundError(f"{self.root}: expected videos.csv or the folder videos in it; see {_HELP}")
            elif self.regression:
                raise ValueError(f"{folder}: folders name classes; numbers to predict have to stand in {table}")
            else:
                items = _list_folders(folder)
            self._items = sorted(_checked(items, folder, regression=self.regression))
        return self._items


def split_by_hash(labels: dict[str, str]) -> dict[str, Split]:
    """Divide the ids of each label into 15 % val, 15 % test and the rest train, in the order of their SHA-256.

    The shares are rounded, and at least one. The same ids give the same splits on every machine, but further ids may
    move some of the old ones.

    Raises:
        ValueError: A label has fewer than the three ids it takes.

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
                f"test, got {len(keys)}; add some, or divide them yourself as {_HELP} describes"
            )
        keys.sort(key=lambda key: sha256(key.encode()).digest())
        share = max(1, round(0.15 * len(keys)))
        splits |= {key: "val" if i < share else "test" if i < 2 * share else "train" for i, key in enumerate(keys)}
    return splits


class _Item(NamedTuple):
    id: str
    label: str
    split: Split | None
    place: str  # where this stands, for messages


def _read_table(path: Path) -> list[_Item]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table in UTF-8, separated by commas ({error}); save it anew") from error
    columns = rows[0][1] if rows else []
    if columns not in (["path", "label", "split"], ["path", "label"]):
        raise ValueError(f"{path}: expected the columns path,label,split or path,label, got {','.join(columns)!r}")
    items = []
    for place, row in rows[1:]:
        if len(row) != len(columns):
            raise ValueError(f"{place}: expected the fields {','.join(columns)}, got {row}; quote fields with a comma")
        name, label, split = PurePosixPath(row[0]), row[1].strip(), row[2].strip() if len(row) == 3 else None
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{place}: expected a path relative to {path.with_suffix('')}, got {row[0]!r}; put a link")
        if not label:
            raise ValueError(f"{place}: expected a label for {name}, got none; add it, or take out the line")
        if split is not None and split not in SPLITS:
            raise ValueError(f"{place}: expected train, val or test as split of {name}, got {split!r}; correct it")
        items.append(_Item(name.as_posix(), label, split, place))
    return items


def _list_folders(folder: Path) -> list[_Item]:
    names = [path.name for path in entries(folder) if path.is_dir()]
    if not any(name.casefold() in _LIKE_SPLITS for name in names):
        return list(_list_classes(folder, None))
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise ValueError(
            f"{folder}: expected the splits {', '.join(SPLITS)} and no other folder beside them, got "
            f"{', '.join(unknown)}; rename or move them, or write {folder}.csv for classes with such names"
        )
    return [item for split in SPLITS if split in names for item in _list_classes(folder, split)]


def _list_classes(videos: Path, split: Split | None) -> Iterator[_Item]:
    """List the videos in the folders of the classes of a split."""
    for folder in entries(videos / (split or "")):
        if not folder.is_dir():
            if is_video(folder):
                raise ValueError(f"{folder}: expected videos in folders of their class; move this one into one")
            continue
        files = list(walk(folder))
        found = [file for file in files if is_video(file)]
        if not found:
            raise ValueError(
                f"{folder}: expected a video, with one of the suffixes {' '.join(sorted(SUFFIXES))}, got "
                f"{len(files)} files of other kinds{', such as ' * bool(files)}{', '.join(f.name for f in files[:3])}; "
                "put videos there, or take the folder away"
            )
        for file in found:
            yield _Item(file.relative_to(videos).as_posix(), folder.name, split, str(folder))


def _checked(items: list[_Item], folder: Path, *, regression: bool) -> list[_Item]:
    """Give each item its split, and refuse what would make a run fail late or a score mean less than it says."""
    table = folder.with_suffix(".csv")
    source = table if table.is_file() else folder
    if not items:
        raise ValueError(f"{source}: expected videos, got none; see {_HELP}")
    files: dict[Path, _Item] = {}
    for item in items:
        if any("\ud800" <= character <= "\udfff" for character in item.id):  # bytes that Python could not decode
            raise ValueError(f"{item.place!r}: expected names in UTF-8, got {item.id!r}; rename the file")
        other = files.setdefault((folder / item.id).resolve(), item)
        if other is not item:
            raise ValueError(
                f"{item.place}: expected every video once, but {item.id} ({item.split}) is the file of {other.place}, "
                f"{other.id} ({other.split}); keep one of them"
            )
    if items[0].split is None:
        splits = split_by_hash({item.id: "" if regression else item.label for item in items})
        items = [item._replace(split=splits[item.id]) for item in items]
        counts = Counter(splits.values())
        warnings.warn(
            f"{source}: nothing says which videos to train on, so a hash of their paths divides them: "
            f"{', '.join(f'{counts[split]} {split}' for split in SPLITS)}. Videos of one recording may be on both "
            f"sides; {table} with a column split keeps them together",
            stacklevel=2,
        )
    for split in SPLITS:
        if not any(item.split == split for item in items):
            raise ValueError(f"{source}: expected videos in {', '.join(SPLITS)}, got none in {split}; see {_HELP}")
    _check_values(items) if regression else _check_classes(items, source)
    return items


def _check_values(items: list[_Item]) -> None:
    for item in items:
        if not _is_number(item.label):
            raise ValueError(
                f"{item.place}: expected a finite number as label of {item.id}, got {item.label!r}; correct it, or set "
                "task=classification data.regression=false for names of classes"
            )


def _check_classes(items: list[_Item], source: Path) -> None:
    remedy = "labels that are numbers to predict need task=regression data.regression=true"
    classes = {item.label for item in items if item.split == "train"}
    for item in items:
        if item.label not in classes:
            raise ValueError(
                f"{item.place}: expected only classes that have training videos, got {item.label!r} for {item.id} "
                f"({item.split}); put some of that class into train, or take it out; {remedy}"
            )
    if len(classes) < 2:
        raise ValueError(f"{source}: expected at least 2 classes, got only {min(classes)!r}; add videos of another one")
    if all(map(_is_number, classes)):
        warnings.warn(f"{source}: all {len(classes)} classes have numbers as names; {remedy}", stacklevel=2)


def _is_number(label: str) -> bool:
    """Tell whether a label is a finite number."""
    try:
        return isfinite(float(label))
    except ValueError:
        return False
