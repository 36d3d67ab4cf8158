"""Files that are not what their names say are described with a remedy."""

import io

import pytest
import torch

from vtm.system.downloads import describe_bad_download


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (b"", "is empty; download the file again"),
        (b"\n  <!doctype HTML>\n<html>", "looks like an HTML page; download the file again"),
        (b"\xef\xbb\xbf<HTML lang='en'>", "looks like an HTML page; download the file again"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "looks like an XML page; download the file a",
        ),
        (b'{"error": "not found"}', "looks like JSON; download the file again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is only the pointer that Git LFS or"),
        (b"../../.git/annex/objects/Xz/1/a.pth", "is only the pointer that Git LFS or git-annex stores"),
        (saved()[:-30], "is cut short; download the file again"),
        (b"\x1f\x8b\x08\x00 and so on", "is compressed; unpack it first"),
    ],
)
def test_failed_downloads_are_described(tmp_path, content, description):
    (tmp_path / "a.pth").write_bytes(content)
    found = describe_bad_download(tmp_path / "a.pth")
    assert found is not None
    assert found.startswith(description)


@pytest.mark.parametrize("content", [saved(), b"\x80\x02}q\x00.", b"\x40\0\0\0\0\0\0\0{}", b"OggS"])
def test_other_files_are_not(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    assert describe_bad_download(tmp_path / "a.pth") is None
