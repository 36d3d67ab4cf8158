"""Blocks of ViViT in Hugging Face transformers: joint attention over all tokens of a clip, with CLS."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.vivit.modeling_vivit import VivitLayer, VivitModel

from vtm.patching.block import Merging, split_heads, take_output
from vtm.patching.patch import Facts, Host


class MergingVivitLayer(VivitLayer):  # type: ignore[misc]
    """A block of ViViT that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return output
        state = merging.enter(hidden_states)
        attended, _ = self.attention(self.layernorm_before(state.x), merging.bias(state, attention_mask), **kwargs)
        x = self.dropout(attended) + state.x
        keys = split_heads(take_output(self.attention.k_proj), self.attention.num_attention_heads)
        state = merging.apply(state._replace(x=x), keys)
        x = self.dropout(self.mlp(self.layernorm_after(state.x))) + state.x
        return merging.leave(state._replace(x=x))


def _facts(model: Any) -> Facts:
    config = model.config
    frames = config.num_frames // config.tubelet_size[0]
    return Facts(config.hidden_size, protected=1, frames=frames, attention=config._attn_implementation)


HOSTS = (Host(VivitModel, "layers", VivitLayer, MergingVivitLayer, "attention.k_proj", _facts),)
