"""Measure one row: time, memory, the rate of matrix products, and the share of the parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException

from vtm.benchmark.counting import free_bytes, needs
from vtm.benchmark.network import PRECISIONS, Workload
from vtm.benchmark.rows import Row, Setting
from vtm.merging import TokenMerger
from vtm.merging.attention import attention
from vtm.models.block import SelfAttention
from vtm.models.streaming import Stream
from vtm.system.measure import PeakMemory, median_seconds, return_freed_memory, synchronize

_START = 3.0  # seconds to start a process and import torch
_WARMUP = 2  # calls before the timed ones
_FEW = 3  # timed calls of slow rows
_MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices to measure the rate with


@dataclass(frozen=True)
class Result:
    """The measurements of a row.

    Attributes:
        seconds: median time of a call; None if it was not measured.
        peak_bytes: peak memory in addition to model and inputs; None where the system does not report it.
        flop: floating-point operations, see `Needs`.
        moved_bytes: lower bound of the memory traffic, see `Needs`.
        needed_bytes: memory computed before the row ran, see `Needs.memory_bytes`.
        rate: FLOP per second of a large matrix product in the row's precision and process.
        details: other measurements by name.
        problem: why the row was not measured.
    """

    seconds: float | None = None
    peak_bytes: int | None = None
    flop: int | None = None
    moved_bytes: int | None = None
    needed_bytes: int | None = None
    rate: float | None = None
    details: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def measure(row: Row, setting: Setting, known_rate: float | None) -> Iterator[Result]:
    """Measure a row in this process; yield what it needs first, in case the process is killed.

    Args:
        row: row to measure.
        setting: setting of all rows.
        known_rate: FLOP per second of another row with this precision, to skip rows that take too long.
    """
    torch.set_num_threads(setting.threads)
    return_freed_memory()  # no other row uses this process
    torch.manual_seed(0)
    try:
        needed = needs(row, setting)
    except (ValueError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        yield Result(problem=" ".join(str(cause or error).split()))
        return
    result = Result(flop=needed.flop, moved_bytes=needed.moved_bytes, needed_bytes=needed.memory_bytes)
    result = replace(result, problem=_obstacle(row, setting, result, known_rate))
    yield result
    if result.problem:
        return
    try:
        yield replace(result, **_measured(row, setting))
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
        if not (out_of_memory or row.compiled):
            raise
        reason = "out of memory" if out_of_memory else f"torch.compile failed: {str(error).strip().splitlines()[0]}"
        yield replace(result, problem=f"{reason}; needs about {_gigabytes(needed.memory_bytes)}")


def least_seconds(row: Row, setting: Setting, flop: int, rate: float) -> float:
    """Return the time of a row, the start of its process included, if it ran at the speed of a matrix product.

    Args:
        row: row to measure.
        setting: setting of all rows.
        flop: floating-point operations of a call.
        rate: FLOP per second of a matrix product.
    """
    seconds = flop / rate
    if row.frames is not None:
        return _START + seconds  # one call
    if seconds > setting.limit and not row.encoder:
        return _START  # skipped
    return _START + seconds * (_WARMUP + _repeats(row, setting))


def matrix_rate(device: torch.device, dtype: torch.dtype, *, repeats: int) -> float:
    """Measure the FLOP per second of a large matrix product on this machine."""
    side = _MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(partial(torch.mm, a, b), device=device, repeats=repeats)


def _obstacle(row: Row, setting: Setting, result: Result, known_rate: float | None) -> str:
    """Return why a row is not measured: it does not fit into memory, or takes too long."""
    assert result.flop is not None  # both are known
    assert result.needed_bytes is not None
    free = free_bytes(setting.device)
    if free is not None and result.needed_bytes > free and not row.streaming:
        return f"needs {_gigabytes(result.needed_bytes)}, but {_gigabytes(free)} are free"
    least = 0.0 if known_rate is None else result.flop / known_rate
    if least > setting.limit and row.frames is None and not row.encoder:
        return f"skipped: its arithmetic alone takes over {least:.0f} s per call (--limit)"
    return ""


def _measured(row: Row, setting: Setting) -> dict[str, Any]:
    workload = Workload(row, setting)
    repeats = _repeats(row, setting)
    details: dict[str, float] = {}
    with workload.mode():
        if row.compiled:
            details["s to compile"] = _call_seconds(workload, workload)
        if row.frames is not None:  # takes minutes: one call for time and memory, after a short clip
            workload.head(workload.features(setting.frames))
            with PeakMemory(workload.device) as peak:
                seconds = _stream_seconds(workload) if row.streaming else _call_seconds(workload, workload)
        else:
            for _ in range(_WARMUP):  # the first call also loads weights and libraries
                workload.model.zero_grad(set_to_none=True)  # their memory counts
                with PeakMemory(workload.device) as peak:
                    workload()
            seconds = median_seconds(workload, device=workload.device, repeats=repeats)
        details |= _details(workload, seconds, repeats)
    rate = matrix_rate(workload.device, PRECISIONS[row.precision], repeats=_FEW)
    return {"seconds": seconds, "peak_bytes": peak.bytes, "rate": rate, "details": details}


def _details(workload: Workload, seconds: float, repeats: int) -> dict[str, float]:
    """Measure the share of time of the row's parts."""
    row = workload.row
    if workload.encoder is not None:
        features = workload.encode()
        head = median_seconds(partial(workload.step, features), device=workload.device, repeats=repeats)
        return {"% in the head": 100 * head / seconds}
    if not row.strategy.startswith("learnable") or row.overrides or row.compiled:
        return {}
    if row.training:
        workload.model.eval()  # no auxiliary path, no sampling, no dropout
        main = median_seconds(workload, device=workload.device, repeats=repeats)
        return {"times forward and backward of the main path in evaluation": seconds / main}
    return {
        "% in partition, match and merge": 100 * _merging_share(workload, repeats),
        "times its projections and attention alone": seconds / _arithmetic_seconds(workload, repeats),
    }


def _merging_share(workload: Workload, repeats: int) -> float:
    """Measure the median share of the mergers in the time of a call."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        synchronize(workload.device)
        marks.append(time.perf_counter())

    mergers = [module for module in workload.model.modules() if isinstance(module, TokenMerger)]
    handles = [m.register_forward_pre_hook(mark) for m in mergers] + [m.register_forward_hook(mark) for m in mergers]
    shares = []
    for _ in range(repeats):
        marks.clear()
        mark()
        workload()
        mark()
        begin, *inner, end = marks
        shares.append((sum(inner[1::2]) - sum(inner[::2])) / (end - begin))
    for handle in handles:
        handle.remove()
    return statistics.median(shares)


def _arithmetic_seconds(workload: Workload, repeats: int) -> float:
    """Time only the projections and the attention of each block, on random tensors of their shapes."""
    draw = partial(torch.randn, device=workload.device, dtype=PRECISIONS[workload.row.precision])
    timed = partial(median_seconds, device=workload.device, repeats=repeats)
    heads = next(module.num_heads for module in workload.model.modules() if isinstance(module, SelfAttention))
    total = 0.0
    for plan in workload.plan:
        rows, width = workload.shape[0] * plan.windows, plan.in_channels
        x = draw(rows, plan.num_tokens, width)
        qkv, project = draw(3 * width, width), draw(plan.out_channels, width)
        total += timed(partial(torch.nn.functional.linear, x, qkv))
        q, k, v = torch.nn.functional.linear(x, qkv).chunk(3, dim=-1)
        total += timed(partial(attention, q, k, v, num_heads=heads))
        kept = x[:, : plan.num_tokens - plan.merge_count].contiguous()
        total += timed(partial(torch.nn.functional.linear, kept, project))
    return total


def _stream_seconds(workload: Workload) -> float:
    """Time a stream, without the time to draw the features of each window."""
    stream, seconds = Stream(workload.model), 0.0
    for start in range(0, workload.shape[1], length := workload.model.window_frames[0]):
        features = workload.features(min(length, workload.shape[1] - start))
        seconds += _call_seconds(workload, partial(workload.take, stream, features, start))
    return seconds + _call_seconds(workload, stream.logits)


def _call_seconds(workload: Workload, call: Callable[[], Any]) -> float:
    """Time a single call."""
    synchronize(workload.device)
    start = time.perf_counter()
    call()
    synchronize(workload.device)
    return time.perf_counter() - start


def _repeats(row: Row, setting: Setting) -> int:
    return min(_FEW, setting.repeats) if row.slow else setting.repeats


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
