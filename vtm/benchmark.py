"""Time and memory of the network with and without merging, on this machine: python -m vtm.benchmark.

The default is the paper's size: one clip of 60 frames of 16 × 16 tokens with 1024 channels, 8 heads, windows of 6, 30
and 60 frames, γ = 6, R = 0.8|S|. Features are random; the encoder is not part of it. Every row runs in a process of its
own, whose peak memory, above that of model and input, is the row's. Times are medians after a warm-up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtm.merging import NoMerger, TokenMerger, saliency_partition, saliency_weights
from vtm.models import VTM
from vtm.models.vtm import attention


@dataclass(frozen=True)
class Setting:
    """The sizes that all rows of one table share."""

    frames: int
    height: int
    width: int
    channels: int
    heads: int
    window_frames: tuple[int, ...]
    batch: int
    repeats: int
    threads: int
    device: str


@dataclass(frozen=True)
class Row:
    """What one process measures."""

    name: str
    merges: bool
    plain: bool = False  # attention that writes its N × N matrices, as the paper's
    training: bool = False


ROWS = (
    Row("none, plain attention", merges=False, plain=True),
    Row("none, fused attention", merges=False),
    Row("learnable", merges=True),
    Row("none, fused attention, training step", merges=False, training=True),
    Row("learnable, training step", merges=True, training=True),
)


def main() -> None:
    """Measure all rows, print the table as Markdown, and write it where asked."""
    setting, out = _arguments()
    lines = [f"{_machine(setting)}\n", "| row | ms | GB | times fused none | details |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    baselines: dict[bool, float] = {}
    for row in ROWS:
        found = _in_a_process(row, setting)
        if not row.merges and not row.plain:
            baselines[row.training] = found["seconds"]
        base = baselines.get(row.training)
        ratio = f"{base / found['seconds']:.2f}" if base else ""
        details = "; ".join(f"{name} {value:.3g}" for name, value in found["details"].items())
        lines.append(f"| {row.name} | {1e3 * found['seconds']:.0f} | {found['gigabytes']:.2f} | {ratio} | {details} |")
        print(lines[-1], flush=True)
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(row: Row, setting: Setting) -> dict[str, Any]:
    """Measure one row in this process: median seconds, peak gigabytes above model and input, and details."""
    torch.manual_seed(0)
    torch.set_num_threads(setting.threads)
    model = network(setting, merges=row.merges).to(setting.device).train(row.training)
    features = torch.randn(_shape(setting), device=setting.device)
    backends = [SDPBackend.MATH] if row.plain else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    details: dict[str, float] = {}
    with sdpa_kernel(backends), torch.inference_mode(not row.training):
        step = partial(_train, model, features) if row.training else partial(model, features)
        before = _peak_bytes(setting.device)
        step()
        peak = _peak_bytes(setting.device) - before
        seconds = _median_seconds(step, setting)
        if row.merges and not row.training:
            details["% in partition, match and merge"] = 100 * _merging_share(step, model, setting)
            details["times its products and attention alone"] = seconds / _arithmetic_seconds(setting)
        if row.merges and row.training:
            plain = partial(_train, model.eval(), features)
            plain()
            details["times forward and backward of the main path"] = seconds / _median_seconds(plain, setting)
    return {"seconds": seconds, "gigabytes": peak / 1e9, "details": details}


def network(setting: Setting, *, merges: bool) -> VTM:
    """Build the network of the paper's section 4 for six classes, with the defaults of `merging=learnable`, or none."""
    learnable = partial(
        TokenMerger,
        partition=saliency_partition,
        partition_factor=6,
        merge_count=0.8,
        weighting=partial(saliency_weights, beta=3.0),
        saliency_weight=1.0,
    )
    return VTM(
        setting.channels,
        6,
        window_frames=setting.window_frames,
        channels=[
            max(setting.channels // 2 ** (i + 1), setting.channels // 4) for i in range(len(setting.window_frames))
        ],
        num_heads=setting.heads,
        dropout=0.0,
        merge_layer=learnable if merges else NoMerger,
    )


def _train(model: VTM, features: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    output = model(features)
    loss = output.logits.square().mean()
    if output.aux_logits is not None:
        loss = loss + output.aux_logits.square().mean()
    loss.backward()


def _arithmetic_seconds(setting: Setting) -> float:
    """Time what cannot be left out: the projections and the attention calls of each block, by their shapes alone."""
    total = 0.0
    for plan in network(setting, merges=True).plan(setting.frames, setting.height, setting.width):
        rows, width = setting.batch * plan.windows, plan.in_channels
        x = torch.randn(rows, plan.num_tokens, width, device=setting.device)
        qkv = torch.randn(3 * width, width, device=setting.device)
        kept = torch.randn(rows, plan.num_tokens - plan.merge_count, width, device=setting.device)
        project = torch.randn(plan.out_channels, width, device=setting.device)
        q, k, v = (x @ qkv.T).chunk(3, dim=-1)
        calls: list[Callable[[], Any]] = [
            lambda x=x, qkv=qkv: x @ qkv.T,  # type: ignore[misc]
            lambda q=q, k=k, v=v: attention(q, k, v, num_heads=setting.heads),  # type: ignore[misc]
            lambda kept=kept, project=project: kept @ project.T,  # type: ignore[misc]
        ]
        total += sum(_median_seconds(call, setting) for call in calls)
    return total


def _merging_share(step: Callable[[], Any], model: VTM, setting: Setting) -> float:
    """Time the mergers within calls of the network: the median of their share in each call."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        _synchronise(setting.device)
        marks.append(time.perf_counter())

    mergers = [module for module in model.modules() if isinstance(module, TokenMerger)]
    handles = [m.register_forward_pre_hook(mark) for m in mergers] + [m.register_forward_hook(mark) for m in mergers]
    shares = []
    for _ in range(setting.repeats):
        marks.clear()
        mark()
        step()
        mark()
        begin, *inner, end = marks
        shares.append((sum(inner[1::2]) - sum(inner[::2])) / (end - begin))
    for handle in handles:
        handle.remove()
    return statistics.median(shares)


def _median_seconds(call: Callable[[], Any], setting: Setting) -> float:
    call()
    seconds = []
    for _ in range(setting.repeats):
        _synchronise(setting.device)
        start = time.perf_counter()
        call()
        _synchronise(setting.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _peak_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_a_process(row: Row, setting: Setting) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (row, setting))


def _shape(setting: Setting) -> tuple[int, ...]:
    return setting.batch, setting.frames, setting.height, setting.width, setting.channels


def _machine(setting: Setting) -> str:
    gpu = setting.device != "cpu"
    name = torch.cuda.get_device_name(setting.device) if gpu else f"{platform.machine()} CPU, {setting.threads} threads"
    shape = " × ".join(map(str, _shape(setting)))
    return (
        f"{name}, torch {torch.__version__}, fp32, features {shape}, {setting.heads} heads, L = {setting.window_frames}"
    )


def _arguments() -> tuple[Setting, Path | None]:
    parser = argparse.ArgumentParser(description="Time and memory of the network with and without merging.")
    for name, default in {"frames": 60, "height": 16, "width": 16, "channels": 1024, "heads": 8, "batch": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--window-frames", type=int, nargs="+", default=[6, 30, 60])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    given = vars(parser.parse_args())
    out = given.pop("out")
    return Setting(**given | {"window_frames": tuple(given["window_frames"])}), out


if __name__ == "__main__":
    main()
