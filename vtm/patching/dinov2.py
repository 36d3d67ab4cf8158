"""Blocks of DINOv2 without registers in Hugging Face transformers: attention within an image, with CLS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.dinov2 import modeling_dinov2
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer, Dinov2Model
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging
from vtm.patching.classifiers import TINY, averaging, classify, take_off_before
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import mean_by_size
from vtm.patching.vit_layers import merge_in_dino_layer


class MergingDinov2Layer(Dinov2Layer):  # type: ignore[misc]
    """A block of DINOv2 that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        state = self.merging.enter(hidden_states)
        num_heads = self.attention.num_attention_heads
        return merge_in_dino_layer(self, state, attention_mask, num_heads=num_heads, **kwargs)


class Dinov2ForImageClassification(modeling_dinov2.Dinov2ForImageClassification):  # type: ignore[misc]
    """A classifier that weighs each token by its size where it averages the tokens."""

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify images (B, 3, H, W)."""
        outputs = self.dinov2(pixel_values, attention_mask=attention_mask, **kwargs)
        x = outputs.last_hidden_state
        features = torch.cat([x[:, 0], mean_by_size(x, skip=1)], dim=1)
        return classify(self, features, outputs, labels, **kwargs)


def _facts(model: Any) -> Facts:
    return Facts(
        model.config.hidden_size,
        protected=1,
        config=model.config,
        inputs=pixel_inputs(model.config),
    )


def _take_off(model: Any) -> None:
    take_off_before(model.layernorm, model.config.hidden_size)


HOSTS = (
    Host(
        Dinov2Model,
        "encoder.layer",
        Dinov2Layer,
        MergingDinov2Layer,
        "attention.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=averaging(
            modeling_dinov2.Dinov2ForImageClassification, Dinov2ForImageClassification, "dinov2", **TINY
        ),
    ),
)
