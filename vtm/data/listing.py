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
    """List the files in and below a folder, those behind links too."""
    for path in entries(folder):
        yield from walk(path) if path.is_dir() else (path,)


def entries(folder: Path) -> list[Path]:
    """List what is not hidden in a folder."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
