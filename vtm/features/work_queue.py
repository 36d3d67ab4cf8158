"""Share the videos of a data set among processes, on any number of machines that see the same folder.

Nothing coordinates them: a process locks the video that it takes, and the lock ends with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vtm.data.datamodule import SPLITS, VideoDataModule
from vtm.data.source import Video, stored_times
from vtm.features.store import FeatureStore
from vtm.system.processes import host_name
from vtm.video.decoding import VideoError


class Work:
    """Know which videos there are and what has become of them, and take them one at a time.

    Args:
        data: Lists the videos of all splits; its source measures them.
        store: Where their features go.

    Attributes:
        videos: By id, with whether training uses it.
        stored: The ids of those whose features are complete.
        failed: Why the others cannot be stored, by their ids.
    """

    def __init__(self, data: VideoDataModule, store: FeatureStore) -> None:
        self.data = data
        self.store = store
        # training last: where a video is in two splits, it wants more of it
        self.videos = {v.id: (v, split == "train") for split in reversed(SPLITS) for v in data.videos(split)}
        self.failed: dict[str, str] = {}
        self.stored = {name for name, (video, train) in self.videos.items() if self._is_stored(video, train)}
        self._todo = [entry for name, entry in reversed(self.videos.items()) if name not in self.stored]
        self._ahead = len(self._todo)
        self._lockless = self._shuffled = False
        self._locks: dict[str, IO[bytes]] = {}

    def plan(self, video: Video, train: bool) -> tuple[float, list[float]]:
        """Measure a video, and list the times of the file that are to be stored."""
        source = self.data.source
        return source.length(video), stored_times(source, video, self.data.protocol, train=train)

    @property
    def passed(self) -> int:
        """Count the videos that are behind: stored, failed, or last seen in the hands of another process."""
        return len(self.videos) - self._ahead - len(self._locks)

    def take(self) -> Iterator[tuple[Video, float, list[float]]]:
        """Take the videos that are not stored and that no other process holds, until there are none."""
        todo, progress = list(self._todo), True
        while todo and progress:  # again, for those whose holder has died meanwhile
            held, progress = [], False
            self._ahead = len(todo)
            while todo:
                video, train = todo.pop()
                self._ahead -= 1
                if not self._lock(video):
                    held.append((video, train))
                    continue
                if self._lockless and not self._shuffled:
                    self._shuffled = True
                    random.Random(f"{host_name()} {os.getpid()}").shuffle(todo)
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
                    progress = True
                    yield video, *plan
            todo = held

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
        except OSError as error:
            if not self._lockless:
                print(
                    f"{path.parent} is on a file system without locks ({error.strerror}): processes that share the "
                    "work take the videos in different orders, and may do some of them twice"
                )
            self._lockless = True
        self._locks[video.id] = file
        return True

    def _is_stored(self, video: Video, train: bool) -> bool:
        return self.store.is_complete(video, self.data.protocol, train=train)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have left: those of this machine, and of any machine after a day."""
    for path in folder.glob("*/.*.part"):
        *_, host, process = path.name.removesuffix(".part").split(".")
        try:
            here = host == host_name()
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
