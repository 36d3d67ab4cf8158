"""Whether a device computes in bfloat16 with units of its own; others emulate it, slower than float32."""

from __future__ import annotations

import torch


def has_bfloat16(device_type: str) -> bool:
    """Return whether the GPUs ("cuda") or the processor ("cpu") of this machine have units for bfloat16."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # older ones do not tell
    return any(found.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
