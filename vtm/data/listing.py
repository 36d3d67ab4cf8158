"""Which files of a folder are videos."""

from collections.abc import Iterator
from pathlib import Path

SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v",
    ".wmv", ".asf", ".3gp", ".ogv", ".ogg", ".mxf",
))  # fmt: skip


def is_video(path: Path) -> bool:
    """Judge by the suffix.

    >>> is_video(Path("a.MP4")), is_video(Path("notes.txt"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def walk(folder: Path) -> Iterator[Path]:
    """List the files in and below a folder, those behind links too; no folder is entered twice.

    A broken link is listed, for whoever reads it to refuse; what else is no regular file, such as a pipe, is not.
    """
    entered, waiting = set[Path](), [folder]
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            if (place := path.resolve()) not in entered:
                entered.add(place)
                waiting += reversed(entries(path))
        elif path.is_file() or not path.exists():
            yield path


def entries(folder: Path) -> list[Path]:
    """List what is not hidden in a folder."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
