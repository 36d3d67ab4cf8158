"""Export a checkpoint as a model for inference: python -m vtm.export ckpt_path=runs/…/best.ckpt out=model.safetensors.

Formats: `safetensors`, for `vtm.load`, `vtm.predict` and `vtm.visualize`; `onnx`, for onnxruntime and other readers of
ONNX; `pt2`, for `torch.export.load`. The last two hold the network, from features to scores, and a description of the
encoder, the preprocessing and the classes; they are written only if their scores agree with the model's.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtm.cli.errors import concise_errors
from vtm.results.record import read_results, score_of
from vtm.system.names import explain_difference, fold

if TYPE_CHECKING:  # slow to import, so only after the arguments are checked
    from torch import Tensor

FORMATS = ("safetensors", "onnx", "pt2")
_USAGE = "python -m vtm.export ckpt_path=FILE out=FILE [format=safetensors,onnx,pt2] [encoder_checkpoint=FILE]"
_HELP = """\
Export a checkpoint as a model for inference, without the auxiliary path that only training uses.

  ckpt_path            a checkpoint of train.py: runs/<experiment>/<stamp>/checkpoints/best.ckpt
  out                  the file to write; its ending is the format, unless format is given
  format               one or more formats, separated by commas; the endings are then added to out
  encoder_checkpoint   the file of the encoder's own weights, if it has moved since training

  python -m vtm.export ckpt_path=runs/demo/…/checkpoints/best.ckpt out=demo.safetensors
  python -m vtm.predict demo.safetensors video.mp4
"""
_SETTINGS = ("ckpt_path", "out", "format", "encoder_checkpoint")


def main() -> None:
    """Export the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(
        usage=_USAGE, description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args().settings
    with concise_errors():
        settings = _settings(arguments)
        moved = settings.pop("encoder_checkpoint", None)
        checkpoint, out = Path(settings["ckpt_path"]), Path(settings["out"])
        for line in export(checkpoint, out, settings["format"], encoder_checkpoint=moved):
            print(line, flush=True)


def export(checkpoint: Path, out: Path, formats: str, *, encoder_checkpoint: str | None = None) -> Iterator[str]:
    """Write a checkpoint in one or more formats; yield a line about each file once it is written.

    Args:
        checkpoint: checkpoint of train.py.
        out: file to write, or its path without the endings if `formats` is given.
        formats: names from `FORMATS`, separated by commas; empty to use the ending of `out`.
        encoder_checkpoint: file of the encoder's own weights, if it has moved since training.

    Raises:
        ModelFileError: if a format is unknown or cannot hold a setting of the model.
    """
    from vtm.inference.graph import check_traceable, trace, write_graph
    from vtm.inference.model_file import ModelFileError, write_model
    from vtm.inference.predictor import Predictor

    given = out.suffix.removeprefix(".")
    chosen = formats.split(",") if formats else [given]
    if unknown := [name for name in chosen if name not in FORMATS]:
        key = "format" if formats else "the ending of out"
        raise ModelFileError(f"expected {key} to be one of {', '.join(FORMATS)}, got {unknown[0]!r}")
    weights, description = from_checkpoint(checkpoint)
    if encoder_checkpoint is not None:
        description["encoder"] |= {"checkpoint": encoder_checkpoint}
    model = Predictor.from_training(weights, description)
    weights = model.network.state_dict()
    if graphs := [name for name in chosen if name != "safetensors"]:
        check_traceable(model, graphs[0])
        graph = trace(model)
    for name in chosen:
        path = out if name == given else out.with_name(f"{out.name}.{name}")
        if name == "safetensors":
            write_model(path, weights, description)
            summary = f"{sum(value.numel() for value in weights.values()) / 1e6:.2f} million weights"
        else:
            summary = write_graph(model, graph, path, name)
        yield f"{path}: {summary}, {path.stat().st_size / 1e6:.1f} MB; {_origin(description)}"


def from_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a network from a checkpoint, and its description for `vtm.inference.model_file`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a checkpoint of vtm, or is damaged.
        ModelFileError: if a model file cannot hold its task.
    """
    from vtm.inference.model_file import ModelFileError
    from vtm.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    task = str(config["task"]["_target_"])
    if not task.startswith("vtm.tasks."):
        raise ModelFileError(f"expected a task of vtm.tasks, got {task}; a model file cannot hold others")
    state = {
        name.removeprefix("model."): value for name, value in checkpoint.state.items() if name.startswith("model.")
    }
    return state, {
        "task": task.rpartition(".")[2].lower(),
        "classes": checkpoint.class_names,
        "num_outputs": len(state["head.bias"]),
        "encoder": config["encoder"],
        "encoder_key": checkpoint.encoder_key,
        "model": _without_weights(config["model"]),
        "protocol": config["data"]["protocol"],
        "motion": config["motion"] and _motion(config["data"]),
        "training": _training(path, config, epoch=checkpoint.epochs),
    }


def _without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network that is not built from a checkpoint of others, because the model file holds its weights."""
    host = {"host": {**model["host"], "pretrained": False}} if "host" in model else {}
    return {**model, **host}


def _motion(data: Mapping[str, Any]) -> bool | str:
    """Return "difference" if the motion of tokens is the difference of frames; True if it is from the codec."""
    return "difference" if data.get("motion_source") == "difference" else True  # older checkpoints lack the key


def _settings(arguments: list[str]) -> dict[str, str]:
    """Read `key=value` arguments."""
    settings = {"format": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in _SETTINGS or not equals or not value:
            alike = [name for name in _SETTINGS if fold(name) == fold(key)]
            near = alike or difflib.get_close_matches(key, _SETTINGS, n=1)
            hint = f"; did you mean {near[0]}=…?" if near else ""
            if alike:
                hint += f" {explain_difference(key, near[0], here='the command line', there='the settings')}"
            raise ValueError(
                f"{argument!r} is not a setting of vtm.export; expected {', '.join(f'{name}=…' for name in _SETTINGS)}"
                + hint
            )
        settings[key] = value
    if missing := [name for name in ("ckpt_path", "out") if name not in settings]:
        raise ValueError(
            f"vtm.export needs {' and '.join(f'{name}=…' for name in missing)}; see python -m vtm.export --help"
        )
    return settings


def _training(path: Path, config: Mapping[str, Any], *, epoch: int) -> dict[str, Any]:
    """Describe the training of a model, with its scores if the run folder still has its `results.json`."""
    facts = {"experiment": config["name"], "seed": config["seed"], "epoch": epoch}
    results = path.parent.parent / "results.json"
    try:
        run = read_results(results)
    except FileNotFoundError:
        return facts | {"commit": None, "versions": None, "val": None, "test": None}
    scores = {stage: _finite(score_of(run, stage, epoch)) for stage in ("val", "test")}
    return facts | {"commit": run["commit"], "versions": run["versions"], **scores}


def _finite(score: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a score without facts that are NaN or infinite, which JSON cannot hold; None if the score itself is."""
    if score is None or not all(map(math.isfinite, (score["value"], *score["interval"]))):
        return None
    return {name: fact for name, fact in score.items() if not isinstance(fact, float) or math.isfinite(fact)}


def _origin(description: Mapping[str, Any]) -> str:
    """Summarize in a few words how a model was trained and what it scored."""
    facts = description["training"]
    text = f"{facts['experiment']}, seed {facts['seed']}, epoch {facts['epoch']}"
    if (test := facts["test"]) is None:
        return f"{text}, without a test score: results.json in the run folder has none for this epoch"
    low, high = test["interval"]
    return f"{text}, test {test['metric']} {test['value']:.3f} ({low:.3f} to {high:.3f}, n = {test['n']})"


if __name__ == "__main__":
    main()
