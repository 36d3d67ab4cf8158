"""A row computes in its own precision and restores torch's settings."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vtm.benchmark.network import PRECISIONS, Workload
from vtm.benchmark.rows import Row, Setting

SMALL = Setting(4, 2, 2, 16, "cpu", 1, 1, 20, ("model.window_frames=[2,4]", "model.channels=[16,8]"))


class Products(TorchDispatchMode):
    """A record of the dtypes that batched products multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.default:
            self.dtypes += [args[0].dtype, args[1].dtype]
            return func(*args)
        with self:  # in inference mode, operations are not decomposed by torch
            parts = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if parts is NotImplemented else parts


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_plain_attention_computes_in_the_row_s_precision(precision, training):
    workload = Workload(Row("none", plain=True, precision=precision, training=training), SMALL)
    with workload.mode(), Products() as products:
        workload()
    per_block = 2 * (2 + 4 * training)  # two products of two tensors, and two of the backward pass for each
    assert products.dtypes == 2 * per_block * [PRECISIONS[precision]]


@pytest.mark.parametrize("before", [False, True])
def test_a_trial_restores_the_settings_of_torch(before):
    usual = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    try:
        with pytest.raises(RuntimeError, match="inside"), Workload(Row("none"), SMALL).mode():
            raise RuntimeError("inside")
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(usual)
