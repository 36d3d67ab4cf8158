"""Locks with which processes share work, on any number of machines with access to the same files.

There is no coordinator: each process locks the names that it takes, and a lock is released when its process ends, even
if it is killed.
"""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

# offsets of the locked bytes: for `opening`, for `exclusive`, and the first one for names
_PRESENT, _EXCLUSIVE, _NAMES = 1 << 62, (1 << 62) + 1, (1 << 62) + 2


class Locks(ABC):
    """Base class of locks on names, each of which one process at a time can hold.

    Attributes:
        refusal: error of the system if the file system does not support locks; every process can then take every name.
    """

    refusal: OSError | None = None

    @abstractmethod
    def acquire(self, name: str) -> bool:
        """Lock a name until it is released or the process ends; return False if another process holds it."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Release a name, so that other processes can lock it."""


def take(names: deque[str], locks: Locks, *, is_done: Callable[[str], bool]) -> Iterator[str]:
    """Lock and yield names until each remaining name is done or held by another process.

    Args:
        names: remaining names, from which each name is removed in order; the caller may reorder them while iterating.
        locks: locks on the names; the caller must release each name that is yielded.
        is_done: function that returns whether a name is done.
    """
    while names:
        held, progress = [], False
        while names:
            name = names.popleft()
            if is_done(name):
                continue
            if not locks.acquire(name):
                held.append(name)
            elif is_done(name):  # another process has finished it since the first check
                locks.release(name)
            else:
                progress = True
                yield name
        if progress:  # try again, because the holders may have been killed since then
            names.extend(held)


class MarkerLocks(Locks):
    """Locks on names with a marker file for each name, which exists while the name is held.

    Args:
        path: function that returns the marker file of a name; missing folders are made.

    Attributes:
        held: open marker files by the names that this object holds.
    """

    def __init__(self, path: Callable[[str], Path]) -> None:
        self.held: dict[str, IO[bytes]] = {}
        self._path = path

    def acquire(self, name: str) -> bool:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            acquired = is_in_place(file.fileno(), path)  # False if its holder has removed it since it was opened
        except BlockingIOError:
            acquired = False
        except OSError as error:
            self.refusal, acquired = error, True
        if acquired:
            self.held[name] = file
        else:
            file.close()
        return acquired

    def release(self, name: str) -> None:
        file = self.held.pop(name)
        Path(file.name).unlink(missing_ok=True)  # while locked: afterwards the file may belong to another process
        file.close()


class ByteLocks(Locks):
    """Locks on names with bytes of an open file far beyond its end, which need no other files.

    The locks of `lockf` belong to the process and are released when it closes the file through any descriptor, so a
    process must not open the file twice. Call `opening` first: it detects a file system without locks.

    Args:
        file: descriptor of the file, open for reading and writing.
        path: path of the file, for error messages.

    Raises:
        OSError: by the methods, if the system refuses a lock although `opening` succeeded.
    """

    def __init__(self, file: int, path: Path) -> None:
        self._file = file
        self._path = path

    def acquire(self, name: str) -> bool:
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _byte(name))

    def release(self, name: str) -> None:
        self._lock(fcntl.LOCK_UN, _byte(name))

    @contextmanager
    def opening(self) -> Iterator[bool]:
        """Yield whether no other process has the file open; processes that open it wait until the block ends."""
        alone = True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PRESENT)
        except OSError as error:
            if _is_held(error):
                alone = False
            else:
                self.refusal = error
        yield alone
        self._lock(fcntl.LOCK_SH, _PRESENT)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other process is in this context for the file, then hold it exclusively."""
        self._lock(fcntl.LOCK_EX, _EXCLUSIVE)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _EXCLUSIVE)

    def _lock(self, kind: int, byte: int) -> bool:
        """Lock or unlock a byte; with LOCK_NB, return False if another process holds it."""
        if self.refusal is not None:
            return True
        try:
            fcntl.lockf(self._file, kind, 1, byte)
        except OSError as error:
            if kind & fcntl.LOCK_NB and _is_held(error):
                return False
            raise OSError(
                f"{self._path} cannot be locked ({error.strerror}); its content is complete, fix this and run the same "
                "command again to continue"
            ) from error
        return True


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the folder, then hold it if the file system supports locks.

    The folder itself is locked, because a lock file could never be removed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_in_place(file: int, path: Path) -> bool:
    """Return whether an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _byte(name: str) -> int:
    """Return the offset of the byte of a name in the file."""
    return _NAMES + int.from_bytes(sha256(os.fsencode(name)).digest()[:7], "big")


def _is_held(error: OSError) -> bool:
    """Return whether an error of `lockf` means that another process holds the lock; systems raise one of two types."""
    return isinstance(error, BlockingIOError | PermissionError)
