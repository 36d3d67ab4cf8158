import json
import os
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vtm.encoders.rounding import dequantize, quantize
from vtm.features.file import FeatureError, FeatureWriter, read_header, read_steps
from vtm.features.remote import size_and_version

FACTS = {"id": "a/b.mp4", "key": "some-key", "length": 3.5, "video_bytes": 1234}
TIMES = [0.25, 1.25, 2.25, 3.0, 3.25]


def random_steps(storage, count=5):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, 2, 3, 4, generator=generator) * 7
    motion = torch.rand(count, 2, 3, generator=generator)
    return quantize(tokens, storage), motion, torch.arange(count) % 2 == 0, torch.arange(count)


def write(path, storage="bfloat16", *, parts=(2, 2, 1)):
    steps = random_steps(storage)
    with FeatureWriter(path, TIMES, (2, 3, 4), storage, FACTS) as writer:
        first = 0
        for count in parts:
            quantized, *rest = steps
            part = quantized._replace(
                values=quantized.values[first : first + count],
                scale=None if quantized.scale is None else quantized.scale[first : first + count],
            )
            writer.add(part, *(values[first : first + count] for values in rest))
            first += count
    return steps


def header_of(path):
    return read_header(str(path), *size_and_version(str(path)), Path("unused"))


def read(path, rows):
    return read_steps(header_of(path), rows, cache=Path("unused"))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [1, 2, 3], [4], [3, 0, 4, 4]])
def test_written_features_can_be_read(tmp_path, storage, rows):
    path = tmp_path / "sub" / "x.safetensors"
    quantized, motion, from_codec, substituted = write(path, storage)
    found = read(path, rows)
    assert torch.equal(found["features"], quantized.values[rows])
    assert ("scale" in found) == (storage == "int8")
    if quantized.scale is not None:
        assert torch.equal(dequantize(quantized)[rows], found["features"].float() * found["scale"][..., None])
    assert torch.equal(found["motion"], motion[rows])
    assert torch.equal(found["from_codec"].bool(), from_codec[rows])
    assert torch.equal(found["substituted"], substituted[rows])
    header = header_of(path)
    assert (header.id, header.key, header.length, header.video_bytes) == ("a/b.mp4", "some-key", 3.5, 1234)
    assert header.times.tolist() == TIMES


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_it_is_a_safetensors_file(tmp_path, storage):
    quantized, motion, _, _ = write(tmp_path / "x.safetensors", storage)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["id"] == "a/b.mp4"
        assert torch.equal(file.get_tensor("features"), quantized.values)
        assert torch.equal(file.get_slice("features")[1:3], quantized.values[1:3])
        assert torch.equal(file.get_tensor("motion"), motion)
        assert file.get_tensor("times").tolist() == TIMES


def test_times_are_found_wherever_they_are(tmp_path):
    write(tmp_path / "x.safetensors")
    header = header_of(tmp_path / "x.safetensors")
    assert header.find([3.25, 0.25, 3.0]) == [4, 0, 3]
    for absent in (0.3, -1.0, 99.0, 3.2):
        assert header.find([0.25, absent]) is None


def test_the_permissions_of_the_file_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write(tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o644


def test_every_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, "int8")
    whole = path.read_bytes()
    right = read(path, list(range(5)))
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        os.utime(path, ns=(place, place))  # the headers are remembered by size and time
        try:
            found = read(path, list(range(5)))
        except FeatureError:
            continue
        # what is left is blank or the like: nothing that is read has changed
        assert all(torch.equal(found[name], values) for name, values in right.items())
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        assert header_of(path).times.tolist() == TIMES, header


def test_damage_in_one_step_leaves_the_others(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    content = bytearray(path.read_bytes())
    content[header_of(path).tensors["features"].rows(3, 4)[0] + 5] ^= 1
    path.write_bytes(content)
    assert len(read(path, [0, 1, 2])["features"]) == 3
    assert len(read(path, [4, 2])["features"]) == 2
    with pytest.raises(FeatureError, match=r"x.safetensors: the features at 3.00 s are damaged; delete"):
        read(path, [2, 3])


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -300])
def test_a_cut_file_is_an_error_with_its_path(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FeatureError, match=r"x.safetensors: is not a feature file, or is damaged"):
        header_of(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not features, but long enough for a header")
    with pytest.raises(FeatureError, match="text: is not a feature file"):
        header_of(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        header_of(tmp_path / "nothing")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_no_file_and_keeps_an_existing_one(tmp_path, error):
    path = tmp_path / "x.safetensors"
    write(path)
    before = path.read_bytes()
    quantized, *rest = random_steps("bfloat16", 2)

    def interrupted():
        with FeatureWriter(path, TIMES, (2, 3, 4), "bfloat16", FACTS) as writer:
            writer.add(quantized, *rest)
            raise error

    with pytest.raises(error):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before


def test_a_file_with_too_few_steps_never_appears(tmp_path):
    quantized, *rest = random_steps("bfloat16", 2)
    with (
        pytest.raises(ValueError, match="expected 5 steps, got 2"),
        FeatureWriter(tmp_path / "x", TIMES, (2, 3, 4), "bfloat16", FACTS) as writer,
    ):
        writer.add(quantized, *rest)
    assert not list(tmp_path.iterdir())


def test_steps_of_another_shape_or_format_are_refused(tmp_path):
    quantized, *rest = random_steps("float16", 2)
    with (
        pytest.raises(ValueError, match=r"features as torch.bfloat16 .*got torch.float16"),
        FeatureWriter(tmp_path / "x", TIMES, (2, 3, 4), "bfloat16", FACTS) as writer,
    ):
        writer.add(quantized, *rest)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(bytes_left):
    """Let no file grow beyond some bytes; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing(tmp_path):
    one = torch.zeros(1)
    step = quantize(torch.zeros(1, 8, 8, 512), "float32"), torch.zeros(1, 8, 8), one.bool(), one.long()
    with (
        pytest.raises(OSError, match="File too large"),
        full_disk(100_000),
        FeatureWriter(tmp_path / "x.safetensors", [0.0], (8, 8, 512), "float32", {}) as writer,
    ):
        writer.add(*step)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("storage", "name"),
    [("bfloat16", "features"), ("float16", "features"), ("float32", "motion"), ("int8", "scale"), ("int8", "motion")],
)
def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path, monkeypatch, storage, name, value):
    quantized, motion, *rest = random_steps(storage)
    {"features": quantized.values, "scale": quantized.scale, "motion": motion}[name][2, 1, 1] = value
    with (
        pytest.raises(ValueError, match=rf"x\.safetensors: expected finite numbers as {name}, got NaN or infinity"),
        FeatureWriter(tmp_path / "x.safetensors", TIMES, (2, 3, 4), storage, FACTS) as writer,
    ):
        writer.add(quantized, motion, *rest)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("vtm.features.file._is_finite", lambda values: True)  # as an earlier version wrote it
    with FeatureWriter(tmp_path / "x.safetensors", TIMES, (2, 3, 4), storage, FACTS) as writer:
        writer.add(quantized, motion, *rest)
    monkeypatch.undo()
    assert len(read(tmp_path / "x.safetensors", [0, 1, 3])["features"]) == 3
    for rows in ([1, 2, 3], [4, 2]):
        with pytest.raises(
            FeatureError, match=rf"x\.safetensors: expected finite numbers as {name}, .* at 2\.25 s; delete"
        ):
            read(tmp_path / "x.safetensors", rows)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        "1",
        "[]",
        '{"__metadata__": {"format": "1"}, "times": {"dtype": "F64", "shape": [1000000000], "data_offsets": [0, 0]}}',
        '{"__metadata__": {"format": "1"}, "times": {"dtype": "F64", "shape": [-5], "data_offsets": [0, 0]}}',
        '{"__metadata__": {"format": "1"}, "times": {"dtype": "F64", "shape": [], "data_offsets": [0, 0]}}',
    ],
    ids=["deep", "number", "list", "huge", "negative", "scalar"],
)
def test_a_hostile_header_is_a_damaged_file(tmp_path, text):
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(FeatureError, match=r"x\.safetensors: is not a feature file, or is damaged"):
        header_of(tmp_path / "x.safetensors")
