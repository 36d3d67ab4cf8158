"""Locks by which processes share work, on any number of machines that see the same files.

Nothing coordinates the processes: each one locks what it takes, and a lock ends with its process, however that ends.
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

_PRESENT, _EXCLUSIVE, _NAMES = 1 << 62, (1 << 62) + 1, (1 << 62) + 2  # bytes of a file, the last one and those after it


class Locks(ABC):
    """Locks on names, each of which one process at a time can hold.

    Attributes:
        refusal: The system's answer where the file system has no locks; then every name is free to every process.
    """

    refusal: OSError | None = None

    @abstractmethod
    def acquire(self, name: str) -> bool:
        """Lock a name until it is released or the process ends; return False where another process holds it."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Let other processes have a name."""


def take(names: deque[str], locks: Locks, *, is_done: Callable[[str], bool]) -> Iterator[str]:
    """Take the names that are not done and that no other process holds, until there are none.

    Args:
        names: Those ahead, in the order in which they are taken out. The caller may rearrange them between two.
        locks: Each name that is taken is locked; the caller releases it.
        is_done: Looks whether nothing is left to do for a name.
    """
    while names:
        held, progress = [], False
        while names:
            name = names.popleft()
            if is_done(name):
                continue
            if not locks.acquire(name):
                held.append(name)
            elif is_done(name):  # by another process, between the look and the lock
                locks.release(name)
            else:
                progress = True
                yield name
        if progress:  # it took time, in which holders may have died
            names.extend(held)


class MarkerLocks(Locks):
    """Locks on names by a marker file for each, which is there while the name is held.

    Args:
        path: Gives the marker file of a name. Its folder is made where there is none.

    Attributes:
        held: The open marker files of the names that this object holds.
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
            acquired = is_in_place(file.fileno(), path)  # if not, its holder has released it since it was opened
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
        Path(file.name).unlink(missing_ok=True)  # before the lock ends, since afterwards it may be another process's
        file.close()


class ByteLocks(Locks):
    """Locks on names by bytes of an open file, far behind its content, so that no other files are left behind.

    They are those of `lockf`: they belong to the whole process, and end when it closes the file through any descriptor.
    So a process must not open the file twice. Whether there are locks shows in `opening`, which comes first.

    Args:
        file: The descriptor, open for reading and writing.
        path: Names the file in errors.

    Raises:
        OSError: A lock is refused later on.
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
        """Tell whether no other process has the file open; those that open it during the block wait for its end."""
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
        """Wait until no other process is in such a block, and keep them out of it."""
        self._lock(fcntl.LOCK_EX, _EXCLUSIVE)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _EXCLUSIVE)

    def _lock(self, kind: int, byte: int) -> bool:
        """Take hold of a byte, or let go of it; with LOCK_NB, return False where another process holds it."""
        if self.refusal is not None:
            return True
        try:
            fcntl.lockf(self._file, kind, 1, byte)
        except OSError as error:
            if kind & fcntl.LOCK_NB and _is_held(error):
                return False
            raise OSError(
                f"{self._path} cannot be locked ({error.strerror}); what is in it is complete, and the same command "
                "goes on when this is put right"
            ) from error
        return True


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block, and keep them out of it where the file system has locks.

    The lock is on the folder itself, as a file for it would have to stay.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_in_place(file: int, path: Path) -> bool:
    """Tell whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _byte(name: str) -> int:
    """Return the place of a name's byte in the file."""
    return _NAMES + int.from_bytes(sha256(os.fsencode(name)).digest()[:7], "big")


def _is_held(error: OSError) -> bool:
    """Tell whether a refusal of `lockf` says that another process has the lock: systems have two ways to say so."""
    return isinstance(error, BlockingIOError | PermissionError)
