"""The network of a model as a graph for other programs, in ONNX or `torch.export` format.

The graph computes scores from features. It is written, with a description of the encoder, the preprocessing and the
classes, only if its scores agree with the model's.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtm.data.sampling import Length
from vtm.encoders import Encoder, Pixels
from vtm.inference.model_file import ModelFileError, to_json
from vtm.inference.predictor import Predictor
from vtm.system.atomic import write_atomically

_BATCHES = (1, 3)  # sizes at which the graph is compared with the model
_TOLERANCE = 1e-3  # of a score: rounding can change the merging of a few nearly equal tokens


def check_traceable(model: Predictor, name: str) -> None:
    """Check that a static graph can hold the settings of a model.

    Args:
        model: model to export.
        name: name of the format, for the message.

    Raises:
        ModelFileError: if the model samples in evaluation.
    """
    if model.network.samples_in_eval:
        raise ModelFileError(
            f"format {name} cannot hold merging.sample_in_eval=true or a random model.merge, whose noise depends on "
            "the clip's id: export to safetensors, or train with merging.sample_in_eval=false"
        )


def trace(model: Predictor) -> Any:
    """Trace the graph of a model, for batches of any size.

    Raises:
        ModelFileError: if the network supports only batches of one size.
    """
    example = _example(model, 2)
    arguments = {name: example.get(name) for name in ("features", "motion", "mask")}
    batch = torch.export.Dim("batch")
    shapes = {name: None if value is None else {0: batch} for name, value in arguments.items()}
    try:
        with _silent_exporters():
            graph = torch.export.export(model, tuple(arguments.values()), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:  # the merging of ready transformers fixes the size of the batch
        raise ModelFileError(
            f"a graph for batches of any size cannot hold this {type(model.network).__name__}, whose blocks merge for "
            "a fixed one: export to safetensors, or train with model/merge=none"
        ) from error
    graph.example_inputs = None  # they would be most of a .pt2 file
    return graph


def write_graph(model: Predictor, graph: Any, path: Path, name: str) -> str:
    """Write the graph of a model if it agrees with the model; return a note on how closely.

    Args:
        model: model whose network is exported.
        graph: graph that `trace` returned for the model.
        path: file to write.
        name: format, `onnx` or `pt2`.

    Raises:
        ModelFileError: if the graph disagrees with the model, or a package is missing.
    """
    convert = _to_onnx if name == "onnx" else _to_pt2
    about = {**model.description, "inputs": inputs_of(model)}
    with _silent_exporters():
        content, run = convert(graph, list(_example(model, 1)), to_json(about))
        differences = []
        for batch in _BATCHES:
            example = _example(model, batch)
            differences.append((run(example) - model(**example)).abs().max())
    worst = float(torch.stack(differences).max())
    if not worst <= _TOLERANCE:
        raise ModelFileError(
            f"{path} was not written: its scores differ from the model's by up to {worst:.2g}; please report this with "
            "the versions of torch and onnxruntime"
        )
    write_atomically(path, content)
    return f"agrees with the model to {worst:.0e} at batch sizes {' and '.join(map(str, _BATCHES))}"


@contextmanager
def _silent_exporters() -> Iterator[None]:
    """Hide the logs and warnings of the exporters, which concern only their internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def inputs_of(model: Predictor) -> dict[str, Any]:
    """Describe the inputs of an exported graph, and how frames become features, for users without vtm."""
    encoder, frames = model.encoder, model.protocol.num_frames
    height, width = encoder.grid.shape
    inputs: dict[str, Any] = {"features": {"shape": ["batch", frames, height, width, encoder.channels]}}
    if model.description["motion"]:
        inputs["motion"] = {"shape": ["batch", frames, height, width], "unit": "pixels per frame"}
    if len(model.protocol.times(0.0, Length(0.5, lambda: 30.0))) < frames:  # short videos leave steps empty
        inputs["mask"] = {"shape": ["batch", frames], "meaning": "true for steps that the video has"}
    if isinstance(encoder, Encoder | Pixels):  # not for precomputed features
        inputs["frames"] = {
            "image_size": encoder.frames.image_size,
            "resize": "to the square" if encoder.frames.squash else "shortest side, then center crop",
            "frames_per_step": encoder.frames.frames_per_step,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
        }
    return inputs


def _example(model: Predictor, batch: int) -> dict[str, Tensor]:
    """Draw random inputs of a graph; a mask has empty steps only in the first clip."""
    generator = torch.Generator().manual_seed(batch)
    shapes = {name: (batch, *facts["shape"][1:]) for name, facts in inputs_of(model).items() if "shape" in facts}
    example = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "motion" in example:
        example["motion"] = example["motion"].abs()
    if "mask" in example:
        example["mask"] = torch.ones(shapes["mask"], dtype=torch.bool)
        example["mask"][0, (shapes["mask"][1] + 1) // 2 :] = False
    return example


def _to_pt2(graph: Any, inputs: list[str], about: str) -> tuple[bytes, Callable[..., Tensor]]:
    """Return the content of a .pt2 file, and a function that runs it."""
    file = io.BytesIO()
    torch.export.save(graph, file, extra_files={"vtm.json": about})
    file.seek(0)
    loaded = torch.export.load(file).module()

    def run(example: Mapping[str, Tensor]) -> Tensor:
        scores: Tensor = loaded(example["features"], example.get("motion"), example.get("mask"))
        return scores

    return file.getvalue(), run


def _to_onnx(graph: Any, inputs: list[str], about: str) -> tuple[bytes, Callable[..., Tensor]]:
    """Return the content of an .onnx file, and a function that runs it in onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  used by torch.onnx.export
    except ImportError as error:
        raise ModelFileError(f"format onnx needs {error.name}: pip install onnx onnxruntime onnxscript") from None
    program: Any = torch.onnx.export(graph, input_names=inputs, output_names=["scores"], dynamo=True, verbose=False)
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "vtm", about
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(example: Mapping[str, Tensor]) -> Tensor:
        (scores,) = session.run(["scores"], {name: value.numpy() for name, value in example.items()})
        return torch.from_numpy(scores)

    return content, run
