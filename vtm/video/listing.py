"""Find the video files in and below a folder."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from vtm.system.names import explain_path

SUFFIXES = (  # in order of preference, for videos that exist in several containers
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v",
    ".wmv", ".asf", ".3gp", ".ogv", ".ogg", ".mxf",
)  # fmt: skip


def is_video(path: Path) -> bool:
    """Return whether a path has the suffix of a video file.

    >>> is_video(Path("a.MP4")), is_video(Path("notes.txt"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in and below a folder, following links and entering each folder once.

    Broken links are yielded, so that reading them raises an error. Other paths that are not regular files, such as
    pipes, are skipped.
    """
    entered, waiting = set[Path](), [folder]
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            if (resolved := path.resolve()) not in entered:
                entered.add(resolved)
                waiting += reversed(entries(path))
        elif path.is_file() or not path.exists():
            yield path


def entries(folder: Path) -> list[Path]:
    """List the files and folders in a folder that are not hidden, sorted by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def path_problem(name: str) -> str | None:
    r"""Return what a name from a list must be to stand for a file inside a folder; None if it is that.

    Links are allowed to lead out of the folder, because large data sets are often linked; names are not.

    >>> path_problem("cat/1.mp4"), path_problem("../1.mp4"), path_problem("a\nb")
    (None, 'a relative path without ".."', 'a name without control characters')
    """
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ".." in parts or re.match(r"[A-Za-z]:[/\\]", name):
        return 'a relative path without ".."'
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "a name without control characters"
    if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that Python could not decode
        return "a name in UTF-8"
    if max(len(part.encode()) for part in parts) > 255:
        return "file names of at most 255 bytes"
    return None


class VideoIndex:
    """An index of the videos in and below a folder by path without suffix, for lists that do not name the container.

    Each folder is read once, when the first video in it is requested, because testing every suffix of every video
    takes minutes on a network disk. Files that are added later are not found: make a new index for each listing.

    Args:
        folder: folder that the paths are relative to; it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, dict[str, list[os.DirEntry[str]]]] = {}

    def find(self, *stems: str) -> Path:
        """Return the path of the first stem for which a video exists, with the first such suffix in `SUFFIXES`.

        If there is no video, return the path with the first stem and the first suffix, to report it as missing.

        Raises:
            ValueError: if a stem leads out of the folder, or cannot be a file name.
        """
        for stem in stems:
            if problem := path_problem(stem):
                raise ValueError(f"{self._folder}: expected {problem}, got {stem!r}; correct the list")
            folder, name = os.path.split(stem)
            for entry in self._videos(self._folder / folder).get(name, ()):
                if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):  # only links take a system call
                    return Path(entry)
        return self._folder / f"{stems[0]}{SUFFIXES[0]}"

    def _videos(self, folder: Path) -> dict[str, list[os.DirEntry[str]]]:
        """Return the entries of a folder with a video suffix by stem, preferred suffixes first."""
        if folder not in self._read:
            self._read[folder] = defaultdict(list)
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as scan:
                for entry in sorted((entry for entry in scan if is_video(Path(entry))), key=_preference):
                    self._read[folder][Path(entry).stem].append(entry)
        return self._read[folder]


def _preference(entry: os.DirEntry[str]) -> tuple[int, str]:
    suffix = Path(entry).suffix
    return SUFFIXES.index(suffix.lower()), suffix.swapcase()  # .mp4 before .MP4


def list_videos(names: Iterable[str]) -> list[Path]:
    """List the videos that match the names, each once and in the order of the names.

    Args:
        names: files, folders (the videos in and below them) and glob patterns (the videos that match).

    Raises:
        ValueError: if a name does not exist, or contains or matches no video.
    """
    videos: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [file for file in walk(path) if is_video(file)]
        else:
            matches = sorted(map(Path, glob.glob(name, recursive=True)))
            files = [path] if path.exists() else [file for file in matches if file.is_file() and is_video(file)]
        if not files:
            reason = "no video in or below the folder"
            if not path.is_dir():
                reason = f"no such file or folder, and no video matches{explain_path(path)}"
            raise ValueError(f"{name}: {reason}")
        videos |= dict.fromkeys(files)
    return list(videos)
