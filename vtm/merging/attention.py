"""Attention with a bias on its keys, without an N × N matrix (VTM paper, equations 8 and 10)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Compute softmax(QKᵀ/√d + 1bᵀ) V in each head without storing an N × N matrix (equations 8 and 10).

    The bias b depends only on the key, so it is appended as one more channel: q′ = [q, 1], k′ = [k, b√d]. The fast
    kernels require equal widths of q, k and v and, on GPUs, a multiple of 8.

    Args:
        q: (B, N, C) queries; C = num_heads · d.
        k: (B, N, C) keys.
        v: (B, N, C) values.
        num_heads: number of heads.
        key_bias: (B, N), added to the logits of each key in all heads; λs in the auxiliary path.
        mask: (B, N) bool, True = real; masked keys are ignored. A row without real keys attends to all keys.

    Returns:
        outputs (B, N, C).
    """
    head_dim = q.shape[-1] // num_heads
    q, k, v = (t.reshape(*t.shape[:2], num_heads, head_dim).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, d)
    if key_bias is not None:
        bias = (key_bias * math.sqrt(head_dim)).to(k.dtype)[:, None, :, None].expand(*k.shape[:3], 1)
        pad = 0 if k.device.type == "cpu" else -(head_dim + 1) % 8
        zeros = bias.new_zeros(()).expand(*bias.shape[:3], pad)
        q = torch.cat([q, torch.ones_like(bias), zeros], dim=-1)
        k = torch.cat([k, bias, zeros], dim=-1)
        v = F.pad(v, (0, pad + 1))
    keep = None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=head_dim**-0.5)
    return out[..., :head_dim].transpose(1, 2).flatten(2)  # (B, N, C)
