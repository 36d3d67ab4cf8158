"""Recognize files that are something else than their names say, such as an error page that was saved as a download."""

from __future__ import annotations

from pathlib import Path
from zipfile import is_zipfile

_AGAIN = "download the file again"


def describe_bad_download(path: str | Path) -> str | None:
    """Describe in a few words, with a remedy, what went wrong with a download; None if nothing is known to be wrong.

    Raises:
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return f"is empty; {_AGAIN}"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return f"looks like an HTML page; {_AGAIN}"
    if text.startswith(b"<"):  # as storage services answer
        return f"looks like an XML page; {_AGAIN}"
    if text.startswith((b'{"', b"{\n", b"{\r\n")):
        return f"looks like JSON; {_AGAIN}"
    if start.startswith(b"version https://git-lfs.github.com/") or b"/annex/objects/" in start[:256]:
        return "is only the pointer that Git LFS or git-annex stores in place of the file; fetch the file itself"
    if start.startswith(b"PK\x03\x04") and not is_zipfile(path):
        return f"is cut short; {_AGAIN}"
    if start.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh")):
        return "is compressed; unpack it first"
    return None
