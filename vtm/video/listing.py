"""Which files of a folder are videos."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the command needs is imported when its arguments are known to be right
    pass

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


_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


def find_video(folder: Path, *stems: str) -> Path:
    """Find a video whose container is not known; the first stem that is there with any suffix wins.

    Returns the path with the first stem and suffix where no file is there, for the list of what is missing.
    """
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def list_videos(names: Iterable[str]) -> list[Path]:
    """List files, those of folders, and those that match patterns, each once and in the order of the names.

    Raises:
        ValueError: if a name is none of these, or nothing is there.
    """
    from vtm.video.listing import is_video, walk

    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [file for file in walk(path) if is_video(file)]
        else:
            matches = sorted(map(Path, glob.glob(name, recursive=True)))
            files = [path] if path.exists() else [file for file in matches if file.is_file() and is_video(file)]
        if not files:
            what = (
                "no video in or below the folder" if path.is_dir() else "no such file or folder, and no video matches"
            )
            raise ValueError(f"{name}: {what}")
        found |= dict.fromkeys(files)
    return list(found)
