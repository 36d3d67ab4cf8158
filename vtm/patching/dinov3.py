"""Blocks of the ViTs of DINOv3 in Hugging Face transformers: rotary positions, with CLS and registers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer, DINOv3ViTModel

from vtm.patching.block import Merging
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import TakeState
from vtm.patching.vit_layers import merge_in_dino_layer


class MergingDINOv3ViTLayer(DINOv3ViTLayer):  # type: ignore[misc]
    """A block of DINOv3 that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, position_embeddings, **kwargs)
            return output
        assert position_embeddings is not None
        state = self.merging.enter(hidden_states)
        protected = self.merging.protected
        place = state.place[:, protected:] - protected
        cos, sin = (table[place][:, None] for table in position_embeddings)  # (B, 1, N − p, d)
        return merge_in_dino_layer(
            self,
            state,
            attention_mask,
            num_heads=self.attention.num_heads,
            position_embeddings=(cos, sin),
            **kwargs,
        )


def _facts(model: Any) -> Facts:
    config = model.config
    protected = 1 + config.num_register_tokens
    width = config.hidden_size // config.num_attention_heads

    def arguments(place: Tensor) -> dict[str, Any]:
        """Return rotary embeddings (N − p, d) of tokens in a row."""
        angles = torch.outer(place[place >= protected].float(), torch.linspace(0.1, 1.0, width // 2)).tile(2)
        return {"position_embeddings": (angles.cos(), angles.sin())}

    return Facts(
        config.hidden_size,
        protected=protected,
        config=config,
        num_tokens=protected + 8,
        arguments=arguments,
        inputs=pixel_inputs(config),
    )


def _take_off(model: Any) -> None:
    model.norm.register_forward_pre_hook(TakeState(model.config.hidden_size))


HOSTS = (
    Host(
        DINOv3ViTModel,
        "model.layer",
        DINOv3ViTLayer,
        MergingDINOv3ViTLayer,
        "attention.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
    ),
)
