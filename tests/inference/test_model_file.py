"""A model file is read as it was written, and any other file is refused with a reason."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from vtm.data.sampling import Single
from vtm.inference.model_file import PARTS, ModelFileError, build, read_model, weights_sha256, write_model
from vtm.merging import TokenMerger, saliency_partition

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(2.5)}  # a is not contiguous
DESCRIPTION = dict.fromkeys(PARTS) | {"classes": ["Größe", "b"], "motion": False}


@pytest.fixture
def path(tmp_path):
    write_model(tmp_path / "new" / "model.safetensors", WEIGHTS, DESCRIPTION)
    return tmp_path / "new" / "model.safetensors"


def test_what_is_written_is_read(path):
    weights, description = read_model(path)
    assert description == DESCRIPTION
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in weights)
    assert path.stat().st_mode & 0o044  # others may read it


def test_any_program_reads_the_weights(path):
    assert torch.equal(load_file(path)["a"], WEIGHTS["a"])


@pytest.mark.parametrize("index", [-1, -20, 200])
def test_a_flipped_bit_is_noticed(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        read_model(path)


@pytest.mark.parametrize("length", [5, 100, -3])
def test_a_file_that_was_cut_off_is_refused(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFileError, match="is not a model of vtm: it is damaged or of another kind"):
        read_model(path)


def test_a_failed_download_is_named(path):
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"is not a model of vtm: it is empty; download the file again"):
        read_model(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(
        ModelFileError, match=r"is not a model of vtm: it looks like an HTML page; download the file again"
    ):
        read_model(path)


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(ModelFileError, match=r"is not a file; `python -m vtm.export"):
        read_model(tmp_path / "model.safetensors")


def test_other_files_are_named_for_what_they_are(tmp_path):
    torch.save({"a": 1}, tmp_path / "best.ckpt")
    with pytest.raises(ModelFileError, match=r"looks like a training checkpoint; python -m vtm.export"):
        read_model(tmp_path / "best.ckpt")
    (tmp_path / "model.onnx").write_bytes(b"onnx" * 20)
    with pytest.raises(ModelFileError, match="it is for onnxruntime"):
        read_model(tmp_path / "model.onnx")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=r"is a safetensors file, but vtm\.export did not write it"):
        read_model(tmp_path / "other.safetensors")


def test_another_format_is_refused(tmp_path):
    text = json.dumps({"format": 99, **DESCRIPTION})
    metadata = {"vtm": text, "vtm_sha256": weights_sha256(WEIGHTS, text)}
    tensors = {name: value.contiguous() for name, value in WEIGHTS.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(ModelFileError, match="has format 99, but this version of vtm reads format 1; export it again"):
        read_model(tmp_path / "model.safetensors")


def test_the_hash_is_of_names_shapes_and_values():
    first = weights_sha256(WEIGHTS)
    assert weights_sha256(dict(reversed(WEIGHTS.items()))) == first
    assert weights_sha256(WEIGHTS | {"b": torch.tensor(2.6)}) != first
    assert weights_sha256(WEIGHTS | {"a": WEIGHTS["a"].reshape(6)}) != first
    assert weights_sha256(WEIGHTS, "about") != first


def test_build_makes_what_a_configuration_describes():
    assert build({"_target_": "vtm.data.sampling.Single", "num_frames": 4}) == Single(num_frames=4)
    node = {
        "_target_": "vtm.merging.TokenMerger",
        "_partial_": True,
        "partition": {"_target_": "vtm.merging.saliency_partition", "_partial_": True},
        "partition_factor": 6,
        "merge_count": 0.5,
    }
    made = build(node)
    assert isinstance(made, partial)
    merger = made(8)
    assert isinstance(merger, TokenMerger)
    assert (merger.dim, merger.partition_factor, merger.merge_count) == (8, 6, 0.5)
    assert merger.partition.func is saliency_partition
    assert build({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "vtm.system.atomic.write_atomically",
        "vtm.cli.launch.start_processes",
        "vtm.merging.merge.NoSuchThing",
        "vtm.merging.layer.Callable",
        "vtm.encoders.image.timm",
        "vtm.models.vtm.torch",
        "vtm.mergingx.a",
        "system",
    ],
)
def test_a_file_cannot_have_anything_else_called(name):
    with pytest.raises(ModelFileError, match="a model file cannot name others"):
        build({"_target_": name})
