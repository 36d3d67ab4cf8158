"""Write files so that nobody ever sees half of one."""

import os
import stat
from hashlib import sha256
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file in one step, with the permissions it has, and make its folder where there is none.

    Args:
        path: where it goes; until it is complete, what was there stays.
        content: bytes; or a text, which is written in UTF-8 and with the line ends it has.

    Raises:
        OSError: if it cannot be written; it names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # `open` applies the umask, which the functions of `tempfile` do not
    short = sha256(os.fsencode(path.name)).hexdigest()[:16]  # the name itself may be as long as names can be
    unfinished = path.with_name(f".{short}.{os.getpid()}.tmp")
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
