"""The arithmetic, memory traffic and memory of a row, computed before it is measured.

The row runs on fake tensors, which have a shape but no data, so rows that do not fit into memory are never started.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vtm.benchmark.network import CLASSES, FUSED, Workload, make_encoder, on_tokens
from vtm.benchmark.rows import Row, Setting

_WORKSPACE = 1.15  # of kernels: plain attention at the paper's size takes 1.13 times the memory of its tensors


class Needs(NamedTuple):
    """The resources that a row needs.

    Attributes:
        flop: floating-point operations of products, attention and convolutions, without the recomputation of fused
            attention in the backward pass.
        moved_bytes: lower bound of the memory traffic: inputs and used weights once, logits, and in training the
            gradients of the weights.
        memory_bytes: memory of model, inputs and intermediate tensors; for a stream, of the whole clip.
    """

    flop: int
    moved_bytes: int
    memory_bytes: int


def needs(row: Row, setting: Setting) -> Needs:
    """Compute what a row needs.

    Raises:
        ValueError: if an override is unknown, or the clips do not fit the network.
    """
    encoder = make_encoder(row, setting)
    head = replace(row, compiled=False, streaming=False, encoder=False)
    with FakeTensorMode():
        workload = Workload(head, replace(on_tokens(setting, encoder), device="cpu"))
        assert workload.inputs is not None  # None only for a stream
        flop = _flop_as_plain(workload)
        workload.model.zero_grad(set_to_none=True)
        with LiveMemory() as memory, workload.mode(), FlopCounterMode(display=False):  # decomposes operations
            workload()
        moved = (1 + row.training) * _bytes(workload.model.parameters()) + 4 * row.batch * CLASSES
        moved += 0 if workload.motion is None else workload.motion.nbytes
        held = _bytes(workload.model.parameters()) + workload.inputs.nbytes + int(_WORKSPACE * memory.peak)
    if encoder is None:
        return Needs(flop, moved + workload.inputs.nbytes, held)
    steps = workload.shape[0] * workload.shape[1] * encoder.frames.frames_per_step
    with torch.device("meta"), torch.no_grad():
        backbone = encoder.build(load=False).eval()
        chunk = torch.empty(encoder.chunk, 3, encoder.frames.image_size, encoder.frames.image_size)
        with LiveMemory() as memory, sdpa_kernel(FUSED), FlopCounterMode(display=False) as counter:
            encoder.encode(backbone, chunk)
    frames = chunk[0].numel() * steps  # bytes, as uint8
    weights = _bytes(backbone.parameters())
    flop += counter.get_total_flops() * -(-steps // encoder.chunk)
    return Needs(flop, moved + frames + weights, held + frames + weights + int(_WORKSPACE * memory.peak))


def free_bytes(device: torch.device | str) -> int | None:
    """Return the free memory of the GPU, or of the machine; None where the system does not report it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


class LiveMemory(TorchDispatchMode):
    """A counter of the bytes of all tensors that are alive.

    Attributes:
        peak: maximum number of bytes alive at the same time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, int] = {}  # bytes of each storage
        self._total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._total += storage.nbytes()
            self.peak = max(self.peak, self._total)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._total -= self._live.pop(key)


def _flop_as_plain(workload: Workload) -> int:
    """Count operations with plain attention, because every version of torch counts its products."""
    with workload.mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        workload()
    return int(counter.get_total_flops())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
