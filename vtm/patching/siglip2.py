"""Blocks of the vision tower of SigLIP 2 with images of any shape (NaFlex) in Hugging Face transformers.

Padding is refused: a patch of padding could be merged into one of the image, and the pooling masks by position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.siglip2 import modeling_siglip2
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer, Siglip2VisionModel
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging
from vtm.patching.classifiers import TINY, averaging, classify, take_off_before
from vtm.patching.host import Facts, Host
from vtm.patching.pooling import mean_by_size
from vtm.patching.vit_layers import merge_in_clip_layer


class MergingSiglip2EncoderLayer(Siglip2EncoderLayer):  # type: ignore[misc]
    """A block of SigLIP 2 that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        return merge_in_clip_layer(self, hidden_states, attention_mask, **kwargs)


def refuse_padding(model: Any, args: Any, kwargs: Any) -> None:
    """Raise an error if a model whose blocks take tokens away is given a mask: a forward pre-hook."""
    mask = kwargs.get("pixel_attention_mask", args[1] if len(args) > 1 else None)
    if mask is not None and any(block.merging.count for block in model.encoder.layers):
        raise ValueError(
            "a patched SigLIP 2 cannot merge images with padding: give images of one shape, without padding, and "
            "pixel_attention_mask=None"
        )


class Siglip2ForImageClassification(modeling_siglip2.Siglip2ForImageClassification):  # type: ignore[misc]
    """A classifier that weighs each token by its size where it averages the tokens."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify images (B, 3, H, W)."""
        outputs = self.vision_model(pixel_values, pixel_attention_mask, spatial_shapes, **kwargs)
        return classify(self, mean_by_size(outputs.last_hidden_state), outputs, labels)


def _facts(model: Any) -> Facts:
    config = model.config
    side = int(config.num_patches**0.5)
    return Facts(
        config.hidden_size,
        config=config,
        arguments=lambda place: {"attention_mask": None},
        inputs=lambda: {
            "pixel_values": torch.zeros(1, side**2, config.num_channels * config.patch_size**2),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor([[side, side]]),
        },
    )


def _take_off(model: Any) -> None:
    model.register_forward_pre_hook(refuse_padding, with_kwargs=True)
    take_off_before(model.post_layernorm, model.config.hidden_size)


HOSTS = (
    Host(
        Siglip2VisionModel,
        "encoder.layers",
        Siglip2EncoderLayer,
        MergingSiglip2EncoderLayer,
        "self_attn.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=averaging(
            modeling_siglip2.Siglip2ForImageClassification,
            Siglip2ForImageClassification,
            "vision_model",
            vision_config=TINY,
        ),
    ),
)
