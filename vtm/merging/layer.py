"""The merging layers: `TokenMerger` = partition ∘ match ∘ merge, its saliency estimator, and `NoMerger`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtm.merging.matching import match_bipartite
from vtm.merging.merge import merge
from vtm.merging.partition import Generators, Partition, motion_partition, num_targets
from vtm.merging.tokens import Grid, Grouping, Tokens
from vtm.merging.weights import motion_weights


class Merged(NamedTuple):
    """The result of one merge.

    Attributes:
        tokens: the N − R tokens after the merge.
        grouping: the token after the merge that each of the N tokens belongs to.
        targets: (B, M) int64, indices of the target tokens.
        weights: (B, N), weights of the tokens in the average of their group; None for a plain average.
        saliency: (B, N), saliency estimated before the merge; None without an estimator.
    """

    tokens: Tokens
    grouping: Grouping
    targets: Tensor
    weights: Tensor | None
    saliency: Tensor | None


class SaliencyEstimator(nn.Module):
    """A saliency estimator on attention keys: s = tanh(K u_s), equation 9.

    u_s starts at zero, so that no token is preferred before training. With random initial values and a strong bias in
    the auxiliary attention, training often misses the salient tokens.

    Args:
        dim: D, width of the keys, all heads concatenated.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.u = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.u.weight)

    def forward(self, keys: Tensor) -> Tensor:
        """Map keys (B, N, D) to saliency (B, N) in (−1, 1), in fp32 at least: half precision causes ties."""
        with torch.autocast(keys.device.type, enabled=False):
            dtype = torch.float32 if keys.dtype in (torch.float16, torch.bfloat16) else keys.dtype
            return torch.tanh(F.linear(keys.to(dtype), self.u.weight.to(dtype))[..., 0])


class TokenMerger(nn.Module):
    """A layer that merges the R sources most similar to one of M targets.

    Args:
        dim: D, width of the keys.
        partition: strategy that chooses the targets, such as `uniform_partition`.
        partition_factor: γ; M = ⌈N/γ⌉ of the N tokens are targets.
        merge_count: R, as a fraction of the N − M sources (a float in [0, 1]) or as a number of tokens (an int).
        weighting: function from tokens to their weights (B, N) in the average, such as `size_weights`; None for a
            plain average.
        saliency_weight: λ, factor of the saliency in the bias of the auxiliary attention (equation 10); "scale" for
            1/√d, the scale of the attention logits, as written in equation 10. None disables the saliency estimator;
            any other value enables it, even in a network without auxiliary attention.
        sample_in_eval: whether to sample the targets in evaluation too, instead of taking the best ones.
    """

    def __init__(
        self,
        dim: int,
        *,
        partition: Partition,
        partition_factor: int,
        merge_count: float | int,
        weighting: Callable[[Tokens], Tensor] | None = None,
        saliency_weight: float | str | None = None,
        sample_in_eval: bool = False,
    ) -> None:
        super().__init__()
        num_targets(1, partition_factor)
        count = isinstance(merge_count, int) and not isinstance(merge_count, bool) and merge_count >= 0
        if not count and not (isinstance(merge_count, float) and 0 <= merge_count <= 1):
            raise ValueError(
                f"expected merge_count as a fraction in [0, 1] (float) or a number of tokens (int), got {merge_count!r}"
            )
        if isinstance(saliency_weight, str) and saliency_weight != "scale":
            raise ValueError(f'expected saliency_weight to be a number, "scale" or None, got {saliency_weight!r}')
        self.dim = dim
        self.partition = partition
        self.partition_factor = partition_factor
        self.merge_count = merge_count
        self.weighting = weighting
        self.saliency_weight = saliency_weight
        self.sample_in_eval = sample_in_eval
        self.saliency = None if saliency_weight is None else SaliencyEstimator(dim)

    @property
    def estimates_saliency(self) -> bool:
        """Whether the merger has a saliency estimator, trained through an auxiliary attention."""
        return self.saliency is not None

    @property
    def needs_motion(self) -> bool:
        """Whether the strategy or the weighting needs `tokens.motion`."""
        parts = (self.partition, self.weighting)
        return any(getattr(part, "func", part) in (motion_partition, motion_weights) for part in parts)

    def plan(self, num_tokens: int) -> tuple[int, int]:
        """Return M and R for N tokens.

        Raises:
            ValueError: if merge_count is a number of tokens larger than the number of sources.
        """
        targets = num_targets(num_tokens, self.partition_factor)
        sources = num_tokens - targets
        if not isinstance(self.merge_count, int):
            return targets, int(self.merge_count * sources + 1e-9)
        if self.merge_count > sources:
            raise ValueError(
                f"merge_count = {self.merge_count} tokens, but only {sources} of the {num_tokens} tokens are sources "
                f"(partition_factor = {self.partition_factor}); lower it or give a fraction such as 0.8"
            )
        return targets, self.merge_count

    def forward(
        self, tokens: Tokens, keys: Tensor, grid: Grid | None = None, *, generator: Generators = None
    ) -> Merged:
        """Merge tokens by the similarity of their keys.

        Args:
            tokens: N tokens per batch item.
            keys: (B, N, D) attention keys, all heads concatenated.
            grid: token grid of the window before any merging; may be None if the strategy does not use areas.
            generator: generator or generators of the sampling noise, see `vtm.merging.partition`. Must be None under
                activation checkpointing, which draws twice and restores only the state of the global generators.

        Raises:
            TypeError: if `tokens` is not a `Tokens`.
            ValueError: if the keys have another shape, or an input of the strategy or the weighting is missing.
        """
        if not isinstance(tokens, Tokens):
            raise TypeError(
                f"expected Tokens, got {type(tokens).__name__}: use Tokens.from_sequence(x) for x (B, N, C), "
                f"or Tokens.from_grid(x) for x (B, T, H, W, C)"
            )
        expected = (*tokens.x.shape[:2], self.dim)
        if tuple(keys.shape) != expected:
            raise ValueError(f"expected keys (B, N, D) = {expected}, got {tuple(keys.shape)}")
        _, merge_count = self.plan(tokens.x.shape[1])
        if tokens.mask is not None:
            keys = keys.masked_fill(~tokens.mask[..., None], 0)
        saliency = None if self.saliency is None else self.saliency(keys)
        tokens = Tokens(tokens.x, tokens.size, tokens.position, tokens.motion, saliency, tokens.mask)
        sample = self.training or self.sample_in_eval
        targets = self.partition(tokens, grid, self.partition_factor, sample=sample, generator=generator)
        grouping = match_bipartite(keys, targets, merge_count, mask=tokens.mask)
        weights = None if self.weighting is None else self.weighting(tokens)
        return Merged(merge(tokens, grouping, weights=weights), grouping, targets, weights, saliency)

    def extra_repr(self) -> str:
        return f"partition_factor={self.partition_factor}, merge_count={self.merge_count}"


class NoMerger(nn.Module):
    """A layer that merges nothing, the baseline of the paper: all tokens are targets and pass unchanged."""

    saliency = None
    saliency_weight = None
    estimates_saliency = False
    needs_motion = False
    sample_in_eval = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def plan(self, num_tokens: int) -> tuple[int, int]:
        """Return M = N and R = 0."""
        return num_tokens, 0

    def forward(
        self, tokens: Tokens, keys: Tensor, grid: Grid | None = None, *, generator: Generators = None
    ) -> Merged:
        """Return the tokens unchanged."""
        batch, num_tokens = tokens.x.shape[:2]
        grouping = Grouping.identity(batch, num_tokens, device=tokens.x.device)
        return Merged(tokens, grouping, grouping.index, None, None)
