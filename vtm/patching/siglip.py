"""Blocks of the vision tower of SigLIP in Hugging Face transformers: attention within an image, without CLS.

The checkpoints of SigLIP 2 for images of a fixed size have this architecture, too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionModel

from vtm.patching.block import Merging
from vtm.patching.host import Facts, Host
from vtm.patching.pooling import TakeState
from vtm.patching.vit_layers import merge_in_clip_layer


class MergingSiglipEncoderLayer(SiglipEncoderLayer):  # type: ignore[misc]
    """A block of SigLIP that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        if self.merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        return merge_in_clip_layer(self, hidden_states, attention_mask, **kwargs)


def _facts(model: Any) -> Facts:
    return Facts(model.config.hidden_size, config=model.config, arguments=lambda place: {"attention_mask": None})


def _take_off(model: Any) -> None:
    model.post_layernorm.register_forward_pre_hook(TakeState(model.config.hidden_size))


HOSTS = (
    Host(
        SiglipVisionModel,
        "encoder.layers",
        SiglipEncoderLayer,
        MergingSiglipEncoderLayer,
        "self_attn.k_proj",
        _facts,
        _take_off,
        returns_hidden=True,
    ),
)
