"""Share the videos of a data set among processes, on any number of machines that see the same folder.

Nothing coordinates them: a process locks the video that it takes, and the lock ends with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vtm.data.datamodule import Split, VideoDataModule
from vtm.data.feature_file import FeatureError
from vtm.data.features import FeatureStore
from vtm.data.source import Video
from vtm.data.video import VideoError


class Work:
    """Know which videos there are and what has become of them, and take them one at a time.

    Args:
        data: Lists the videos of all splits; its source measures them.
        store: Where their features go.

    Attributes:
        videos: By id, with whether training uses it.
        stored: The ids of those whose features are complete.
        passed: How many are behind: stored, failed, or taken by another process.
        failed: Why the others cannot be stored, by their ids.
    """

    def __init__(self, data: VideoDataModule, store: FeatureStore) -> None:
        self.data = data
        self.store = store
        splits: tuple[Split, ...] = ("test", "val", "train")  # where one is in two splits, training wants more of it
        self.videos = {video.id: (video, split == "train") for split in splits for video in data.videos(split)}
        self.failed: dict[str, str] = {}
        self.stored = {name for name, (video, train) in self.videos.items() if self._is_stored(video, train)}
        self.passed = len(self.stored)
        self._todo = [entry for name, entry in self.videos.items() if name not in self.stored]
        self._locks: dict[str, IO[bytes]] = {}

    def plan(self, video: Video, train: bool) -> tuple[float, list[float]]:
        """Measure a video, and list the times of the file that are to be stored."""
        length = self.data.source.length(video)
        return length, [video.start + time for time in self.data.protocol.stored(length, train=train)]

    def take(self) -> Iterator[tuple[Video, float, list[float]]]:
        """Take the videos that are not stored and that no other process holds, one after the other."""
        for video, train in self._todo:
            self.passed += 1
            if not self._lock(video):
                continue
            if self._is_stored(video, train):  # by another process, since this one looked
                self.stored.add(video.id)
                self.release(video)
                continue
            try:
                plan = self.plan(video, train)
            except (VideoError, ValueError) as error:
                self.failed[video.id] = str(error)
                self.release(video)
            else:
                yield video, *plan

    def look_again(self) -> None:
        """Find out what other processes have stored meanwhile."""
        self.stored.update(video.id for video, train in self._todo if self._is_stored(video, train))

    def release(self, video: Video) -> None:
        """Let other processes have a video."""
        file = self._locks.pop(video.id)
        Path(file.name).unlink(missing_ok=True)
        file.close()

    def _lock(self, video: Video) -> bool:
        """Take hold of a video until it is released or this process ends, in whatever way."""
        path = Path(self.store.locate(video))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.stem}.lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:  # a file system without locks: two processes may do the same work, which harms nothing
            pass
        self._locks[video.id] = file
        return True

    def _is_stored(self, video: Video, train: bool) -> bool:
        """Look at the header alone; the length of an unmeasured video is the one that was measured then."""
        try:
            length = self.store.length(video) if video.end is None else self.data.source.length(video)
        except (FeatureError, ValueError):
            return False
        times = [video.start + time for time in self.data.protocol.stored(length, train=train)]
        return self.store.is_complete(video, times)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have left: those of this machine, and of any machine after a day."""
    for path in folder.glob("*/.*.part"):
        host, _, process = path.name.removesuffix(".part").rpartition(".")
        try:
            here = host.endswith(f".{socket.gethostname()}")
            if (here and not _is_alive(int(process))) or time.time() - path.stat().st_mtime > 86400:
                path.unlink()
        except FileNotFoundError:  # another process was faster
            continue


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
