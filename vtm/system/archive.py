"""Check the archives of `torch.save` for damage; `torch.load` ignores their checksums."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

_END = struct.Struct("<4sQHHIIQQQQ4sIQI4sHHHHIIH")  # the last 98 bytes of an archive of torch
_ERRORS = (BadZipFile, zlib.error, OSError, RuntimeError, ValueError, EOFError)  # of zipfile


def is_damaged(path: str | Path) -> bool:
    """Return whether a file is a zip archive whose content differs from its checksums, or that is cut or extended.

    Other files, such as the pickles of old versions of torch, have no checksums, so they never count as damaged.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04" or is_zipfile(file)
        return is_archive and not _matches_checksums(file)


def is_intact(path: str | Path) -> bool:
    """Return whether every byte of a file is as `torch.save` has written it, also in the headers and the padding.

    In archives with other headers, those of 4 GiB and more and those of a future version of torch, only the content is
    checked.
    """
    with open(path, "rb") as file:
        other = os.fstat(file.fileno()).st_size >= 2**32 or not _knows_headers()
        return _matches_checksums(file) and (other or _has_intact_headers(file))


@cache
def _knows_headers() -> bool:
    """Return whether this version of torch writes the headers that `_has_intact_headers` expects."""
    import torch  # slow to import

    content = io.BytesIO()
    torch.save([torch.zeros(1), torch.zeros(0)], content)
    return _has_intact_headers(content)


def _matches_checksums(file: IO[bytes]) -> bool:
    """Return whether a file is an archive whose content matches its checksums, with nothing behind its end."""
    try:
        with ZipFile(file) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as content:
                    while content.read(2**20):  # raises at the end if the checksum differs
                        pass
            file.seek(-22 - len(archive.comment), os.SEEK_END)
            return file.read(4) == b"PK\x05\x06"
    except _ERRORS:
        return False


def _has_intact_headers(file: IO[bytes]) -> bool:
    """Return whether the headers of an archive of torch fit its content and differ in nothing else.

    The content of the archive must match its checksums.
    """
    with ZipFile(file) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    headers: set[tuple[Any, ...]] = set()
    central: set[tuple[Any, ...]] = set()
    padding: set[int] = set()
    position = 0
    file.seek(0)
    for entry in entries:
        header = file.read(30).ljust(30)
        name_length, extra_length = struct.unpack("<HH", header[26:])
        extra = file.read(name_length + extra_length)[name_length:]
        file.seek(entry.file_size, os.SEEK_CUR)
        descriptor = struct.pack("<4sIII", b"PK\x07\x08", entry.CRC, entry.file_size, entry.file_size)
        if entry.header_offset != position or (entry.file_size and file.read(16) != descriptor):
            return False
        length = int.from_bytes(extra[2:4], "little") - extra_length
        headers.add((header[:6], _flags(header[6:8], entry), header[8:26], extra[:2], length))
        padding.update(extra[4:])
        position = file.tell()
    for entry in entries:
        header = file.read(46)
        file.seek(int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        sizes = entry.compress_size - entry.file_size
        central.add((header[:8], _flags(header[8:10], entry), header[10:16], header[30:42], sizes))
    end = file.tell()
    counts = len(entries), len(entries), end - directory, directory
    expected = (b"PK\x06\x06", 44, 0x31E, 45, 0, 0, *counts, b"PK\x06\x07", 0, end, 1, b"PK\x05\x06", 0, 0, *counts, 0)
    regular = len(headers) == len(central) == 1 and len(padding) <= 1
    return regular and position == directory and file.read() == _END.pack(*expected)


def _flags(flags: bytes, entry: ZipInfo) -> int:
    """Return the flags that all entries have in common: only an empty one lacks a checksum behind its content."""
    return int.from_bytes(flags, "little") ^ (0 if entry.file_size else 8)
