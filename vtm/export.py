"""Make a model for use of a checkpoint: python -m vtm.export ckpt_path=runs/…/best.ckpt out=model.safetensors.

Formats: `safetensors`, for `vtm.load`, `vtm.predict` and `vtm.visualize`; `onnx`, for onnxruntime and whatever reads
ONNX; `pt2`, for `torch.export.load`. The last two hold the network, from features to scores, and describe encoder,
preprocessing and classes; they are compared with the model before they are written.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtm.errors import errors_in_one_sentence

if TYPE_CHECKING:  # what the command needs is imported when its arguments are known to be right
    from torch import Tensor

    from vtm.predictor import Predictor

FORMATS = ("safetensors", "onnx", "pt2")
_USAGE = "python -m vtm.export ckpt_path=FILE out=FILE [format=safetensors,onnx,pt2] [encoder_checkpoint=FILE]"
_HELP = """\
Make a model for use of a checkpoint, without the auxiliary path of training.

  ckpt_path   of train.py: runs/<experiment>/<stamp>/checkpoints/best.ckpt
  out         the file to write; its ending is the format
  format      several formats at once; the endings are then added to out
  encoder_checkpoint   where the encoder's own weights lie now, if they have moved since the training

  python -m vtm.export ckpt_path=runs/demo/…/checkpoints/best.ckpt out=demo.safetensors
  python -m vtm.predict demo.safetensors video.mp4
"""
_SETTINGS = ("ckpt_path", "out", "format", "encoder_checkpoint")
_BATCHES = (1, 3)  # at which what is written is compared with the model
_TOLERANCE = 1e-3  # of a score: of thousands of tokens, rounding lets a few that are as similar merge otherwise


def main() -> None:
    """Export what the command line says."""
    parser = argparse.ArgumentParser(
        usage=_USAGE, description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args().settings
    with errors_in_one_sentence():
        settings = _settings(arguments)
        moved = settings.pop("encoder_checkpoint", None)
        where = Path(settings["ckpt_path"]), Path(settings["out"])
        for line in export(*where, settings["format"], encoder_checkpoint=moved):
            print(line, flush=True)


def export(checkpoint: Path, out: Path, formats: str, *, encoder_checkpoint: str | None = None) -> Iterator[str]:
    """Write a checkpoint in one or more formats; say of each file what it is, when it is there.

    Args:
        checkpoint: of train.py.
        out: a file of one format, or the files without their endings.
        formats: `FORMATS`, separated by commas; empty for that of the ending of `out`.
        encoder_checkpoint: where the encoder's own weights lie now, if they have moved since the training.

    Raises:
        ModelFileError: if the checkpoint is none, a format is unknown or cannot hold a setting of the model.
    """
    from vtm.model_file import ModelFileError, write_model
    from vtm.predictor import Predictor

    given = out.suffix.removeprefix(".")
    chosen = formats.split(",") if formats else [given]
    if unknown := [name for name in chosen if name not in FORMATS]:
        what = "ending of out" if not formats else "format"
        raise ModelFileError(f"expected as {what} {', '.join(FORMATS)}, got {unknown[0]!r}")
    weights, description = from_checkpoint(checkpoint)
    if encoder_checkpoint is not None:
        description["encoder"] |= {"checkpoint": encoder_checkpoint}
    model = Predictor(description)
    model.network.load_state_dict(weights)
    if lacks := [name for name in chosen if name != "safetensors"]:
        _check_traceable(model, lacks[0])
    for name in chosen:
        path = out if name == given else out.with_name(f"{out.name}.{name}")
        if name == "safetensors":
            write_model(path, weights, description)
            said = f"{sum(value.numel() for value in weights.values()) / 1e6:.2f} million weights"
        else:
            said = _write_traced(model, path, _to_onnx if name == "onnx" else _to_pt2)
        yield f"{path}: {said}, {path.stat().st_size / 1e6:.1f} MB; {_origin(description)}"


def from_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take from a checkpoint of train.py what `vtm.model_file` writes: the network's weights, and its description.

    Raises:
        ModelFileError: if it is no checkpoint of vtm, or of settings that a model file cannot hold.
    """
    import torch

    from vtm.lit_module import CHECKPOINT_FORMAT
    from vtm.model_file import ModelFileError

    if not path.is_file():
        raise ModelFileError(f"ckpt_path={path} is no file; checkpoints lie in runs/<experiment>/<stamp>/checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"ckpt_path={path} is no checkpoint of train.py, or a damaged one ({reason})") from None
    facts = checkpoint.get("vtm", {}) if isinstance(checkpoint, dict) else {}
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise ModelFileError(
            f"ckpt_path={path} is no checkpoint of this version of vtm: expected format {CHECKPOINT_FORMAT}, found "
            f"{facts.get('format')}"
        )
    config = facts["config"]
    task = str(config["task"]["_target_"])
    if not task.startswith("vtm.tasks."):
        raise ModelFileError(f"a model file holds classification or regression of vtm.tasks, but task is {task}")
    state = {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.") and ".auxiliary." not in name
    }
    return state, {
        "task": task.rpartition(".")[2].lower(),
        "classes": facts["classes"],
        "num_outputs": len(state["head.bias"]),
        "encoder": config["encoder"],
        "encoder_key": facts["encoder"],
        "model": config["model"],
        "protocol": config["data"]["protocol"],
        "motion": config["motion"],
        "training": _training(path, config, epoch=checkpoint["epoch"] + 1),
    }


def _settings(arguments: list[str]) -> dict[str, str]:
    """Read `key=value` arguments."""
    settings = {"format": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in _SETTINGS or not equals or not value:
            near = difflib.get_close_matches(key, _SETTINGS, n=1)
            raise ValueError(
                f"{argument!r} is no setting of vtm.export, which are {', '.join(f'{name}=…' for name in _SETTINGS)}"
                + (f"; did you mean {near[0]}=…?" if near else "")
            )
        settings[key] = value
    if missing := [name for name in ("ckpt_path", "out") if name not in settings]:
        raise ValueError(
            f"vtm.export needs {' and '.join(f'{name}=…' for name in missing)}; see python -m vtm.export --help"
        )
    return settings


def _training(path: Path, config: Mapping[str, Any], *, epoch: int) -> dict[str, Any]:
    """Say where the model comes from, and what it scored, if the results of the run lie where it left them."""
    facts = {"experiment": config["name"], "seed": config["seed"], "epoch": epoch}
    try:
        run = json.loads((path.parent.parent / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return facts | {"commit": None, "versions": None, "val": None, "test": None}
    scores = {stage: _score_of(run, stage, epoch) for stage in ("val", "test")}
    return facts | {"commit": run["commit"], "versions": run["versions"], **scores}


def _score_of(run: Mapping[str, Any], stage: str, epoch: int) -> dict[str, Any] | None:
    """Find the score of an epoch in `results.json`, without the lists of videos."""
    for name in (stage, f"{stage}_last"):
        if name in run and run[name]["epoch"] == epoch:
            return {key: value for key, value in run[name].items() if key not in ("missing_ids", "cost", "details")}
    return None


def _origin(description: Mapping[str, Any]) -> str:
    """Say in a few words what a model is and what it scored."""
    facts = description["training"]
    text = f"{facts['experiment']}, seed {facts['seed']}, epoch {facts['epoch']}"
    if (test := facts["test"]) is None:
        return f"{text}, without a result: there is none of this epoch in results.json beside its checkpoints"
    low, high = test["interval"]
    return f"{text}, test {test['metric']} {test['value']:.3f} ({low:.3f} to {high:.3f}, n = {test['n']})"


def _check_traceable(model: Predictor, name: str) -> None:
    """Refuse settings that a graph of fixed operations cannot hold."""
    from vtm.merging import TokenMerger
    from vtm.model_file import ModelFileError

    if any(isinstance(module, TokenMerger) and module.sample_in_eval for module in model.modules()):
        raise ModelFileError(
            f"format {name} cannot hold merging.sample_in_eval=true, whose noise depends on the clip's id: export "
            "to safetensors, or train with merging.sample_in_eval=false"
        )


def _write_traced(model: Predictor, path: Path, to: Callable[..., tuple[bytes, Callable[..., Tensor]]]) -> str:
    """Write a graph once it agrees with the model; return by how much it does."""
    import torch

    from vtm.files import write_atomically
    from vtm.model_file import ModelFileError

    about = {**model.description, "inputs": inputs_of(model)}
    with warnings.catch_warnings():  # about the insides of the exporters
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        content, run = to(model, _example(model, 2), json.dumps(about, ensure_ascii=False))
        differences = []
        for batch in _BATCHES:
            example = _example(model, batch)
            differences.append((run(example) - model(**example)).abs().max())
    worst = float(torch.stack(differences).max())
    if not worst <= _TOLERANCE:
        raise ModelFileError(
            f"{path} is not written: its scores differ from the model's by up to {worst:.2g}; please report this with "
            "the versions of torch and onnxruntime"
        )
    write_atomically(path, content)
    return f"agrees with the model to {worst:.0e} at batch {' and '.join(map(str, _BATCHES))}"


def inputs_of(model: Predictor) -> dict[str, Any]:
    """Describe the inputs of an exported graph, and how frames become features, for those who have no vtm."""
    encoder, frames = model.encoder, model.protocol.num_frames
    height, width = encoder.grid
    inputs: dict[str, Any] = {"features": {"shape": ["batch", frames, height, width, encoder.channels]}}
    if model.description["motion"]:
        inputs["motion"] = {"shape": ["batch", frames, height, width], "unit": "pixels per frame"}
    if len(model.protocol.times(0.0, 0.5)) < frames:  # short videos leave steps empty
        inputs["mask"] = {"shape": ["batch", frames], "meaning": "true = a step that the video has"}
    if hasattr(encoder, "image_size"):
        inputs["frames"] = {
            "image_size": encoder.image_size,
            "resize": "to the square" if encoder.squash else "shortest side, then the centre is cut out",
            "frames_per_step": encoder.frames_per_step,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
        }
    return inputs


def _example(model: Predictor, batch: int) -> dict[str, Tensor]:
    """Draw inputs of a graph; a mask has empty steps in its first clip only."""
    import torch

    generator = torch.Generator().manual_seed(batch)
    shapes = {name: (batch, *facts["shape"][1:]) for name, facts in inputs_of(model).items() if "shape" in facts}
    example = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "motion" in example:
        example["motion"] = example["motion"].abs()
    if "mask" in example:
        example["mask"] = torch.ones(shapes["mask"], dtype=torch.bool)
        example["mask"][0, (shapes["mask"][1] + 1) // 2 :] = False
    return example


def _trace(model: Predictor, example: dict[str, Tensor]) -> Any:
    """Record the graph of the model for batches of any size."""
    import torch

    arguments = {name: example.get(name) for name in ("features", "motion", "mask")}
    batch = torch.export.Dim("batch")
    shapes = {name: None if value is None else {0: batch} for name, value in arguments.items()}
    return torch.export.export(model, tuple(arguments.values()), dynamic_shapes=shapes)


def _to_pt2(model: Predictor, example: dict[str, Tensor], about: str) -> tuple[bytes, Callable[..., Tensor]]:
    """Return the content of a .pt2 file, and the graph that is in it."""
    import torch

    file = io.BytesIO()
    program = _trace(model, example)
    program.example_inputs = None  # which would be most of the file
    torch.export.save(program, file, extra_files={"vtm.json": about})
    file.seek(0)
    graph = torch.export.load(file).module()

    def run(example: Mapping[str, Tensor]) -> Tensor:
        scores: Tensor = graph(example["features"], example.get("motion"), example.get("mask"))
        return scores

    return file.getvalue(), run


def _to_onnx(model: Predictor, example: dict[str, Tensor], about: str) -> tuple[bytes, Callable[..., Tensor]]:
    """Return the content of an .onnx file, and a function that runs it in onnxruntime."""
    import torch

    from vtm.model_file import ModelFileError

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise ModelFileError(f"format onnx needs {error.name}: pip install onnx onnxruntime onnxscript") from None
    program: Any = torch.onnx.export(
        _trace(model, example), input_names=list(example), output_names=["scores"], dynamo=True, verbose=False
    )
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "vtm", about
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(example: Mapping[str, Tensor]) -> Tensor:
        (scores,) = session.run(["scores"], {name: value.numpy() for name, value in example.items()})
        return torch.from_numpy(scores)

    return content, run


if __name__ == "__main__":
    main()
