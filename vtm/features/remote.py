"""Read byte ranges of local files or, with a local cache, of remote files through fsspec."""

import itertools
import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import fsspec
import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22  # bytes per cached block
_EMPTY: NDArray[np.uint8] = np.empty(0, np.uint8)
_FETCHES = itertools.count()


def size_and_version(path: str) -> tuple[int, str]:
    """Return the size of a file in bytes, and a string that changes when the file does.

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError: if a remote file cannot be reached.
    """
    if "://" in path:
        return _remote_size_and_version(path)
    status = os.stat(path)
    return status.st_size, f"{status.st_mtime_ns}"


def read_ranges(
    path: str, version: str, ranges: Iterable[tuple[int, int]], *, cache: Path, cache_bytes: int | None
) -> list[NDArray[np.uint8]]:
    """Read byte ranges of a file.

    Args:
        path: path of a file, or address with a scheme that fsspec supports.
        version: version of the file, see `size_and_version`; cached blocks of other versions are not used.
        ranges: start and end (exclusive) of each range, inside the file.
        cache: folder for the cached blocks of remote files.
        cache_bytes: size limit of the cache in bytes; None for no limit.

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError: if a remote file cannot be reached, or its server ignores ranges.
    """
    if "://" in path:
        return [_assemble(path, version, start, end, cache, cache_bytes) for start, end in ranges]
    return [np.fromfile(path, np.uint8, end - start, offset=start) for start, end in ranges]


@lru_cache(maxsize=65536)
def _remote_size_and_version(address: str) -> tuple[int, str]:
    try:
        system, path = fsspec.core.url_to_fs(address)
        try:
            facts = system.info(path)
        except FileNotFoundError:  # fsspec also raises it for a server that is down or refuses access
            system.cat_file(path, start=0, end=1)
            raise OSError("the server does not report the size of files") from None
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{address}: cannot be reached ({type(error).__name__}: {error})") from error
    marks = [str(facts[name]) for name in ("ETag", "etag", "md5", "LastModified", "mtime", "updated") if name in facts]
    return int(facts["size"]), "|".join(marks)


def forget(path: str, version: str, *, cache: Path) -> bool:
    """Remove the cached blocks of a remote file, so that they are fetched again; return False for a local file."""
    if "://" not in path:
        return False
    shutil.rmtree(_folder(path, version, cache), ignore_errors=True)
    return True


def _folder(path: str, version: str, cache: Path) -> Path:
    digest = sha256(f"{path}|{_remote_size_and_version(path)[0]}|{version}".encode()).hexdigest()
    return cache / digest[:2] / digest[2:34]


def _assemble(path: str, version: str, start: int, end: int, cache: Path, limit: int | None) -> NDArray[np.uint8]:
    """Assemble a range from cached blocks, and fetch and cache the other blocks."""
    size, _ = _remote_size_and_version(path)
    folder = _folder(path, version, cache)
    blocks: dict[int, NDArray[np.uint8]] = {}
    for block in range(start // _BLOCK, -(-end // _BLOCK)):
        try:
            blocks[block] = np.fromfile(folder / str(block), np.uint8)
            os.utime(folder / str(block))  # mark as recently used
        except FileNotFoundError:
            blocks[block] = _EMPTY
    absent = [block for block, content in blocks.items() if not len(content)]
    for first, last in _runs(absent):
        content = _fetch(path, first * _BLOCK, min((last + 1) * _BLOCK, size))
        for block in range(first, last + 1):
            blocks[block] = content[(block - first) * _BLOCK : (block - first + 1) * _BLOCK]
            _keep(folder / str(block), blocks[block])
    if absent and limit is not None and next(_FETCHES) % 64 == 0:
        _evict(cache, limit)
    offset = start // _BLOCK * _BLOCK
    return np.concatenate([*blocks.values()])[start - offset : end - offset].copy()


def _fetch(path: str, start: int, end: int) -> NDArray[np.uint8]:
    system, address = fsspec.core.url_to_fs(path)  # not kept, because its connections do not survive a fork
    content = system.cat_file(address, start=start, end=end)
    if len(content) != end - start:
        raise OSError(f"{path}: expected the bytes {start} to {end}, got {len(content)}; the server ignores ranges")
    return np.frombuffer(content, np.uint8)


def _keep(file: Path, content: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{socket.gethostname()}.{os.getpid()}.{threading.get_native_id()}")
    partial.write_bytes(content.tobytes())
    os.replace(partial, file)


def _evict(cache: Path, limit: int) -> None:
    """If the cache exceeds the limit, remove the least recently used blocks until a tenth of the limit is free."""
    facts = []
    for file in cache.glob("*/*/*"):
        try:
            stat = file.stat()
        except FileNotFoundError:  # another process removed it
            continue
        facts.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in facts)
    if total <= limit:
        return
    for _, size, file in sorted(facts):
        file.unlink(missing_ok=True)
        total -= size
        if total <= 0.9 * limit:
            return


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last number of each run of consecutive numbers."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1]
            start = index
