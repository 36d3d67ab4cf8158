"""Check the lists of a data set as a whole, before anything is read, trained or written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vtm.data.datamodule import SPLITS, Split
from vtm.system.names import explain_difference, explain_missing, fold
from vtm.video.listing import path_problem

_SHOWN = 3


class Item(NamedTuple):
    """A video in a list."""

    id: str
    label: str | float  # name of the class, or value to predict
    split: Split | None  # None if it is not chosen yet
    origin: str  # file and line, or folder, for error messages


def check_items(
    items: Sequence[Item], *, source: Path, splits: Collection[Split] = SPLITS, known: Collection[str] | None = None
) -> None:
    """Check the ids, splits and labels of all listed videos of a data set, see `check_ids` and `check_labels`."""
    check_ids(items)
    check_labels(items, source=source, splits=splits, known=known)


def check_ids(items: Sequence[Item], *, identity: Callable[[Item], Hashable] | None = None) -> None:
    """Check that each video is listed once, and that its id is a path inside the folder of the videos.

    A warning names ids that differ only in a way that is hard to see.

    Args:
        items: videos of all splits.
        identity: function that returns equal values for items that are the same video; the default compares ids.

    Raises:
        ValueError: if a video is listed twice, or an id leads out of the folder or cannot be a file name.
    """
    seen: dict[Hashable, Item] = {}
    for item in items:
        if problem := path_problem(item.id):
            origin = item.origin.encode(errors="backslashreplace").decode()
            raise ValueError(
                f"{origin}: expected {problem} as the name of a video, got {item.id!r}; correct the list, or rename "
                "the file"
            )
        other = seen.setdefault(PurePosixPath(item.id) if identity is None else identity(item), item)
        if other is not item:
            raise ValueError(
                f"{item.origin}: expected every video once, got {item.id} ({item.split}), which is the same file as "
                f"{other.id} ({other.split}) of {other.origin}; keep one of them"
            )
    _warn_of_similar_ids(items)


def check_labels(
    items: Sequence[Item],
    *,
    source: Path,
    splits: Collection[Split] = SPLITS,
    known: Collection[str] | None = None,
    remedy: str = "",
) -> None:
    """Check that each split has videos, that values are finite, and that classes are those of the training videos.

    A warning lists classes without training videos that are `known` nevertheless, and names of classes that differ only
    in a way that is hard to see.

    Args:
        items: videos of all splits.
        source: file or folder of the lists, for error messages.
        splits: splits that must have videos.
        known: names of the classes that val and test may have; the default is the classes of train.
        remedy: further advice about labels, for error messages.

    Raises:
        ValueError: if a split is empty, a value is not finite, there is only one class, or val or test have an unknown
            class.
    """
    for split in SPLITS:
        if split in splits and not any(item.split == split for item in items):
            raise ValueError(
                f"{source}: expected videos in {', '.join(s for s in SPLITS if s in splits)}, got none in {split}; "
                "add them, see data/README.md"
            )
    for item in items:
        if not isinstance(item.label, str) and not isfinite(item.label):
            raise ValueError(
                f"{item.origin}: expected a finite value for {item.id}, got {item.label}; correct or remove the line"
            )
    if all(isinstance(item.label, str) for item in items):
        _check_classes(items, source, known, remedy)


def _warn_of_similar_ids(items: Sequence[Item]) -> None:
    seen: dict[str, Item] = {}
    pairs = [(other, item) for item in items if (other := seen.setdefault(fold(item.id), item)) is not item]
    if pairs:
        first, second = pairs[0]
        warnings.warn(
            f"{second.origin}: {second.id!r} ({second.split}) and {first.id!r} ({first.split}) of {first.origin} are "
            f"taken as two videos, but "
            f"{explain_difference(first.id, second.id, here='the first', there='the second')}"
            + (f"; {len(pairs) - 1} more ids are similar to others" if len(pairs) > 1 else "")
            + "; remove one if they are the same video",
            stacklevel=2,
        )


def _check_classes(items: Sequence[Item], source: Path, known: Collection[str] | None, remedy: str) -> None:
    trained = {str(item.label) for item in items if item.split == "train"}
    known = trained if known is None else known
    untrained: dict[str, Item] = {}
    for item in items:
        label = str(item.label)
        if label not in known:
            hint = explain_missing(label, sorted(known), here=str(item.split), there="train")
            raise ValueError(
                f"{item.origin}: expected only classes that have training videos, got {label!r} for {item.id} "
                f"({item.split}){hint}; put videos of this class into train, or remove it{remedy}"
            )
        if label not in trained:
            untrained.setdefault(label, item)
    if len(known) < 2:
        raise ValueError(f"{source}: expected at least 2 classes, got only {min(known)!r}; add videos of another one")
    if untrained:
        names = ", ".join(
            f"{label!r} ({item.split}, {item.origin})" for label, item in list(untrained.items())[:_SHOWN]
        )
        warnings.warn(
            f"{source}: a model does not learn classes without training videos, here {len(untrained)}: {names}",
            stacklevel=2,
        )
    folds: dict[str, str] = {}
    for label in sorted(known):
        other = folds.setdefault(fold(label), label)
        if other != label:
            difference = explain_difference(other, label, here="the first", there="the second")
            warnings.warn(f"{source}: {other!r} and {label!r} are two classes, but {difference}", stacklevel=2)
