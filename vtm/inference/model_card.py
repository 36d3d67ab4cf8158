"""The model card for the Hugging Face Hub, written from the model file alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData
from tabulate import tabulate

_MOTION = {
    False: "not used",
    True: "of each token, from the video's codec",
    "difference": "of each token, from the difference of frames",
}
_PAPER = "https://arxiv.org/abs/2410.23782"
_CHOSEN = {
    ("best", "val"): "The epoch was chosen on the validation videos.",
    ("best", "test"): "The epoch was chosen on the test videos themselves, so this score is optimistic.",
    ("last", "val"): "It is the last epoch; no epoch was chosen.",
    ("last", "test"): "It is the last epoch; no epoch was chosen.",
    ("given", "val"): "The checkpoint was given; no epoch was chosen.",
    ("given", "test"): "The checkpoint was given; no epoch was chosen.",
}
_USE = """\
```python
from vtm import Predictor

model = Predictor.from_pretrained("<the name of this repository>")
prediction = model.predict("video.mp4")
```

`prediction.top(3)` returns the best classes, or the value of a regression; `prediction.timeline()` returns them for
each window."""
_LICENSE = """\
No license has been chosen yet; set one with `push_to_hub(..., model_card_kwargs={"license": "..."})`. The encoder and
the training videos have their own licenses."""


def model_card(description: Mapping[str, Any], **metadata: Any) -> str:
    """Write the model card in Markdown.

    Args:
        description: description of the model, with `vtm.inference.model_file.PARTS`.
        metadata: fields of the card's header, such as `license`, as in `huggingface_hub.ModelCardData`.
    """
    training, classes = description["training"], description["classes"]
    regression = description["task"] == "regression"
    facts = {
        "output": "one number" if regression else f"probabilities of {description['num_outputs']} classes",
        "input": _protocol(description["protocol"]),
        "encoder": f"`{description['encoder_key']}`, frozen; its weights are not in this file",
        "motion": _MOTION[description["motion"]],
        "trained as": f"experiment `{training['experiment']}`, seed {training['seed']}, {training['epoch']} epochs",
    }
    if training["commit"] is not None:
        versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
        facts["source"] = f"vtm at commit `{training['commit']}` ({versions})"
    parts = [
        f"---\n{ModelCardData(**metadata).to_yaml()}\n---",
        f"# {training['experiment']}",
        f"A model for the {description['task']} of whole videos, by [learnable video token merging]({_PAPER}), trained "
        "and exported with vtm. This card is generated from the model file.",
        tabulate(facts.items(), ["", ""], tablefmt="pipe", disable_numparse=True, colalign=["left", "left"]),
    ]
    if classes:
        names = ", ".join("`" + " ".join(name.replace("`", "'").split()) + "`" for name in classes)
        parts += [f"The classes, in the order of the outputs: {names}."]
    parts += ["## Result", _result(training["test"])]
    parts += ["## Use", _USE]
    if "license" not in metadata:
        parts += ["## License", _LICENSE]
    return "\n\n".join(parts) + "\n"


def _protocol(node: Mapping[str, Any]) -> str:
    """Describe the frames of a video that the model sees."""
    frames, name = node["num_frames"], str(node["_target_"]).rpartition(".")[2]
    if name == "Windows":
        return (
            f"windows of {frames} s at one frame per second, one every {node['stride']} s; the output is their average"
        )
    if name == "Single":
        return f"{frames} frames, spread evenly over the whole video"
    return f"clips of {frames} frames, chosen by `{name}`"


def _result(test: Mapping[str, Any] | None) -> str:
    """Describe the test score, its test videos and its interval."""
    if test is None:
        return "None: the model was exported without a test score."
    low, high = test["interval"]
    name = {"accuracy": "accuracy", "mse": "mean squared error"}.get(test["metric"], test["metric"])
    constant = "most frequent class" if test["metric"] == "accuracy" else "mean"
    missing = f"; {test['missing']} videos of the list were missing" if test["missing"] else "; none was missing"
    return (
        f"From the test of the training run: **{name} {test['value']:.3f}**, 95 % interval {low:.3f} to {high:.3f}, on "
        f"n = {test['n']} test videos, each scored once by the average of its clips{missing}. Always predicting the "
        f"{constant} of the training videos would score {test['floor']:.3f}. "
        f"{_CHOSEN[test['checkpoint'], test['selection']]} The interval applies to these test videos; other kinds of "
        "video have not been tested."
    )
