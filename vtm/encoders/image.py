"""Image encoders from timm, one frame per step; the paper uses ViT-L/16 pretrained on ImageNet-21k for LVU."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Unpack

import timm
import torch
from torch import Tensor

from vtm.encoders.base import Encoder, EncoderOptions, check_image_size
from vtm.encoders.weights import fetching, is_plain_name, read_weights
from vtm.merging import FeatureGrid

_CHUNK = 16  # frames


class ImageEncoder(Encoder):
    """An encoder of single frames by any timm image model.

    Args:
        model_name: timm name of the model, such as "vit_large_patch16_224.augreg_in21k".
        cls_in_grid: whether to keep CLS and register tokens, in one row, followed by the tokens of the frame;
            otherwise, they are dropped.
        model_args: additional arguments of the timm model, such as {"depth": 2}.
        options: arguments of every encoder. A checkpoint may be any file of weights that timm can load, except those
            that need code to be run.

    Raises:
        ValueError: if timm does not have the model or its weights, the image size does not divide into whole tokens, or
            the features are not a grid.
    """

    def __init__(
        self,
        model_name: str,
        *,
        cls_in_grid: bool,
        model_args: Mapping[str, Any] | None = None,
        **options: Unpack[EncoderOptions],
    ) -> None:
        self.model_name = model_name
        self.cls_in_grid = cls_in_grid
        self.arguments: dict[str, Any] = dict(model_args or {})
        default = self._default()
        config = default.pretrained_cfg
        self.full_name = model_name.partition(":")[2] or ".".join(
            config[part] for part in ("architecture", "tag") if part in config
        )
        published = config.get("url") or config.get("hf_hub_id")
        if options["pretrained"] and options["checkpoint"] is None and not published:
            raise ValueError(
                f"timm has no weights of {model_name}; choose another encoder.model_name (timm.list_pretrained() lists "
                f"all) or give a file with encoder.checkpoint=<file>"
            )
        self._pixels = int(default.feature_info[-1]["reduction"]) if getattr(default, "feature_info", None) else 1
        if options["image_size"] != config["input_size"][-1]:  # the training size is always valid
            check_image_size(options["image_size"], self._pixels, model_name)
        if config.get("fixed_input_size"):
            self.arguments["img_size"] = options["image_size"]
        details = [f"{key}={value}" for key, value in sorted((model_args or {}).items())]
        try:
            super().__init__(
                self.full_name,
                frames_per_step=1,
                chunk=_CHUNK,
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
                details=(*details, *(("cls",) if cls_in_grid else ())),
                **options,
            )
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{model_name} does not support encoder.image_size = {options['image_size']} ({error}); "
                f"its default is {config['input_size'][-1]}"
            ) from error
        if cls_in_grid:
            self.grid = FeatureGrid(self._side, self._side, prefix=self.grid.width - self._side**2)

    def build(self, *, load: bool) -> Any:
        """Create the model; weights must match it in every tensor."""
        if not load or not (self.pretrained or self.checkpoint):
            return timm.create_model(self.model_name, pretrained=False, num_classes=0, **self.arguments)
        if self.checkpoint is not None:
            return self._from_checkpoint(self.checkpoint)
        with fetching(self.full_name):
            return timm.create_model(self.model_name, pretrained=True, **self.arguments)

    def encode(self, backbone: Any, frames: Tensor) -> Tensor:
        """Encode normalized frames (n, 3, S, S) to tokens (n, H, W, C), or (n, 1, P + H·W, C) with a prefix."""
        features: Tensor = backbone.forward_features(frames)
        dimensions = getattr(features, "ndim", 0)  # some models return a list
        prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        side = self._side
        if self.cls_in_grid and not (dimensions == 3 and prefix):
            raise ValueError(f"{self.model_name} has no CLS token; set encoder.cls_in_grid=false")
        if dimensions == 4:
            return features if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)
        if dimensions != 3 or features.shape[1] != prefix + side**2:
            actual = f"features of shape {tuple(features.shape)}" if dimensions else f"a {type(features).__name__}"
            raise ValueError(
                f"{self.model_name} returns {actual}, not a grid of {side} × {side} tokens; choose a model with a "
                f"grid, such as a ViT or a ResNet"
            )
        return features[:, None] if self.cls_in_grid else features[:, prefix:].unflatten(1, (side, side))

    @property
    def _side(self) -> int:
        """Number of tokens along a side of a frame."""
        return math.ceil(self.frames.image_size / self._pixels)

    def _default(self) -> Any:
        """Create the default model without memory for weights, to read its configuration."""
        if not is_plain_name(self.model_name) and not re.fullmatch(r"hf[-_]hub:[\w./@-]+", self.model_name, re.ASCII):
            raise ValueError(
                f"encoder.model_name = {self.model_name!r} is a folder or not a name; give the name of the model in "
                "timm, or hf-hub:<owner>/<name>, and the file of its weights with encoder.checkpoint=<file>"
            )
        try:
            with torch.device("meta"):
                return timm.create_model(self.model_name, pretrained=False, num_classes=0, **self.arguments)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            given = f" with encoder.model_args = {self.arguments}" if self.arguments else ""
            raise ValueError(
                f"timm cannot create encoder.model_name = {self.model_name}{given}: {error}; timm.list_models() and "
                f"timm.list_pretrained() list the names"
            ) from error

    def _from_checkpoint(self, path: str) -> Any:
        """Create the model with the weights of a file, which timm receives as tensors, so that it runs no code."""
        state = read_weights(path)
        try:
            # the name in timm, and the name most authors use
            heads = (self._default().pretrained_cfg["classifier"], "head")
            classes = next((len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state), 0)
            if not state:
                raise ValueError("it has no tensors")
            model: Any = timm.create_model(
                self.model_name,
                pretrained=True,
                num_classes=classes,
                pretrained_cfg_overlay={
                    "state_dict": state,
                    "source": None,  # else a model of the Hub is loaded from there
                    "num_classes": classes,
                    "label_offset": 0,
                },  # every tensor must match
                **self.arguments,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"encoder.checkpoint = {path} has no weights of {self.model_name} that timm can load: {reason}"
            ) from error
        model.pretrained_cfg.pop("state_dict", None)  # frees the memory
        return model
