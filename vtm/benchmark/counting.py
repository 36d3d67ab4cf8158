"""What a row needs, worked out before it runs: its arithmetic, the bytes that must move, and the memory it takes.

The row runs on tensors that have shapes but no bytes, so what does not fit the machine is known without a try.
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
    """What a row needs.

    Attributes:
        flop: of its products, attention and convolutions; what fused attention computes again to save memory, in
            the backward pass, is not counted.
        moved_bytes: that must move at least: the inputs and the weights in use once, the logits, and in training the
            gradients of the weights.
        memory_bytes: of model, inputs and all between; of a stream, that of the same clip as a whole.
    """

    flop: int
    moved_bytes: int
    memory_bytes: int


def needs(row: Row, setting: Setting) -> Needs:
    """Work out what a row needs.

    Raises:
        ValueError: if an override is unknown, or the clips do not fit the network.
    """
    encoder = make_encoder(row, setting)
    head = replace(row, compiled=False, streaming=False, encoder=False)
    with FakeTensorMode():
        workload = Workload(head, replace(on_tokens(setting, encoder), device="cpu"))
        assert workload.inputs is not None  # only a stream has none
        flop = _flop_as_plain(workload)
        workload.model.zero_grad(set_to_none=True)
        with _LiveMemory() as memory, workload.mode(), FlopCounterMode(display=False):  # it takes operations apart
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
        with _LiveMemory() as memory, sdpa_kernel(FUSED), FlopCounterMode(display=False) as counter:
            encoder.encode(backbone, chunk)
    frames = chunk[0].numel() * steps  # bytes, of uint8
    weights = _bytes(backbone.parameters())
    flop += counter.get_total_flops() * -(-steps // encoder.chunk)
    return Needs(flop, moved + frames + weights, held + frames + weights + int(_WORKSPACE * memory.peak))


def free_bytes(device: torch.device | str) -> int | None:
    """Tell how much memory can still be had: of the GPU, or of the machine where it says so (Linux)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


class _LiveMemory(TorchDispatchMode):
    """Add up the tensors that are made within, while they live.

    Attributes:
        peak: the most bytes that were alive at a time.
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
        place = storage._cdata
        if place not in self._live:
            self._live[place] = storage.nbytes()
            self._total += storage.nbytes()
            self.peak = max(self.peak, self._total)
            weakref.finalize(storage, self._remove, place)

    def _remove(self, place: int) -> None:
        self._total -= self._live.pop(place)


def _flop_as_plain(workload: Workload) -> int:
    """Count with plain attention, whose products every version of torch counts."""
    with workload.mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        workload()
    return int(counter.get_total_flops())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
