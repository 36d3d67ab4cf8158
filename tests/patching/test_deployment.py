"""Patched models run in ONNX Runtime, and train in several processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.patching.test_patch import CASES, logits, patched

pytestmark = pytest.mark.slow


class Logits(nn.Module):
    """A model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.model, x)


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    pool = "size" if name == "VideoMAE" else "plain"
    return Logits(patched(model, CASES[name], pool=pool)), torch.randn(CASES[name].shape)


@pytest.mark.parametrize("name", ["ViT", "EVA-02, RoPE", "ViViT", "ViViT, frames", "VideoMAE", "TimeSformer"])
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = build(name)
    expected = model(x)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}  # operators of ONNX alone
    assert "TopK" in {node.op_type for node in nodes}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return model(x).square().mean()


def train(rank: int, name: str, folder: str) -> None:
    """Write the gradients of one of two processes, each of which has one clip of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, x = build(name)
    parallel = nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)
    loss_of(parallel, x[rank : rank + 1]).backward()
    torch.save({name: value.grad for name, value in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["ViT", "VideoMAE"])
def test_two_processes_have_the_gradients_of_one(name: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train, (name, str(tmp_path)), nprocs=2)
    model, x = build(name)
    loss_of(model.train(), x).backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        assert len(gradients) == len(list(model.parameters()))
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-6)
