"""The page of a model on the Hugging Face Hub: what its file says of it, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData
from tabulate import tabulate

_PAPER = "https://arxiv.org/abs/2410.23782"
_CHOSEN = {
    ("best", "val"): "The epoch was chosen on the validation videos.",
    ("best", "test"): "The epoch was chosen on the test videos themselves, so this score is optimistic.",
    ("last", "val"): "It is the last epoch; none was chosen.",
    ("last", "test"): "It is the last epoch; none was chosen.",
    ("given", "val"): "The checkpoint was tested as it was given.",
    ("given", "test"): "The checkpoint was tested as it was given.",
}
_USE = """\
```python
from vtm import Predictor

model = Predictor.from_pretrained("<the name of this repository>")
prediction = model.predict("video.mp4")
```

`prediction.top(3)` lists the best classes, or gives the value of a regression; `prediction.timeline()` says it of each
window."""
_LICENSE = """\
None is named yet: whoever shares the model names one, `push_to_hub(..., model_card_kwargs={"license": "..."})`. The
encoder and the training videos have their own."""


def model_card(description: Mapping[str, Any], **metadata: Any) -> str:
    """Write the page in Markdown.

    Args:
        description: `vtm.inference.model_file.PARTS`.
        metadata: of the head, such as `license`, as `huggingface_hub.ModelCardData` has it.
    """
    training, classes = description["training"], description["classes"]
    regression = description["task"] == "regression"
    facts = {
        "answer": "one number" if regression else f"probabilities of {description['num_outputs']} classes",
        "looks at": _protocol(description["protocol"]),
        "encoder": f"`{description['encoder_key']}`, frozen; its weights are not in this file",
        "motion": "of the tokens, from the video's codec" if description["motion"] else "not used",
        "trained as": f"experiment `{training['experiment']}`, seed {training['seed']}, {training['epoch']} epochs",
    }
    if training["commit"] is not None:
        versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
        facts["source"] = f"vtm at commit `{training['commit']}` ({versions})"
    parts = [
        f"---\n{ModelCardData(**metadata).to_yaml()}\n---",
        f"# {training['experiment']}",
        f"A model for the {description['task']} of whole videos, by [learnable video token merging]({_PAPER}), trained "
        "and exported with vtm. Everything here is taken from the model file.",
        tabulate(facts.items(), ["", ""], tablefmt="pipe", disable_numparse=True, colalign=["left", "left"]),
    ]
    if classes:
        names = ", ".join("`" + " ".join(name.replace("`", "'").split()) + "`" for name in classes)
        parts += [f"The classes, in the order of the outputs: {names}."]
    parts += ["## Result", _result(training["test"])]
    parts += ["## Use", _USE]
    if "license" not in metadata:
        parts += ["## Licence", _LICENSE]
    return "\n\n".join(parts) + "\n"


def _protocol(node: Mapping[str, Any]) -> str:
    """Say what is seen of a video."""
    frames, name = node["num_frames"], str(node["_target_"]).rpartition(".")[2]
    if name == "Windows":
        return (
            f"windows of {frames} s, a frame per second, a window every {node['stride']} s; the answer is their average"
        )
    if name == "Single":
        return f"{frames} frames, spread evenly over the whole video"
    return f"clips of {frames} frames, as `{name}` chooses them"


def _result(test: Mapping[str, Any] | None) -> str:
    """Say what was measured, on what, and how sure it is."""
    if test is None:
        return "There is none: the model was exported without the result of a test."
    low, high = test["interval"]
    name = {"accuracy": "accuracy", "mse": "mean squared error"}.get(test["metric"], test["metric"])
    answer = "always giving the most frequent class" if test["metric"] == "accuracy" else "always giving the mean"
    missing = f"; {test['missing']} videos of the list were missing" if test["missing"] else "; none was missing"
    return (
        f"The test of the run itself: **{name} {test['value']:.3f}**, 95 % interval {low:.3f} to {high:.3f}, on n = "
        f"{test['n']} test videos, each scored once by the vote of its clips{missing}. {answer[0].upper()}{answer[1:]} "
        f"of the training videos would score {test['floor']:.3f}. {_CHOSEN[test['checkpoint'], test['selection']]} The "
        "interval is about these test videos; of videos of another kind nothing has been measured."
    )
