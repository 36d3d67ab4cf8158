"""Blocks of VideoMAE in Hugging Face transformers: joint attention over all tokens of a clip, without CLS."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.models.videomae.modeling_videomae import (
    VideoMAELayer,
    VideoMAEModel,
    eager_attention_forward,
)

from vtm.patching.block import Merging, split_heads, take_output
from vtm.patching.patch import Facts, Host

_ATTENTION = "vtm_proportional"


class MergingVideoMAELayer(VideoMAELayer):  # type: ignore[misc]
    """A block of VideoMAE that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(hidden_states):
            output: Tensor = super().forward(hidden_states, **kwargs)
            return output
        state = merging.enter(hidden_states)
        attention = self.attention.attention
        attention.kept_bias = merging.bias(state, None)  # the attention of VideoMAE passes no mask
        try:
            attended = self.attention(self.layernorm_before(state.x), **kwargs)
        finally:
            del attention.kept_bias
        keys = split_heads(take_output(attention.key), attention.num_attention_heads)
        state = merging.apply(state._replace(x=attended + state.x), keys)
        x = self.output(self.intermediate(self.layernorm_after(state.x)), state.x)
        return merging.leave(state._replace(x=x))


def attend_proportionally(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> Any:
    """Attend as the model's own implementation does, with the bias that the block has left on the module."""
    attend = AttentionInterface().get_interface(module.own_attention, eager_attention_forward)
    return attend(module, query, key, value, getattr(module, "kept_bias", None), **kwargs)


AttentionInterface.register(_ATTENTION, attend_proportionally)  # at import, so that a pickled model finds it


def _prepare(block: Any) -> None:
    """Let the attention of a block take a bias; the configuration is copied, because all blocks share it."""
    attention = block.attention.attention
    attention.own_config, attention.own_attention = attention.config, attention.config._attn_implementation
    attention.config = copy(attention.config)
    attention.config._attn_implementation = _ATTENTION


def _restore(block: Any) -> None:
    attention = block.attention.attention
    if hasattr(attention, "own_config"):
        attention.config = attention.own_config
        del attention.own_config, attention.own_attention


def _facts(model: Any) -> Facts:
    config = model.config
    frames = config.num_frames // config.tubelet_size
    return Facts(config.hidden_size, frames=frames, attention=config._attn_implementation)


HOSTS = (
    Host(
        VideoMAEModel,
        "encoder.layer",
        VideoMAELayer,
        MergingVideoMAELayer,
        "attention.attention.key",
        _facts,
        prepare=_prepare,
        restore=_restore,
    ),
)
