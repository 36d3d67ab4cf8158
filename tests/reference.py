"""A reference implementation of learnable video token merging as slow, simple loops in float64.

It is written from the equations (Lee et al. 2024, section 3) and imports nothing from `vtm`, so that tests can compare
the package with it. Loops run over one clip, one token and one head at a time. Values are differentiable, so gradients
can be compared too. Real tokens never read masked ones (`mask` False), which may therefore be NaN.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LoopTokens(NamedTuple):
    """The tokens of a batch: x (B, N, C), size (B, N), position (B, N, 3), the others (B, N) or None.

    Size is the number of real encoder tokens, 0 for a masked token.
    """

    x: Tensor
    size: Tensor
    position: Tensor
    motion: Tensor | None = None
    saliency: Tensor | None = None
    mask: Tensor | None = None


class Groups(NamedTuple):
    """The group of each token: index (B, N), the number of groups, and the anchor (B, num_groups) of each group."""

    index: Tensor
    num_groups: int
    anchor: Tensor


class Area(NamedTuple):
    """The height and width of a frame in tokens, before any merging."""

    height: int
    width: int


class BlockParameters(NamedTuple):
    """Parameters of one block: norm.weight, norm.bias, qkv.weight, linear.weight, linear.bias per path; u (1, C)."""

    main: Mapping[str, Tensor]
    auxiliary: Mapping[str, Tensor] | None = None
    saliency: Tensor | None = None


class BlockResult(NamedTuple):
    """The output of one block: both paths after the merge; groups, targets and saliency before the merge."""

    tokens: LoopTokens
    auxiliary: Tensor | None
    groups: Groups
    targets: Tensor
    saliency: Tensor | None


class NetworkResult(NamedTuple):
    """The output of the network: logits (B, K) of both paths and the result of each block."""

    logits: Tensor
    aux_logits: Tensor | None
    blocks: list[BlockResult]


Partition = Callable[[LoopTokens, Area, int, Tensor | None], Tensor]


def random_tokens(
    batch: int,
    num_tokens: int,
    channels: int = 8,
    *,
    seed: int,
    frame: tuple[int, int] = (4, 6),
    real_fraction: float | None = None,
    garbage: float = float("nan"),
) -> LoopTokens:
    """Draw random tokens as after some merges: of any size, at random positions in several frames, ordered by time.

    Args:
        frame: height and width of a frame, in tokens.
        real_fraction: probability that a token is real; None for no mask.
        garbage: value of masked tokens in x, motion and saliency.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = frame
    cells = math.ceil(2 * num_tokens / (height * width)) * height * width
    order = torch.rand(batch, cells, generator=generator).argsort(dim=1)[:, :num_tokens].sort(dim=1).values
    x = torch.randn(batch, num_tokens, channels, generator=generator, dtype=torch.float64)
    motion = 3 * torch.rand(batch, num_tokens, generator=generator, dtype=torch.float64)
    saliency = torch.tanh(torch.randn(batch, num_tokens, generator=generator, dtype=torch.float64))
    size = torch.randint(1, 9, (batch, num_tokens), generator=generator).double()
    mask = None
    if real_fraction is not None:
        mask = torch.rand(batch, num_tokens, generator=generator) < real_fraction
        size[~mask] = 0
        x[~mask], motion[~mask], saliency[~mask] = garbage, garbage, garbage
    position = torch.stack(
        [order // (height * width), order // width % height, order % width],
        dim=-1,
    )
    return LoopTokens(x, size, position, motion, saliency, mask)


# Partition


def count_targets(num_tokens: int, partition_factor: int) -> int:
    """Return the number of targets, M = ceil(N / gamma)."""
    return math.ceil(num_tokens / partition_factor)


def uniform_loops(tokens: LoopTokens, grid: Area, partition_factor: int, noise: Tensor | None = None) -> Tensor:
    """Choose real tokens of rank floor(j gamma n / N), then the first other real ones, then the first masked ones."""
    chosen = []
    for real, masked in _real_and_masked(tokens):
        total = len(real) + len(masked)
        ranks = [j * partition_factor * len(real) // total for j in range(count_targets(total, partition_factor))]
        order = sorted({real[rank] for rank in ranks} if real else set())
        order += [token for token in real if token not in order]
        order += masked
        chosen.append(sorted(order[: count_targets(len(real) + len(masked), partition_factor)]))
    return torch.tensor(chosen)


def center_loops(tokens: LoopTokens, grid: Area, partition_factor: int, noise: Tensor | None = None) -> Tensor:
    """Choose half of the targets, rounded up, from the central quarter of the frames."""
    return _area_loops(tokens, grid, partition_factor, inside_count=lambda num_targets: (num_targets + 1) // 2)


def boundary_loops(tokens: LoopTokens, grid: Area, partition_factor: int, noise: Tensor | None = None) -> Tensor:
    """Choose a sixth of the targets, halves rounded up, from the central quarter of the frames."""
    return _area_loops(
        tokens, grid, partition_factor, inside_count=lambda num_targets: math.floor(num_targets / 6 + 0.5)
    )


def saliency_loops(tokens: LoopTokens, grid: Area, partition_factor: int, noise: Tensor | None = None) -> Tensor:
    """Choose the tokens with the highest saliency plus optional Gumbel noise (B, N)."""
    return top_k_loops(tokens.saliency, partition_factor, noise=noise, mask=tokens.mask)


def motion_loops(tokens: LoopTokens, grid: Area, partition_factor: int, noise: Tensor | None = None) -> Tensor:
    """Choose the tokens with the largest motion plus optional Gumbel noise (B, N)."""
    return top_k_loops(tokens.motion, partition_factor, noise=noise, mask=tokens.mask)


def top_k_loops(
    scores: Tensor, partition_factor: int, *, noise: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Choose the M tokens with the highest score + noise, masked tokens last; ties go to the first token."""
    batch, num_tokens = scores.shape
    chosen = []
    for b in range(batch):

        def key(token: int, b: int = b) -> tuple[bool, float, int]:
            if mask is not None and not mask[b, token]:
                return True, 0.0, token
            score = scores[b, token].detach().double()
            return False, -float(score if noise is None else score + noise[b, token].double()), token

        order = sorted(range(num_tokens), key=key)
        chosen.append(sorted(order[: count_targets(num_tokens, partition_factor)]))
    return torch.tensor(chosen)


def is_inside(y: int, x: int, grid: Area) -> bool:
    """Return whether the center of token (y, x) is in the central H/2 x W/2 of the frame."""
    return grid.height / 4 <= y + 0.5 < 3 * grid.height / 4 and grid.width / 4 <= x + 0.5 < 3 * grid.width / 4


def spread(candidates: list[int], count: int) -> list[int]:
    """Choose k = `count` of the n candidates evenly: rank r iff floor((r+1) k / n) > floor(r k / n)."""
    n = len(candidates)
    return [candidates[r] for r in range(n) if (r + 1) * count // n > r * count // n]


def _area_loops(tokens: LoopTokens, grid: Area, partition_factor: int, *, inside_count: Callable[[int], int]) -> Tensor:
    chosen = []
    for b, (real, masked) in enumerate(_real_and_masked(tokens)):
        num_targets = count_targets(len(real) + len(masked), partition_factor)
        inside, outside = [], []
        for token in real:
            _, y, x = tokens.position[b, token].tolist()
            (inside if is_inside(y, x, grid) else outside).append(token)
        num_real = min(num_targets, len(real))
        num_inside = min(inside_count(num_targets), len(inside), num_real)
        num_outside = min(num_real - num_inside, len(outside))
        num_inside = num_real - num_outside
        taken = spread(inside, num_inside) + spread(outside, num_outside) + masked[: num_targets - num_real]
        chosen.append(sorted(taken))
    return torch.tensor(chosen)


def _real_and_masked(tokens: LoopTokens) -> list[tuple[list[int], list[int]]]:
    batch, num_tokens = tokens.size.shape
    if tokens.mask is None:
        return [(list(range(num_tokens)), []) for _ in range(batch)]
    rows = tokens.mask.tolist()
    return [([n for n in range(num_tokens) if row[n]], [n for n in range(num_tokens) if not row[n]]) for row in rows]


# Matching


def cosine(a: Tensor, b: Tensor) -> float:
    """Compute the cosine similarity of two vectors; 0 if one of them is zero."""
    first, second = a.double().tolist(), b.double().tolist()
    norms = math.sqrt(math.fsum(v * v for v in first)) * math.sqrt(math.fsum(v * v for v in second))
    return math.fsum(v * w for v, w in zip(first, second, strict=True)) / norms if norms > 0 else 0.0


def count_merged(merge_count: int | float, num_sources: int) -> int:
    """Return R from a number of tokens (int) or a fraction of the sources (float)."""
    return merge_count if isinstance(merge_count, int) else int(merge_count * num_sources + 1e-9)


def match_loops(keys: Tensor, targets: Tensor, merge_count: int, *, mask: Tensor | None = None) -> Groups:
    """Assign the R sources most similar to a target to that target (equations 3 and 5), masked sources first.

    A masked source joins the first target; the similarity to a masked target is 0.
    """
    batch, num_tokens, _ = keys.shape
    all_index, all_anchor = [], []
    for b in range(batch):
        real = [True] * num_tokens if mask is None else mask[b].tolist()
        chosen = targets[b].tolist()
        candidates = []
        for source in range(num_tokens):
            if source in chosen:
                continue
            best, best_similarity = chosen[0], -math.inf
            for target in chosen:
                both = real[source] and real[target]
                similarity = cosine(keys[b, source], keys[b, target]) if both else 0.0
                if similarity > best_similarity:
                    best, best_similarity = target, similarity
            candidates.append((real[source], -best_similarity, source, best))
        candidates.sort()
        joins = {source: target for _, _, source, target in candidates[:merge_count]}
        anchor = [token for token in range(num_tokens) if token not in joins]
        all_index.append([anchor.index(joins.get(token, token)) for token in range(num_tokens)])
        all_anchor.append(anchor)
    return Groups(torch.tensor(all_index), num_tokens - merge_count, torch.tensor(all_anchor))


# Merging


def merge_loops(tokens: LoopTokens, groups: Groups, *, weights: Tensor | None = None) -> LoopTokens:
    """Average each group (equation 4), weighted if weights (B, N) are given; sizes are summed.

    Masked tokens count only in groups without real ones; a group whose weights are all zero gets the plain average.
    """
    batch, num_tokens, _ = tokens.x.shape
    x, size, position, motion, saliency, mask = [], [], [], [], [], []
    for b in range(batch):
        for group in range(groups.num_groups):
            members = [n for n in range(num_tokens) if groups.index[b, n] == group]
            real = [n for n in members if tokens.mask is None or tokens.mask[b, n]]
            mask.append(bool(real))
            counted = real or members
            if weights is None or not real or all(weights[b, n] == 0 for n in counted):
                weight = [torch.ones((), dtype=torch.float64)] * len(counted)
            else:
                weight = [weights[b, n].double() for n in counted]

            def average(
                values: Tensor, b: int = b, counted: list[int] = counted, weight: list[Tensor] = weight
            ) -> Tensor:
                return sum(w * values[b, n].double() for w, n in zip(weight, counted, strict=True)) / sum(weight)

            x.append(average(tokens.x))
            size.append(sum(tokens.size[b, n].double() for n in members))
            position.append(tokens.position[b, groups.anchor[b, group]])
            if tokens.motion is not None:
                motion.append(average(tokens.motion))
            if tokens.saliency is not None:
                saliency.append(average(tokens.saliency))

    def rows(values: list[Tensor]) -> Tensor:
        return torch.stack(values).unflatten(0, (batch, groups.num_groups))

    return LoopTokens(
        x=rows(x),
        size=rows(size),
        position=rows(position),
        motion=rows(motion) if motion else None,
        saliency=rows(saliency) if saliency else None,
        mask=None if tokens.mask is None else torch.tensor(mask).view(batch, groups.num_groups),
    )


def unmerge_loops(x: Tensor, groups: Groups) -> Tensor:
    """Copy the value of each group to all of its tokens: (B, num_groups, C) to (B, N, C)."""
    return torch.stack([torch.stack([x[b, g] for g in row]) for b, row in enumerate(groups.index.tolist())])


def compose_loops(first: Groups, second: Groups) -> Groups:
    """Compose two groupings; anchors are tokens of the first one."""
    index = [[int(second.index[b, g]) for g in row] for b, row in enumerate(first.index.tolist())]
    anchor = [[int(first.anchor[b, g]) for g in row] for b, row in enumerate(second.anchor.tolist())]
    return Groups(torch.tensor(index), second.num_groups, torch.tensor(anchor))


def size_weights_loops(tokens: LoopTokens) -> Tensor:
    """Weight tokens by the number of encoder tokens merged into them."""
    return tokens.size.double()


def motion_weights_loops(tokens: LoopTokens) -> Tensor:
    """Weight tokens by their motion."""
    return tokens.motion.double()


def saliency_weights_loops(tokens: LoopTokens, *, beta: float) -> Tensor:
    """Weight tokens by exp(beta s)."""
    return torch.exp(beta * tokens.saliency.double())


# ToMe's bipartite soft matching (Bolya et al. 2023, section 3), equal to the uniform partition with factor 2


def tome_matching(keys: Tensor, x: Tensor, size: Tensor, merge_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge with alternating sets: match odd tokens to the most similar even ones and merge the R best pairs.

    Returns:
        of each remaining token, unmerged odd ones first: size-weighted mean (B, N', C), size (B, N') and index (B, N')
        of its anchor.
    """
    unit = torch.nn.functional.normalize(keys, dim=-1)
    score, partner = (unit[:, 1::2] @ unit[:, ::2].mT).max(dim=-1)
    order = score.argsort(dim=-1, descending=True)
    merged, kept = order[:, :merge_count], order[:, merge_count:]
    total = torch.cat([x * size[..., None], size[..., None]], dim=-1)
    odd, even = total[:, 1::2], total[:, ::2].clone()
    for b in range(len(x)):
        for edge in merged[b].tolist():
            even[b, partner[b, edge]] += odd[b, edge]
    rest = torch.stack([odd[b, kept[b]] for b in range(len(x))])
    total = torch.cat([rest, even], dim=1)
    origin = torch.cat([2 * kept + 1, torch.arange(0, x.shape[1], 2).expand(len(x), -1)], dim=1)
    return total[..., :-1] / total[..., -1:], total[..., -1], origin


# Attention, block and network


def attention_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    key_bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute multi-head attention one query at a time (equations 8 and 10).

    Args:
        q: queries (B, N, C); head h has the C / num_heads channels from h C / num_heads on.
        k: keys (B, N, C).
        v: values (B, N, C).
        key_bias: (B, N), added to every row of the N x N logits after the scale 1 / sqrt(d).
        mask: (B, N), False for keys to ignore. The output of a row without real keys is 0.

    Returns:
        outputs (B, N, C), the heads concatenated.
    """
    q, k, v = q.double(), k.double(), v.double()
    batch, num_tokens, channels = q.shape
    width = channels // num_heads
    output = []
    for b in range(batch):
        visible = [j for j in range(num_tokens) if mask is None or mask[b, j]]
        bias = torch.zeros(num_tokens, num_tokens, dtype=torch.float64)
        if key_bias is not None:
            bias = torch.ones(num_tokens, 1, dtype=torch.float64) * key_bias[b].double()
        for i in range(num_tokens):
            heads = []
            for h in range(num_heads):
                part = slice(h * width, (h + 1) * width)
                logits = k[b, visible, part] @ q[b, i, part] / math.sqrt(width) + bias[i, visible]
                heads.append(torch.softmax(logits, dim=0) @ v[b, visible, part])
            output.append(torch.cat(heads))
    return torch.stack(output).unflatten(0, (batch, num_tokens))


def layer_norm_loops(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Normalize every token over its channels."""

    def normalize(token: Tensor) -> Tensor:
        centred = token - token.mean()
        return centred / torch.sqrt((centred * centred).mean() + eps) * weight.double() + bias.double()

    return torch.stack([torch.stack([normalize(token) for token in row]) for row in x.double()])


def linear_loops(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply weight (C', C) and bias (C') to the last dimension."""
    product = torch.einsum("...c,dc->...d", x.double(), weight.double())
    return product if bias is None else product + bias.double()


def gelu_loops(x: Tensor) -> Tensor:
    """Compute the exact GELU: x times the standard normal distribution function of x."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def saliency_estimate(keys: Tensor, u: Tensor) -> Tensor:
    """Compute s = tanh(K u), (B, N), from keys (B, N, C) with all heads concatenated (equation 9)."""
    return torch.tanh((keys.double() * u.double().view(-1)).sum(dim=-1))


def block_loops(
    tokens: LoopTokens,
    auxiliary: Tensor | None,
    grid: Area,
    parameters: BlockParameters,
    *,
    num_heads: int,
    partition: Partition | None,
    partition_factor: int,
    merge_count: int | float,
    weighting: Callable[[LoopTokens], Tensor] | None = None,
    saliency_weight: float = 0.0,
    noise: Tensor | None = None,
    eps: float = 1e-5,
) -> BlockResult:
    """Run the main path of one block, and the auxiliary path if it has parameters and an input.

    Args:
        tokens: input of the main path.
        auxiliary: input (B, N, C) of the auxiliary path; None to skip that path.
        partition: one of the `*_loops` strategies above; None merges nothing.
        merge_count: R, as a number of tokens (int) or a fraction of the sources (float).
        saliency_weight: lambda, factor of the main path's saliency in the logits of the auxiliary path (equation 10).
        noise: (B, N), added to the scores of a sampled partition.
    """
    batch, num_tokens, channels = tokens.x.shape
    main = parameters.main
    qkv = linear_loops(layer_norm_loops(tokens.x, main["norm.weight"], main["norm.bias"], eps=eps), main["qkv.weight"])
    q, k, v = qkv[..., :channels], qkv[..., channels : 2 * channels], qkv[..., 2 * channels :]
    x = tokens.x.double() + attention_loops(q, k, v, num_heads=num_heads, mask=tokens.mask)
    saliency = None if parameters.saliency is None else saliency_estimate(k, parameters.saliency)
    tokens = tokens._replace(x=x, saliency=saliency)

    if partition is None:
        everything = torch.arange(num_tokens).expand(batch, num_tokens)
        targets, groups = everything, Groups(everything, num_tokens, everything)
    else:
        targets = partition(tokens, grid, partition_factor, noise)
        count = count_merged(merge_count, num_tokens - targets.shape[1])
        groups = match_loops(k.detach(), targets, count, mask=tokens.mask)
    weights = None if weighting is None else weighting(tokens)
    merged = merge_loops(tokens, groups, weights=weights)
    merged = merged._replace(x=gelu_loops(linear_loops(merged.x, main["linear.weight"], main["linear.bias"])))

    if auxiliary is None or parameters.auxiliary is None:
        return BlockResult(merged, None, groups, targets, saliency)
    side = parameters.auxiliary
    qkv = linear_loops(layer_norm_loops(auxiliary, side["norm.weight"], side["norm.bias"], eps=eps), side["qkv.weight"])
    q, k, v = qkv[..., :channels], qkv[..., channels : 2 * channels], qkv[..., 2 * channels :]
    bias = None if saliency is None else saliency_weight * saliency
    y = auxiliary.double() + attention_loops(q, k, v, num_heads=num_heads, key_bias=bias, mask=tokens.mask)
    y = merge_loops(tokens._replace(x=y), groups, weights=weights).x
    y = gelu_loops(linear_loops(y, side["linear.weight"], side["linear.bias"]))
    return BlockResult(merged, y, groups, targets, saliency)


def windows_loops(
    features: Tensor, *, window_frames: int, motion: Tensor | None = None, mask: Tensor | None = None
) -> LoopTokens:
    """Cut clips (B, T, H, W, C) into windows of consecutive frames: one row per window, (B T / L, L H W, C).

    Args:
        motion: (B, T, H, W).
        mask: (B, T), True for real frames.
    """
    batch, frames, height, width, _ = features.shape
    x, position, moves, real = [], [], [], []
    for b in range(batch):
        for start in range(0, frames, window_frames):
            positions = [
                (t, i, j) for t in range(start, start + window_frames) for i in range(height) for j in range(width)
            ]
            x.append(torch.stack([features[b, t, i, j].double() for t, i, j in positions]))
            position.append(torch.tensor(positions))
            if motion is not None:
                moves.append(torch.stack([motion[b, t, i, j].double() for t, i, j in positions]))
            if mask is not None:
                real.append(torch.tensor([bool(mask[b, t]) for t, _, _ in positions]))
    real_tokens = torch.stack(real) if real else None
    size = torch.ones(len(x), len(x[0]), dtype=torch.float64)
    return LoopTokens(
        x=torch.stack(x),
        size=size if real_tokens is None else real_tokens.double(),
        position=torch.stack(position),
        motion=torch.stack(moves) if moves else None,
        mask=real_tokens,
    )


def join_loops(values: Tensor, count: int) -> Tensor:
    """Concatenate groups of `count` consecutive windows: (B W, N, ...) to (B W / count, N count, ...)."""
    return torch.stack([torch.cat(list(values[row : row + count])) for row in range(0, len(values), count)])


def pool_loops(x: Tensor, mask: Tensor | None, *, windows: int) -> Tensor:
    """Average the real tokens of all windows of a clip: (B windows, N, C) to (B, C); 0 if there are none."""
    pooled = []
    for start in range(0, len(x), windows):
        real = [
            x[row, n]
            for row in range(start, start + windows)
            for n in range(x.shape[1])
            if mask is None or mask[row, n]
        ]
        pooled.append(sum(real) / len(real) if real else torch.zeros_like(x[0, 0]))
    return torch.stack(pooled)


def network_loops(
    features: Tensor,
    blocks: Sequence[BlockParameters],
    head: Mapping[str, Tensor],
    *,
    window_frames: Sequence[int],
    num_heads: int,
    partition: Partition | None,
    partition_factor: int,
    merge_count: int | float,
    weighting: Callable[[LoopTokens], Tensor] | None = None,
    saliency_weight: float = 0.0,
    motion: Tensor | None = None,
    mask: Tensor | None = None,
    aux_head: Mapping[str, Tensor] | None = None,
    noise: Sequence[Tensor | None] | None = None,
    eps: float = 1e-5,
) -> NetworkResult:
    """Run the network without dropout on features (B, T, H, W, C), with auxiliary paths if they have parameters.

    Args:
        blocks: parameters of every block; blocks with windows longer than T are skipped.
        head: "weight" (K, C') and "bias" (K) of the linear head.
        window_frames: L_i of every block.
        motion: (B, T, H, W).
        mask: (B, T), True for real frames.
        aux_head: parameters of the head of the auxiliary path; None for the same head.
        noise: one tensor per block, (windows of all clips, tokens of a window), or None.
    """
    frames = features.shape[1]
    grid = Area(features.shape[2], features.shape[3])
    used = [i for i, length in enumerate(window_frames) if length <= frames]
    length = window_frames[used[0]]
    tokens = windows_loops(features, window_frames=length, motion=motion, mask=mask)
    auxiliary = tokens.x if blocks[used[0]].auxiliary is not None else None
    results = []
    for i in used:
        count, length = window_frames[i] // length, window_frames[i]
        tokens = LoopTokens(*(None if value is None else join_loops(value, count) for value in tokens))
        auxiliary = None if auxiliary is None else join_loops(auxiliary, count)
        result = block_loops(
            tokens,
            auxiliary,
            grid,
            blocks[i],
            num_heads=num_heads,
            partition=partition,
            partition_factor=partition_factor,
            merge_count=merge_count,
            weighting=weighting,
            saliency_weight=saliency_weight,
            noise=None if noise is None else noise[i],
            eps=eps,
        )
        tokens, auxiliary = result.tokens, result.auxiliary
        results.append(result)
    windows = frames // length
    logits = linear_loops(pool_loops(tokens.x, tokens.mask, windows=windows), head["weight"], head["bias"])
    if auxiliary is None:
        return NetworkResult(logits, None, results)
    side = head if aux_head is None else aux_head
    pooled = pool_loops(auxiliary, tokens.mask, windows=windows)
    return NetworkResult(logits, linear_loops(pooled, side["weight"], side["bias"]), results)
