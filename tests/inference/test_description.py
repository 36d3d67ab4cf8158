"""Model files that are well-formed but hostile are refused in one sentence, before anything is built."""

import json
import resource
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vtm
from vtm import Predictor
from vtm.encoders import Precomputed
from vtm.inference.description import check_clip, limited_size, parse_json
from vtm.inference.model_file import ModelFileError, read_model, weights_sha256

WEIGHTS, DESCRIPTION = read_model(Path(__file__).parents[1] / "old_files" / "classes.safetensors")
DEEP = json.loads("[" * 30 + "]" * 30)
MERGE = {
    "_target_": "vtm.patching.DenseMerge", "count": 8, "shape": "constant", "proportional": True,
    "reduce": {"_target_": "vtm.patching.merge_similar", "_partial_": True},
}  # fmt: skip
HOST = {
    "_target_": "vtm.patching.video_hosts.transformers_host", "_partial_": True, "name": "/etc/passwd",
    "architecture": "VideoMAEForVideoClassification", "pretrained": True, "config": {},
}  # fmt: skip
PIXELS = {
    "_target_": "vtm.encoders.Pixels", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "squash": False,
    "pretrained": True, "processor": "/etc",
}  # fmt: skip
TIMM = {
    "_target_": "vtm.patching.video_hosts.timm_host", "_partial_": True, "name": "vit_tiny_patch16_224",
    "pretrained": False, "config": {"checkpoint_path": "/etc/passwd"},
}  # fmt: skip
MERGER = {"_target_": "vtm.merging.TokenMerger", "dim": 10**6}


@pytest.fixture
def write(tmp_path):
    def write(text: str, weights: dict[str, torch.Tensor] = WEIGHTS) -> Path:
        path = tmp_path / "model.safetensors"
        save_file(weights, path, metadata={"vtm": text, "vtm_sha256": weights_sha256(weights, text)})
        return path

    return write


def changed(place: str, value: Any) -> str:
    """Return the description with one value changed, such as that of `model.channels`."""
    description = {"format": 1, **deepcopy(DESCRIPTION)}
    node: Any = description
    *parents, last = place.split(".")
    for key in parents:
        node = node.setdefault(key, dict(MERGE))
    node[last] = value
    return json.dumps(description)


@pytest.mark.parametrize("value", [None, [], {}, "3", -1, 10**12, 10**400, 1.5, float("nan"), True, DEEP, MERGER])
@pytest.mark.parametrize(
    "place",
    [
        "format", "task", "num_outputs", "encoder", "encoder._target_", "encoder.image_size", "encoder.model_name",
        "encoder.precision", "encoder.merge", "encoder.merge.count", "encoder.storage", "encoder.squash",
        "encoder.model_args.depth", "encoder.model_args.x",
        "model", "model.window_frames", "model.channels", "model.num_heads", "model.merge_layer", "model.x",
        "model.merge_layer.partition", "model.merge_layer.partition_factor", "protocol", "protocol.num_frames",
    ],
)  # fmt: skip
def test_any_wrong_value_is_one_error(write, place, value):
    if (place == "encoder.squash" and isinstance(value, bool)) or (place == "encoder.merge" and value is None):
        return
    with pytest.raises(ModelFileError, match=r"model\.safetensors") as raised:
        vtm.load(write(changed(place, value)))
    assert len(str(raised.value)) < 900
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("protocol.num_frames", 10**9, r"expected protocol\.num_frames in \[0, 86400\], got 1000000000"),
        ("encoder.model_args.depth", 10**6, r"expected encoder\.model_args\.depth in \[-1000, 1000\], got 1000000"),
        ("encoder.model_args.mlp_ratio", 1e9, r"encoder\.model_args\.mlp_ratio in \[-16384, 16384\]"),
        ("encoder.model_args.device", "cuda", "cannot tell timm where weights are, but sets 'device'"),
        ("encoder.model_args.pretrained_cfg", {"file": "x"}, "cannot tell timm where weights are"),
        ("encoder", PIXELS, r"cannot choose what is opened, but encoder\.processor names a processor file"),
        ("model", {"_target_": "vtm.patching.VideoTransformer", "host": HOST}, r"model\.host sets 'pretrained'"),
        ("model", {"_target_": "vtm.patching.VideoTransformer", "host": TIMM}, r"model\.host sets 'checkpoint_path'"),
        ("encoder.image_size", 10**5, r"expected encoder\.image_size in \[0, 2048\]"),
        ("encoder.seed", 2**63, r"expected encoder\.seed in"),
        ("model.channels", [10**12, 8], r"expected model\.channels in \[0, 1000000\]"),
        ("model.channels", [8, 10**6], r"expected the weight .* of shape \(.*1000000.*\), got \(.*8.*\)"),
        ("model.channels", [8] * 900, "expected at most 14 blocks, as the file has 14 tensors"),
        ("model.window_frames", [2] * 1001, r"expected model\.window_frames with at most 1000 entries, got 1001"),
        ("model.window_frames", ["2", "4"], r"expected model\.window_frames as .*Sequence\[int\], got a list of 2"),
        ("model.num_heads", 3, "expected num_heads to divide the channels 8, got num_heads = 3"),
        (
            "model.dropout",
            {"_target_": "vtm.data.sampling.every_second", "start": 0, "num_frames": 10**6},
            r"expected model\.dropout without a _target_",
        ),
        (
            "encoder.merge",
            {"_target_": "vtm.patching.constant", "depth": 1, "count": 10**6},
            r"expected encoder\.merge as a class",
        ),
        ("encoder.merge", {"_target_": "vtm.patching.DenseMerge", "count": 8.5}, r"merge\.count as int, got 8.5"),
        ("encoder.merge", {"_target_": "vtm.patching.DenseMerge", "count": 8}, "missing 3 required keyword-only"),
        ("encoder.merge", {"_target_": "vtm.merging.NoMerger", "dim": 8}, "DenseMerge, got a NoMerger"),
        ("encoder.merge", {"_target_": "os.system"}, "is not a class or function of"),
        ("model.dropout", [MERGER], r"expected model\.dropout without a _target_"),
        ("encoder.image_size", MERGER, r"expected encoder\.image_size without a _target_"),
        ("encoder.model_args.x", [MERGER], r"expected encoder\.model_args without a _target_"),
        ("protocol.num_frames", 3, "clips of 3 frames do not fit window_frames"),
        ("num_outputs", 10**9, "expected 1000000000 classes, one for each output, got 2"),
        ("classes", ["a", 3], r"expected classes as .*, got a list of 2"),
        ("task", "regression", "expected num_outputs to be the number of outputs of the weights, got 2"),
        ("training.versions", [], r"expected training\.versions as .*, got a list of 0"),
    ],
)
def test_the_reason_is_named(write, place, value, reason):
    with pytest.raises(ModelFileError, match=reason):
        vtm.load(write(changed(place, value)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10**5 + "]" * 10**5, "expected JSON of at most 20 levels"),
        (f'{{"format": 1, "a": {"[" * 500}{"]" * 500}}}', "expected JSON of at most 20 levels"),
        (changed("motion", False)[:-1] + ', "motion": true}', "expected each key once, got 'motion'"),
        ("[1]", "expected an object in JSON, got a list of 1"),
        ("null", "expected an object in JSON, got None"),
        ('{"format": 1, "a": "\\ud800"}', "expected text in Unicode"),
        ('{"format": 1}', "expected the entries task, .*, got none for task"),
        ("{}", "has format None, but this version"),
        ("1" * 5000, "does not describe a model"),
        ('{"format": 1', "does not describe a model"),
    ],
)
def test_wrong_json_is_refused(write, text, reason):
    for load in (vtm.load, lambda path: Predictor.from_pretrained(path.parent)):
        with pytest.raises(ModelFileError, match=rf"model\.safetensors .*{reason}"):
            load(write(text))


def test_other_files_beside_the_model_are_not_read(write):
    path = write(json.dumps({"format": 1, **DESCRIPTION}))
    (path.parent / "config.json").write_text("[" * 10**5)
    assert Predictor.from_pretrained(path.parent).labels == ["bright", "dark"]


@pytest.mark.parametrize("change", ["missing", "more", "integers"])
def test_weights_of_another_network_are_refused(write, change):
    weights = dict(WEIGHTS)
    if change == "missing":
        del weights["head.weight"]
    else:
        weights["head.weight" if change == "integers" else "more"] = torch.ones(2, 8, dtype=torch.int64)
    if change == "more":
        weights["more"] = torch.ones(1)
    with pytest.raises(ModelFileError, match=r"expected (the weight|weights in floating point)"):
        vtm.load(write(json.dumps({"format": 1, **DESCRIPTION}), weights))


def test_refusing_takes_neither_time_nor_memory(write):
    path = write(changed("encoder.model_args.depth", 1000))
    with pytest.raises(ModelFileError, match="it has more than 10000 layers and tensors"):
        vtm.load(path)  # timm is imported
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for place, value in (("encoder.model_args.depth", 1000), ("model.channels", [10**6, 10**6])):
        with pytest.raises(ModelFileError):
            vtm.load(write(changed(place, value)))
    assert time.process_time() - start < 10  # without the limit, minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB; the weights are 4 TB


def test_size_is_limited_only_within_the_block():
    with limited_size():
        nn.Linear(3, 3)
        with pytest.raises(ValueError, match="it has more than 10000 layers and tensors"):
            nn.Sequential(*(nn.ReLU() for _ in range(20_000)))
    with torch.device("meta"), limited_size(), pytest.raises(ValueError, match="or more than 20000000000 parameters"):
        nn.Linear(200_000, 200_000)
    assert len(nn.Sequential(*(nn.ReLU() for _ in range(20_000)))) == 20_000


def test_features_of_a_clip_fit_in_memory():
    check_clip(36_000, 197, 1024)
    for clip in ((86_400, 197, 1024), (1, 10**6, 1)):
        with pytest.raises(ValueError, match="expected clips of at most"):
            check_clip(*clip)
    assert Precomputed("a", grid=(2, 2), channels=3).frames is None


def test_json_is_parsed():
    assert parse_json(json.dumps(DESCRIPTION)) == DESCRIPTION
