"""Write files atomically, so that other processes never read a partial file."""

import os
import stat
from hashlib import sha256
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file in one step, keeping the permissions of an existing file and making missing folders.

    Args:
        path: file to write; until the new content is complete, the old file stays.
        content: bytes, or text to write in UTF-8 with unchanged line endings.

    Raises:
        OSError: if the file cannot be written; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # `open` applies the umask, unlike the functions of `tempfile`
    unfinished = path.with_name(f".{_short(path)}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            unfinished.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes have left beside a file that no other process is writing now."""
    for unfinished in path.parent.glob(f".{_short(path)}.*.tmp"):
        unfinished.unlink(missing_ok=True)


def _short(path: Path) -> str:
    """Return a short form of the name of a file, which itself may already have the maximum length."""
    return sha256(os.fsencode(path.name)).hexdigest()[:16]
