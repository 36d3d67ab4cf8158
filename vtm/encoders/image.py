"""Image encoders from timm, one frame per step; the paper uses ViT-L/16 pretrained on ImageNet-21k for LVU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from vtm.encoders.base import Encoder


class ImageEncoder(Encoder):
    """Encode every frame by any timm image model; CLS and register tokens are left out of the grid.

    Args:
        model_name: as timm calls it, such as "vit_large_patch16_224.augreg_in21k".
        image_size: S in pixels.
        pretrained: load timm's weights, from its hub; else draw random ones.
        seed: of random weights; they depend on nothing else.
        model_args: further arguments of the timm model, such as {"depth": 2}.
        chunk: frames that go through the model at a time.

    Raises:
        ValueError: if the image size is no multiple of the patch size, or the model gives no grid of features.
    """

    def __init__(
        self,
        model_name: str,
        *,
        image_size: int,
        pretrained: bool,
        seed: int = 0,
        model_args: Mapping[str, Any] | None = None,
        chunk: int = 64,
    ) -> None:
        arguments: dict[str, Any] = dict(model_args or {})
        if timm.get_pretrained_cfg_value(model_name, "fixed_input_size"):
            arguments["img_size"] = image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone: Any = timm.create_model(model_name, pretrained=pretrained, num_classes=0, **arguments)
        self.channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        self.prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1, 1))
        if image_size % patch[0] or image_size % patch[1]:
            below = image_size // patch[0] * patch[0]
            raise ValueError(
                f"encoder.image_size = {image_size} is no multiple of the {patch[0]} px patches of {model_name}; "
                f"{below} or {below + patch[0]} would be"
            )
        with torch.no_grad():
            features = backbone.eval().forward_features(torch.zeros(1, 3, image_size, image_size))
        super().__init__(
            backbone,
            key=f"{model_name}-{image_size}px-{'pretrained' if pretrained else f'random{seed}'}"
            + "".join(f"-{name}={value}" for name, value in sorted((model_args or {}).items())),
            image_size=image_size,
            frames_per_step=1,
            grid=self._grid(backbone, features),
            channels=features.shape[-1] if features.ndim == 3 or self.channels_last else features.shape[1],
            mean=backbone.pretrained_cfg["mean"],
            std=backbone.pretrained_cfg["std"],
            chunk=chunk,
        )

    def encode(self, frames: Tensor) -> Tensor:
        """Map normalised frames (n, 3, S, S) to tokens (n, H, W, C)."""
        features: Tensor = self.backbone.forward_features(frames)
        if features.ndim == 3:  # (n, prefix + H·W, C)
            return features[:, self.prefix :].reshape(-1, *self.grid, features.shape[-1])
        return features if self.channels_last else features.permute(0, 2, 3, 1)

    def _grid(self, backbone: Any, features: Tensor) -> tuple[int, int]:
        if features.ndim == 4:
            height, width = features.shape[1:3] if self.channels_last else features.shape[2:]
            return height, width
        height, width = getattr(getattr(backbone, "patch_embed", None), "grid_size", (0, 0))
        if features.ndim != 3 or features.shape[1] - self.prefix != height * width:
            raise ValueError(
                f"{type(backbone).__name__} gives features of shape {tuple(features.shape)}, which are no grid of "
                f"tokens; choose a model with a grid, such as a ViT or a ResNet"
            )
        return height, width
