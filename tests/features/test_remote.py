import numpy as np
import pytest

from vtm.features.remote import _runs, forget, read_ranges, size_and_version


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


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], []), ([4], [(4, 4)]), ([1, 2, 3], [(1, 3)]), ([0, 2, 3, 7], [(0, 0), (2, 3), (7, 7)])],
)
def test_neighbours_are_fetched_together(numbers, expected):
    assert list(_runs(numbers)) == expected
