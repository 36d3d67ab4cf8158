"""Blocks of DINOv2 with registers in Hugging Face transformers: attention within an image, with CLS and registers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as modeling
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersModel,
)
from transformers.utils.generic import can_return_tuple

from vtm.patching.block import Merging
from vtm.patching.classifiers import TINY, averaging, classify, take_off_before
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import mean_by_size
from vtm.patching.vit_layers import merge_in_dino_layer


class MergingDinov2WithRegistersLayer(Dinov2WithRegistersLayer):  # type: ignore[misc]
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


class Dinov2WithRegistersForImageClassification(modeling.Dinov2WithRegistersForImageClassification):  # type: ignore[misc]
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
        outputs = self.dinov2_with_registers(pixel_values, attention_mask=attention_mask, **kwargs)
        x = outputs.last_hidden_state
        features = torch.cat([x[:, 0], mean_by_size(x, skip=1 + self.config.num_register_tokens)], dim=1)
        return classify(self, features, outputs, labels, **kwargs)


def _facts(model: Any) -> Facts:
    return Facts(
        model.config.hidden_size,
        protected=1 + model.config.num_register_tokens,
        config=model.config,
        inputs=pixel_inputs(model.config),
    )


def _take_off(model: Any) -> None:
    take_off_before(model.layernorm, model.config.hidden_size)


HOSTS = (
    Host(
        Dinov2WithRegistersModel,
        "encoder.layer",
        Dinov2WithRegistersLayer,
        MergingDinov2WithRegistersLayer,
        "attention.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
        averaging=averaging(
            modeling.Dinov2WithRegistersForImageClassification,
            Dinov2WithRegistersForImageClassification,
            "dinov2_with_registers",
            **TINY,
        ),
    ),
)
