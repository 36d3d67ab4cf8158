"""Tiny models of transformers with random weights, for the tests of patching."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VJEPA2 = {
    "hidden_size": 28, "num_attention_heads": 2, "crop_size": 32, "frames_per_clip": 8, "tubelet_size": 2,
    "num_pooler_layers": 1, "pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip


def make_host(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of transformers with three blocks, patches of 8 × 8, and five classes.

    Args:
        name: name of its class.
        options: further options of its configuration.
    """

    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        tower: dict[str, Any] = {
            "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48,
            "mlp_ratio": 2, "image_size": 32, "patch_size": 8, "num_patches": 16, **options,
        }  # fmt: skip
        model = getattr(transformers, name)
        if "vision_config" in model.config_class.sub_configs:
            text = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
            config = model.config_class(vision_config=tower, text_config=text, num_labels=5)
        else:
            config = model.config_class(num_labels=5, **tower)
        made: nn.Module = model(config)
        return made

    return make


class NaflexModel(nn.Module):
    """A SigLIP 2 that is given images (B, 3, H, W) of one shape, without padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Cut images into patches, and classify them."""
        return self.model(**to_patches(x))

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """Let the model recompute its blocks."""
        self.model.gradient_checkpointing_enable(options)


def make_siglip2() -> nn.Module:
    """Make a tiny SigLIP 2 for images of any shape."""
    return NaflexModel(make_host("Siglip2ForImageClassification")())


def to_patches(x: Tensor) -> dict[str, Any]:
    """Cut images (B, 3, H, W) into patches of 8 × 8 pixels, as SigLIP 2 takes them."""
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, H / 8, W / 8, 8, 8)
    shapes = torch.tensor(patches.shape[2:4]).expand(len(x), 2)
    pixels = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return {"pixel_values": pixels, "pixel_attention_mask": None, "spatial_shapes": shapes}
