"""Share the videos of a data set among processes, on any number of machines that see the same folder."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from vtm.data.datamodule import SPLITS, VideoDataModule
from vtm.data.source import Video, stored_times
from vtm.features.store import FeatureStore
from vtm.system.locks import MarkerLocks, take
from vtm.system.processes import host_name
from vtm.video.decoding import VideoError


class WorkQueue:
    """A queue of the videos whose features are to be stored, which processes take one at a time.

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
        self.stored: set[str] = set()
        self.failed: dict[str, str] = {}
        self._ahead = deque(name for name in self.videos if not self._is_stored(name))
        self._locks = MarkerLocks(self._marker)

    def plan(self, video: Video, train: bool) -> tuple[float, list[float]]:
        """Measure a video, and list the times of the file that are to be stored."""
        source = self.data.source
        return source.length(video), stored_times(source, video, self.data.protocol, train=train)

    @property
    def passed(self) -> int:
        """Count the videos that are behind: stored, failed, or last seen in the hands of another process."""
        return len(self.videos) - len(self._ahead) - len(self._locks.held)

    def take(self) -> Iterator[tuple[Video, float, list[float]]]:
        """Take the videos that are not stored and that no other process holds, until there are none."""
        shuffled = False
        for name in take(self._ahead, self._locks, is_done=self._is_stored):
            video, train = self.videos[name]
            if self._locks.refusal is not None and not shuffled:
                shuffled = True
                print(
                    f"{self._marker(name).parent} is on a file system without locks ({self._locks.refusal.strerror}): "
                    "processes that share the work take the videos in different orders, and may do some of them twice"
                )
                random.Random(f"{host_name()} {os.getpid()}").shuffle(self._ahead)
            try:
                plan = self.plan(video, train)
            except (VideoError, ValueError) as error:
                self.failed[name] = str(error)
                self.release(video)
            else:
                yield video, *plan

    def refresh(self) -> None:
        """Find out what other processes have stored meanwhile."""
        for name in self.videos:
            self._is_stored(name)

    def release(self, video: Video) -> None:
        """Let other processes have a video."""
        self._locks.release(video.id)

    def _is_stored(self, name: str) -> bool:
        """Look whether the features of a video are complete, and remember it."""
        video, train = self.videos[name]
        if name not in self.stored and self.store.is_complete(video, self.data.protocol, train=train):
            self.stored.add(name)
        return name in self.stored

    def _marker(self, name: str) -> Path:
        """Name the file that says that a process has a video, beside the features."""
        path = Path(self.store.locate(self.videos[name][0]))
        return path.with_name(f".{path.stem}.lock")


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
