import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtm.data.sampling import Single
from vtm.data.source import Video
from vtm.features.work_queue import WorkQueue, remove_leftovers
from vtm.system.processes import host_name
from vtm.video.decoding import VideoError


class Store:
    """A store in which every file that exists is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate(self, video):
        return str(self.folder / f"{video.id}.safetensors")

    def is_complete(self, video, protocol, *, train):
        return Path(self.locate(video)).exists()


def length(video):
    if video.id == "broken":
        raise VideoError("broken: cannot be read")
    return 4.0


def queue(folder, *names):
    videos = {"train": [Video(name, Path(name), 0, start=1.0) for name in names], "val": [], "test": []}
    source = SimpleNamespace(length=length)
    return WorkQueue(SimpleNamespace(videos=videos.get, source=source, protocol=Single(num_frames=2)), Store(folder))


def store(folder, name):
    (folder / f"{name}.safetensors").touch()


def test_videos_are_taken_in_order_with_their_times(tmp_path):
    store(tmp_path, "b")
    ours = queue(tmp_path, "a", "b", "broken", "c")
    assert ours.stored == {"b"}
    taken = [(video.id, length, times) for video, length, times in ours.take()]
    assert taken == [("a", 4.0, [2.0, 4.0]), ("c", 4.0, [2.0, 4.0])]
    assert ours.failed == {"broken": "broken: cannot be read"}


def test_a_process_skips_videos_held_by_another(tmp_path):
    ours, theirs = queue(tmp_path, "a", "b", "c"), queue(tmp_path, "a", "b", "c")
    first, second = ours.take(), theirs.take()
    assert [next(first)[0].id, next(second)[0].id, next(first)[0].id] == ["a", "b", "c"]
    assert next(second, None) is None
    assert (ours.passed, theirs.passed) == (1, 2)


def test_videos_of_a_dead_process_are_taken(tmp_path):
    ours, theirs = queue(tmp_path, "a", "b", "c"), queue(tmp_path, "a", "b", "c")
    dead = ours.take()
    video, *_ = next(dead)
    taken = theirs.take()
    assert [next(taken)[0].id, next(taken)[0].id] == ["b", "c"]
    ours.release(video)  # as the end of the process does
    assert next(taken)[0].id == "a"
    assert next(taken, None) is None


def test_videos_stored_by_another_process_are_not_taken(tmp_path):
    ours = queue(tmp_path, "a", "b")
    taken = ours.take()
    assert next(taken)[0].id == "a"
    store(tmp_path, "b")
    assert next(taken, None) is None
    assert "b" in ours.stored
    store(tmp_path, "a")
    ours.refresh()
    assert ours.stored == {"a", "b"}


def test_without_locks_every_video_is_done_and_a_message_is_printed(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    names = [f"{number:02}" for number in range(40)]
    ours = queue(tmp_path, *names)
    order = []
    for video, *_ in ours.take():
        order.append(video.id)
        store(tmp_path, video.id)
        ours.stored.add(video.id)
        ours.release(video)
    assert sorted(order) == names != order
    output = capsys.readouterr().out
    assert output.count("is on a file system without locks (Function not implemented)") == 1


@pytest.mark.parametrize(
    ("name", "age", "stays"),
    [
        (f"{host_name()}.{os.getpid()}", 0, True),
        (f"{host_name()}.999999999", 0, False),
        ("elsewhere.1", 0, True),
        ("elsewhere.1", 90_000, False),
        (f"x_{host_name()}.999999999", 0, True),
    ],
    ids=["alive", "dead", "elsewhere", "elsewhere for a day", "another host of a like name"],
)
def test_leftovers_of_the_dead_are_removed(tmp_path, name, age, stays):
    path = tmp_path / "ab" / f".video.with.dots.{name}.part"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    remove_leftovers(tmp_path)
    assert path.exists() == stays
