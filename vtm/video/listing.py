"""Which files of a folder are videos."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

SUFFIXES = (  # the preferred first, should a video be there twice
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v",
    ".wmv", ".asf", ".3gp", ".ogv", ".ogg", ".mxf",
)  # fmt: skip


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


class VideoIndex:
    """The videos in and below a folder by their paths without suffix, for lists that do not know the container.

    Each folder is read once, when a video in it is first asked for, since asking for every suffix of every video takes
    minutes on a network disk. Files that come later are not found: make a new index for each listing.

    Args:
        folder: What the paths are relative to; it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, dict[str, list[os.DirEntry[str]]]] = {}

    def find(self, *stems: str) -> Path:
        """Find a video; the first stem that is there with any suffix wins, and of its suffixes the first in `SUFFIXES`.

        Returns the path with the first stem and suffix where no file is there, for the list of what is missing.
        """
        for stem in stems:
            folder, name = os.path.split(stem)
            for entry in self._videos(self._folder / folder).get(name, ()):
                if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):  # asks the disk about links only
                    return Path(entry)
        return self._folder / f"{stems[0]}{SUFFIXES[0]}"

    def _videos(self, folder: Path) -> dict[str, list[os.DirEntry[str]]]:
        """List by their stems what is named as a video, the preferred suffix first."""
        if folder not in self._read:
            self._read[folder] = defaultdict(list)
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
                for entry in sorted((entry for entry in found if is_video(Path(entry))), key=_preference):
                    self._read[folder][Path(entry).stem].append(entry)
        return self._read[folder]


def _preference(entry: os.DirEntry[str]) -> tuple[int, str]:
    suffix = Path(entry).suffix
    return SUFFIXES.index(suffix.lower()), suffix.swapcase()  # .mp4 before .MP4


def list_videos(names: Iterable[str]) -> list[Path]:
    """List files, those of folders, and those that match patterns, each once and in the order of the names.

    Raises:
        ValueError: if a name is none of these, or nothing is there.
    """
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
