"""A queue of videos that processes share, on any number of machines with access to the same folder."""

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
    """A queue of videos to extract features from, which processes take one at a time.

    Args:
        data: data module, which lists the videos of all splits; its source measures their length.
        store: store that the features are written to.

    Attributes:
        videos: each video by id, with True if it is a training video.
        stored: ids of the videos whose features are complete.
        failed: error messages of the videos that cannot be stored, by id.
    """

    def __init__(self, data: VideoDataModule, store: FeatureStore) -> None:
        self.data = data
        self.store = store
        # training last, because it needs more times of a video that is in two splits
        self.videos = {v.id: (v, split == "train") for split in reversed(SPLITS) for v in data.videos(split)}
        self.stored: set[str] = set()
        self.failed: dict[str, str] = {}
        self._ahead = deque(name for name in self.videos if not self._is_stored(name))
        self._locks = MarkerLocks(self._marker)

    def plan(self, video: Video, train: bool) -> tuple[float, list[float]]:
        """Return the length of a video's region of interest in seconds, and the times of the file to store."""
        source = self.data.source
        return source.length(video), stored_times(source, video, self.data.protocol, train=train)

    @property
    def passed(self) -> int:
        """Number of videos that are stored, failed, or skipped because another process holds them."""
        return len(self.videos) - len(self._ahead) - len(self._locks.held)

    def take(self) -> Iterator[tuple[Video, float, list[float]]]:
        """Yield videos with their length and times until every video is stored, failed or held by another process."""
        shuffled = False
        for name in take(self._ahead, self._locks, is_done=self._is_stored):
            video, train = self.videos[name]
            if self._locks.refusal is not None and not shuffled:
                shuffled = True
                print(
                    f"{self._marker(name).parent} is on a file system without locks ({self._locks.refusal.strerror}): "
                    "processes that share the videos process them in different orders, and may process some twice"
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
        """Update `stored` with the videos that other processes have stored."""
        for name in self.videos:
            self._is_stored(name)

    def release(self, video: Video) -> None:
        """Release a video that was taken, so that other processes can take it."""
        self._locks.release(video.id)

    def _is_stored(self, name: str) -> bool:
        """Return whether the features of a video are complete, and add it to `stored` if so."""
        video, train = self.videos[name]
        if name not in self.stored and self.store.is_complete(video, self.data.protocol, train=train):
            self.stored.add(name)
        return name in self.stored

    def _marker(self, name: str) -> Path:
        """Return the path of the marker file that locks a video, in the folder of its features."""
        path = Path(self.store.locate(self.videos[name][0]))
        return path.with_name(f".{path.stem}.lock")


def remove_leftovers(folder: Path) -> None:
    """Delete the partial files of processes that were killed: on this machine, or on any machine after a day."""
    for path in folder.glob("*/.*.part"):
        *_, host, process = path.name.removesuffix(".part").split(".")
        try:
            here = host == host_name()
            if (here and not _is_alive(int(process))) or time.time() - path.stat().st_mtime > 86400:
                path.unlink()
        except FileNotFoundError:  # another process has deleted it
            continue


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
