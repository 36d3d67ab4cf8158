"""Blocks of TimeSformer in Hugging Face transformers: divided attention over time and space.

The tokens are space-major: all frames of the first place, then of the second. All tokens of a frame may meet, and every
frame loses the same number, so the tokens of a place need not belong together after the first merge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer, TimesformerModel

from vtm.patching.block import Merging, State, take_output
from vtm.patching.host import Facts, Host, pixel_inputs
from vtm.patching.pooling import TakeState


class MergingTimesformerLayer(TimesformerLayer):  # type: ignore[misc]
    """A block of TimeSformer that takes tokens of each frame away between attention and MLP."""

    merging: Merging

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        """Map tokens (B, 1 + P·T, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(hidden_states):
            output: tuple[Tensor, ...] = super().forward(hidden_states, output_attentions)
            return output
        if output_attentions:
            raise ValueError("a patched TimeSformer cannot return its attentions; call unpatch(model) first")
        state = merging.enter(hidden_states)
        batch, num_tokens, channels = state.x.shape
        frames = self.config.num_frames
        cls, tokens = state.x.split([1, num_tokens - 1], dim=1)

        over_time = self.temporal_layernorm(tokens.reshape(-1, frames, channels))
        attended = self.drop_path(self.temporal_attention(over_time)[0])
        tokens = tokens + self.temporal_dense(attended.reshape_as(tokens))

        per_frame = tokens.reshape(batch, -1, frames, channels).transpose(1, 2).flatten(0, 1)  # (B·T, P, C)
        per_frame = torch.cat([cls.repeat(1, frames, 1).reshape(-1, 1, channels), per_frame], dim=1)
        attended = self.drop_path(self._attend(self.layernorm_before(per_frame), state))
        cls_attended, attended = attended.split([1, attended.shape[1] - 1], dim=1)
        cls_attended = cls_attended.reshape(batch, frames, channels).mean(1, keepdim=True)
        attended = attended.unflatten(0, (batch, frames)).transpose(1, 2).reshape_as(tokens)

        x = torch.cat([cls, tokens], dim=1) + torch.cat([cls_attended, attended], dim=1)
        state = merging.apply(state._replace(x=x), self._keys(batch))
        x = state.x + self.drop_path(self.output(self.intermediate(self.layernorm_after(state.x))))
        return (merging.leave(state._replace(x=x)),)

    def _attend(self, x: Tensor, state: State) -> Tensor:
        """Attend within the frames (B·T, 1 + P, C); CLS, which stands for no tokens, weighs all tokens alike."""
        if not self.merging.proportional:
            attended: Tensor = self.attention(x)[0]
            return attended
        attention = self.attention.attention
        query, key, value = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-2, -1) * attention.scale  # (B·T, heads, 1 + P, 1 + P)
        size = state.size[:, 1:].reshape(len(state.x), -1, self.config.num_frames).transpose(1, 2).flatten(0, 1)
        weight = torch.nn.functional.pad(size.log().to(x.dtype), (1, 0))[:, None, None].expand(-1, -1, x.shape[1], -1)
        weight = torch.cat([torch.zeros_like(weight[:, :, :1]), weight[:, :, 1:]], dim=2)
        shares = attention.attn_drop((logits + weight).softmax(dim=-1))
        output: Tensor = self.attention.output((shares @ value).transpose(1, 2).flatten(2))
        return output

    def _keys(self, batch: int) -> Tensor | None:
        """Return the keys of the spatial attention (B, heads, 1 + P·T, d), with zeros for CLS."""
        attention = self.attention.attention
        if (qkv := take_output(attention.qkv)) is None:
            return None
        keys = qkv.unflatten(-1, (3, attention.num_heads, -1))[:, 1:, 1]  # (B·T, P, heads, d)
        keys = keys.unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)  # (B, P·T, heads, d)
        return torch.nn.functional.pad(keys.transpose(1, 2), (0, 0, 1, 0))


def _facts(model: Any) -> Facts:
    config = model.config
    problem = None
    if config.attention_type != "divided_space_time":
        problem = f"only attention_type = divided_space_time is supported, and it has {config.attention_type}"
    return Facts(
        config.hidden_size,
        protected=1,
        frames=config.num_frames,
        space_major=True,
        only_frames=True,
        num_tokens=1 + config.num_frames * (config.image_size // config.patch_size),
        problem=problem,
        inputs=pixel_inputs(config, frames=True),
        returns_tuple=True,
    )


def _take_off(model: Any) -> None:
    model.layernorm.register_forward_pre_hook(TakeState(model.config.hidden_size))


HOSTS = (
    Host(
        TimesformerModel,
        "encoder.layer",
        TimesformerLayer,
        MergingTimesformerLayer,
        "attention.attention.qkv",
        _facts,
        _take_off,
        returns_hidden=True,
    ),
)
