"""Write files so that nobody ever sees half of one."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file in one step, and make its folder where there is none.

    Args:
        path: where it goes; until it is complete, what was there stays.
        content: bytes; or a text, which is written in UTF-8 and with the line ends it has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # `open` applies the umask, which the functions of `tempfile` do not
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
