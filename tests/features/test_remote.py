import fsspec
import numpy as np
import pytest

from vtm.features import remote
from vtm.features.remote import forget, read_ranges, size_and_version


@pytest.fixture
def path(tmp_path):
    (tmp_path / "bytes").write_bytes(bytes(range(200)))
    return str(tmp_path / "bytes")


def test_ranges_of_a_file_are_read_in_the_order_asked_for(path, tmp_path):
    parts = read_ranges(path, "any", [(10, 14), (0, 2), (199, 200), (7, 7)], cache=tmp_path / "cache", cache_bytes=0)
    assert [part.tolist() for part in parts] == [[10, 11, 12, 13], [0, 1], [199], []]
    assert all(part.dtype == np.uint8 and part.flags.writeable for part in parts)
    assert not (tmp_path / "cache").exists()  # which is for what is far away


def test_size_and_version_tell_a_changed_file(path):
    size, version = size_and_version(path)
    assert size == 200
    assert size_and_version(path) == (size, version)
    with open(path, "wb") as file:
        file.write(bytes(201))
    assert size_and_version(path)[0] == 201
    with pytest.raises(FileNotFoundError):
        size_and_version(f"{path}.absent")


def test_nothing_is_cached_of_a_file_on_a_disk(path, tmp_path):
    assert forget(path, "any", cache=tmp_path) is False


def test_blocks_that_are_neighbors_and_not_kept_yet_are_fetched_together(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 10)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/neighbors", bytes(range(95)))
    right, asked = memory.cat_file, []

    def cat_file(path, start=None, end=None):
        asked.append((start, end))
        return right(path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", staticmethod(cat_file))
    for start, end, fetched in ((42, 45, [(40, 50)]), (38, 41, [(30, 40)]), (3, 95, [(0, 30), (50, 95)]), (0, 95, [])):
        (part,) = read_ranges("memory://neighbors", "1", [(start, end)], cache=tmp_path, cache_bytes=None)
        assert part.tolist() == list(range(start, end))
        assert asked == fetched
        asked.clear()
