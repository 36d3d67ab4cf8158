"""Ready video classifiers for `VideoTransformer`: models of transformers and timm, and Motionformer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vtm.patching.motionformer import PATCH, TUBELET, Motionformer, load_motionformer

Architecture = Literal[
    "TimesformerForVideoClassification",
    "VJEPA2ForVideoClassification",
    "VideoMAEForVideoClassification",
    "VivitForVideoClassification",
]
_LABELS = {"id2label", "label2id", "num_labels", "problem_type"}  # what a configuration knows of the classes
_ORIGIN = {"_name_or_path", "architectures", "dtype", "model_type", "output_attentions", "transformers_version"}


class HostFacts(NamedTuple):
    """What `VideoTransformer` needs to know of a ready classifier.

    Attributes:
        features: function from the model and clips (B, T, 3, S, S) to features (B, C) of the clips, or (B, T, C) of
            their frames.
        frames: T, number of frames of a clip; None for any number.
        image_size: S, side of the frames in pixels; None for any size.
        steps: number of steps of the tokens, frames or pairs of frames; None for one per frame of the clip.
        patch: side in pixels of the patch of a frame that is a token.
        labels: names of the classes of a trained last layer, empty if they are not known; None if the last layer is
            random.
        config: settings that, without weights, build the same model.
        unused: names of the parts of the model that do not affect the features.
    """

    features: Callable[[Any, Tensor], Tensor]
    frames: int | None
    image_size: int | None
    steps: int | None
    patch: int
    labels: list[str] | None
    config: dict[str, Any]
    unused: tuple[str, ...] = ()


class VideoHost(NamedTuple):
    """A ready classifier, divided into a transformer and its last layer.

    Attributes:
        model: transformer with an identity in the place of its last layer.
        head: last layer.
        facts: what else must be known.
    """

    model: nn.Module
    head: nn.Linear
    facts: HostFacts


def transformers_host(
    num_outputs: int, *, architecture: Architecture, name: str, pretrained: bool, config: Mapping[str, Any]
) -> VideoHost:
    """Make a video classifier of Hugging Face transformers.

    Args:
        num_outputs: number of classes of random weights; the trained ones of a checkpoint stay.
        architecture: name of the class in transformers.
        name: name on the Hub, or local folder that `save_pretrained` has written.
        pretrained: whether to load the weights of `name`; otherwise, they are random and `name` is not used.
        config: values that differ from the configuration of the checkpoint, or from the default one.

    Raises:
        ValueError: if the architecture or a setting is unknown, or the checkpoint is of another model.
        RuntimeError: if the weights cannot be downloaded.
    """
    import transformers  # slow

    if architecture not in Architecture.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"expected model.host.architecture to be one of {', '.join(_names())}, got {architecture}")
    kind: Any = getattr(transformers, architecture)
    known = kind.config_class().to_dict()
    if unknown := sorted(config.keys() - known.keys()):
        raise ValueError(
            f"model.host.config.{unknown[0]} is unknown; the settings of {architecture} are {', '.join(sorted(known))}"
        )
    labels: list[str] | None = None
    if pretrained:
        model, missing = _load(kind, name, config)
        if not any(text.startswith("classifier.") for text in missing):
            labels = [str(label) for _, label in sorted(model.config.id2label.items())]
            labels = [] if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels
    else:
        model = kind(kind.config_class(num_labels=num_outputs, **config))
    settings = model.config
    vjepa2 = architecture == "VJEPA2ForVideoClassification"
    frames = settings.frames_per_clip if vjepa2 else settings.num_frames
    tubelet = getattr(settings, "tubelet_size", 1)
    patch = settings.patch_size if hasattr(settings, "patch_size") else settings.tubelet_size[-1]
    head, model.classifier = model.classifier, nn.Identity()
    chosen = settings.to_diff_dict()
    facts = HostFacts(
        partial(_call, input_name=kind.main_input_name),
        frames=frames,
        image_size=settings.crop_size if vjepa2 else settings.image_size,
        steps=frames // (tubelet if isinstance(tubelet, int) else tubelet[0]),
        patch=patch,
        labels=labels,
        config={key: value for key, value in chosen.items() if key in known and key not in _LABELS | _ORIGIN},
        unused=("vjepa2.predictor",) if vjepa2 else (),
    )
    return VideoHost(model.train(), head, facts)


def timm_host(num_outputs: int, *, name: str, pretrained: bool, config: Mapping[str, Any]) -> VideoHost:
    """Make an image classifier of timm, whose logits are averaged over the frames of a clip.

    Args:
        num_outputs: number of classes of random weights; the trained ones of a checkpoint stay.
        name: name of a Vision Transformer in timm.
        pretrained: whether to load its published weights.
        config: further arguments of the model, such as {"depth": 2}.

    Raises:
        ValueError: if timm has no such model with a linear last layer.
        RuntimeError: if the weights cannot be downloaded.
    """
    import timm  # slow

    if re.fullmatch(r"[\w.-]+", name, re.ASCII) is None:
        raise ValueError(f"model.host.name = {name!r} is not the name of a model in timm; timm.list_models() lists all")
    classes: dict[str, Any] = {} if pretrained else {"num_classes": num_outputs}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **classes, **config)
    except OSError as error:
        raise _not_found(name, error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        given = f" with model.host.config = {dict(config)}" if config else ""
        raise ValueError(f"timm cannot create model.host.name = {name}{given}: {error}") from error
    embedding, head = getattr(model, "patch_embed", None), model.get_classifier()
    if embedding is None or not isinstance(head, nn.Linear | nn.Identity):
        raise ValueError(f"model.host.name = {name} is not a Vision Transformer with one linear last layer")
    trained = pretrained and isinstance(head, nn.Linear)
    model.reset_classifier(0)
    if isinstance(head, nn.Identity):
        head = nn.Linear(model.num_features, num_outputs)
    size = embedding.img_size
    facts = HostFacts(
        _call_per_frame,
        frames=None,
        image_size=None if size is None else size[0],
        steps=None,
        patch=embedding.patch_size[0],
        labels=[] if trained else None,
        config=dict(config),
    )
    return VideoHost(model, head, facts)


def motionformer_host(num_outputs: int, *, name: str | None, pretrained: bool, config: Mapping[str, Any]) -> VideoHost:
    """Make a Motionformer.

    Args:
        num_outputs: number of classes of random weights; the trained ones of a checkpoint stay.
        name: checkpoint of facebookresearch/Motionformer, such as k400_motionformer_224_16x4.pyth.
        pretrained: whether to load it.
        config: arguments of `Motionformer` for random weights, such as {"num_frames": 32}.

    Raises:
        ValueError: if the file is missing or contains another model, or a setting is unknown.
    """
    if pretrained:
        if name is None or not Path(name).is_file():
            raise ValueError(
                f"model.host.name = {name} is not a file; give a checkpoint of facebookresearch/Motionformer, or set "
                "model.host.pretrained=false for random weights"
            )
        model = load_motionformer(name)
    else:
        try:
            model = Motionformer(num_classes=num_outputs, **config)
        except TypeError as error:
            raise ValueError(f"model.host.config of Motionformer: {error}") from error
    if model.head_names != ("head",):
        raise ValueError(f"expected a Motionformer with one last layer, got {', '.join(model.head_names)}")
    head = cast(nn.Linear, model.get_submodule("head"))
    model.head = nn.Identity()
    steps, width = model.temp_embed.shape[1:]
    side = PATCH * round((model.pos_embed.shape[1] - 1) ** 0.5)
    attention = cast(Any, model.blocks[0]).attn
    shape = {"num_frames": TUBELET * steps, "image_size": side, "width": width, "depth": len(model.blocks)}
    facts = HostFacts(
        _call_channels_first,
        frames=TUBELET * steps,
        image_size=side,
        steps=steps,
        patch=PATCH,
        labels=[] if pretrained else None,
        config={**shape, "num_heads": attention.num_heads, "values": attention.values},
    )
    return VideoHost(model, head, facts)


def _load(kind: Any, name: str, config: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """Load a model of transformers in float32, and return it with the names of the tensors that are not in the file."""
    try:
        model, info = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **config)
    except OSError as error:
        raise _not_found(name, error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"model.host.name = {name} cannot be loaded as a {kind.__name__}: {reason}") from error
    missing = set(info["missing_keys"])
    if others := sorted(text for text in missing if not text.startswith(("classifier.", "fc_norm."))):
        raise ValueError(
            f"model.host.name = {name} holds another model than a {kind.__name__}: {len(others)} of its tensors, such "
            f"as {others[0]}, are missing; choose its kind with model/host"
        )
    return model, missing


def _not_found(name: str, error: Exception) -> RuntimeError:
    reason = str(error).partition("\n")[0]
    return RuntimeError(
        f"the weights model.host.name = {name} cannot be found on this machine or downloaded ({reason}); give a local "
        "folder, or set model.host.pretrained=false for random weights"
    )


def _names() -> tuple[str, ...]:
    return tuple(Architecture.__args__)  # type: ignore[attr-defined]


def _call(model: Any, clips: Tensor, *, input_name: str) -> Tensor:
    features: Tensor = model(**{input_name: clips}).logits
    return features


def _call_channels_first(model: Any, clips: Tensor) -> Tensor:
    features: Tensor = model(clips.transpose(1, 2))
    return features


def _call_per_frame(model: Any, clips: Tensor) -> Tensor:
    features: Tensor = model(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
    return features
