"""Blocks of ViViT in Hugging Face transformers: joint attention over all tokens of a clip, with CLS."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.vivit.modeling_vivit import VivitLayer, VivitModel

from vtm.patching.block import Merging, split_heads, take_output
from vtm.patching.host import Facts, Host, check_implementation, pixel_inputs
from vtm.patching.pooling import TakeState


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
        if attention_mask is not None or merging.proportional:
            check_implementation(self.attention.config)
        attended, _ = self.attention(self.layernorm_before(state.x), merging.bias(state, attention_mask), **kwargs)
        x = self.dropout(attended) + state.x
        keys = split_heads(take_output(self.attention.k_proj), self.attention.num_attention_heads)
        state = merging.apply(state._replace(x=x), keys)
        x = self.dropout(self.mlp(self.layernorm_after(state.x))) + state.x
        return merging.leave(state._replace(x=x))


def _facts(model: Any) -> Facts:
    config = model.config
    tubelet = config.tubelet_size[0]
    return Facts(
        config.hidden_size,
        protected=1,
        frames=config.num_frames // tubelet,
        tubelet=tubelet,
        config=config,
        inputs=pixel_inputs(config, frames=True),
    )


def _take_off(model: Any) -> None:
    model.layernorm.register_forward_pre_hook(TakeState(model.config.hidden_size))


HOSTS = (
    Host(
        VivitModel, "layers", VivitLayer, MergingVivitLayer, "attention.k_proj", _facts, _take_off, returns_hidden=True
    ),
)
