"""Tests of merging between the layers of a foreign transformer: training, checkpointing, DDP, compilers, copies."""

import copy
import io
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial, reduce
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vtm.merging import (
    Grouping,
    TokenMerger,
    Tokens,
    center_partition,
    compose,
    saliency_partition,
    saliency_weights,
    size_weights,
    uniform_partition,
    unmerge,
)

WIDTH = 16
UNIFORM = partial(TokenMerger, WIDTH, partition=uniform_partition, partition_factor=4, merge_count=0.5)
LEARNED = partial(
    TokenMerger,
    WIDTH,
    partition=saliency_partition,
    partition_factor=4,
    merge_count=0.5,
    weighting=partial(saliency_weights, beta=2.0),
    saliency_weight=0.0,
)
DETERMINISTIC = partial(LEARNED, partition=uniform_partition)  # in training too; the estimator still learns
COUNTS = [24, 15, 10]  # tokens before, between and after the two layers


class Layer(nn.Module):
    """An ordinary pre-norm transformer layer without merging."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class Host(nn.Module):
    """A transformer with mergers between its layers that classifies every input token."""

    def __init__(self, make_merger: partial[TokenMerger] = LEARNED, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in COUNTS[1:])
        self.mergers = nn.ModuleList(make_merger() for _ in self.layers)
        self.head = nn.Linear(WIDTH, 5)
        self.checkpointed = checkpointed

    def step(self, i: int, tokens: Tokens) -> tuple[Tokens, Grouping]:
        x = self.layers[i](tokens.x, None if tokens.mask is None else ~tokens.mask)
        merged = self.mergers[i](replace(tokens, x=x), keys=x)
        return merged.tokens, merged.grouping

    def encode(self, tokens: Tokens) -> tuple[Tokens, list[Grouping]]:
        groupings = []
        for i in range(len(self.layers)):
            if self.checkpointed:
                tokens, grouping = checkpoint(self.step, i, tokens, use_reentrant=False)
            else:
                tokens, grouping = self.step(i, tokens)
            groupings.append(grouping)
        return tokens, groupings

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens, groupings = self.encode(Tokens.from_sequence(x, mask=mask))
        return self.head(unmerge(tokens.x, reduce(compose, groupings)))  # (B, N, 5)


def make_host(make_merger: partial[TokenMerger] = LEARNED, *, checkpointed: bool = False) -> Host:
    """Create a host with the weights of seed 0 and estimators that prefer some tokens."""
    torch.manual_seed(0)
    host = Host(make_merger, checkpointed=checkpointed)
    for merger in host.mergers:
        if merger.saliency is not None:
            nn.init.normal_(merger.saliency.u.weight)
    return host


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, COUNTS[0], WIDTH, generator=generator)
    return x, torch.randint(5, (size, COUNTS[0]), generator=generator)


def loss_of(host: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(host(x).float().flatten(0, 1), labels.flatten())


def gradients(host: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    host.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in host.named_parameters()}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("make_merger", [UNIFORM, LEARNED], ids=["uniform", "learned"])
def test_training_reaches_every_parameter_and_learns(make_merger: partial[TokenMerger]) -> None:
    host = make_host(make_merger).train()
    optimizer = torch.optim.AdamW(host.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(host, *batch())
        found = gradients(host, loss)
        assert all(value is not None and value.isfinite().all() and value.abs().max() > 0 for value in found.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


def test_layers_see_fewer_and_fewer_tokens_and_the_head_all() -> None:
    host = make_host()
    seen = []
    for layer in host.layers:
        layer.register_forward_hook(lambda module, given, found: seen.append(found.shape[1]))
    assert host(batch()[0]).shape == (4, COUNTS[0], 5)
    assert seen == COUNTS[:-1]
    assert host.encode(Tokens.from_sequence(batch()[0]))[0].x.shape[1] == COUNTS[-1]


def test_dense_outputs_of_a_token_are_the_outputs_of_its_group() -> None:
    host, x = make_host().eval(), batch()[0]
    tokens, groupings = host.encode(Tokens.from_sequence(x))
    dense, per_group = host(x), host.head(tokens.x)
    for clip in range(4):
        for token in range(COUNTS[0]):
            place = token
            for grouping in groupings:
                place = int(grouping.index[clip, place])
            torch.testing.assert_close(dense[clip, token], per_group[clip, place])


def test_padding_changes_no_real_token() -> None:
    host, (x, _) = make_host().eval(), batch()
    mask = torch.ones(4, COUNTS[0], dtype=torch.bool)
    mask[1, 13:] = mask[2, 20:] = False
    outputs = [host(x.masked_fill(~mask[..., None], value), mask)[mask] for value in (0.0, 5.0)]
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all()


@pytest.mark.parametrize("make_merger", [UNIFORM, LEARNED], ids=["uniform", "sampled"])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(make_merger: partial[TokenMerger]) -> None:
    found = []
    for checkpointed in (False, True):
        host = make_host(make_merger, checkpointed=checkpointed).train()
        torch.manual_seed(2)  # of the sampling
        loss = loss_of(host, *batch())
        found.append((loss, gradients(host, loss)))
    assert torch.equal(found[0][0], found[1][0])
    assert_same_gradients(found[1][1], found[0][1], rtol=0, atol=0)


def test_sampled_targets_differ_from_step_to_step() -> None:
    host = make_host(checkpointed=True).train()
    first, second = (host.encode(Tokens.from_sequence(batch()[0]))[1][0] for _ in range(2))
    assert not torch.equal(first.index, second.index)


def train_one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank, timeout=timedelta(seconds=60)
    )
    host = DistributedDataParallel(make_host(DETERMINISTIC))
    x, labels = batch()
    for _ in range(2):  # with a parameter that has no gradient the second step would fail
        found = gradients(host, loss_of(host, x[2 * rank :][:2], labels[2 * rank :][:2]))
    torch.save({name.removeprefix("module."): gradient for name, gradient in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import runpy, sys; names = runpy.run_path(sys.argv[1]); names['train_one_of_two'](*eval(sys.argv[2]))"
    given = [
        [__file__, repr((rank, port, str(tmp_path)))] for rank in range(2)
    ]  # not forked, because autograd has threads
    processes = [subprocess.Popen([sys.executable, "-c", code, *arguments]) for arguments in given]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    host = make_host(DETERMINISTIC)
    expected = gradients(host, loss_of(host, *batch()))
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampled_in_checkpoints", [False, True])
def test_one_graph_has_the_loss_and_gradients_of_eager_training(sampled_in_checkpoints: bool) -> None:
    torch.compiler.reset()
    make_merger = LEARNED if sampled_in_checkpoints else partial(UNIFORM, weighting=size_weights)
    host = make_host(make_merger, checkpointed=sampled_in_checkpoints).train()
    losses, found = [], []
    for module in (host, torch.compile(host, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(2)  # of the sampling
        losses.append(loss_of(module, *batch()))
        found.append(gradients(host, losses[-1]))
    torch.testing.assert_close(*losses)
    assert_same_gradients(*found, rtol=1e-4, atol=1e-6)


def test_a_host_with_dense_outputs_exports_with_any_batch() -> None:
    host = make_host().eval()
    batches = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(host, batch()[:1], dynamic_shapes=[batches]).module()
    for size in (1, 3):
        torch.testing.assert_close(exported(batch(size)[0]), host(batch(size)[0]))


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))], ids=["deepcopy", "pickle"]
)
def test_copies_of_a_host_compute_the_same(twin_of) -> None:
    host, (x, labels) = make_host().eval(), batch()
    twin = twin_of(host)
    assert torch.equal(twin(x), host(x))
    assert_same_gradients(gradients(twin, loss_of(twin, x, labels)), gradients(host, loss_of(host, x, labels)))
    nn.init.zeros_(twin.mergers[0].saliency.u.weight)
    assert host.mergers[0].saliency.u.weight.abs().max() > 0


def test_a_state_dict_from_disk_restores_the_estimators() -> None:
    host, x = make_host().eval(), batch()[0]
    file = io.BytesIO()
    torch.save(host.state_dict(), file)
    file.seek(0)
    other = Host().eval()
    assert not torch.equal(other(x), host(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), host(x))


def test_merged_tokens_and_groupings_can_be_sent_to_another_process() -> None:
    tokens, groupings = make_host().encode(Tokens.from_sequence(batch()[0].requires_grad_()))
    file = io.BytesIO()
    torch.save((tokens, groupings), file)  # unlike pickle, this also works for tensors that require gradients
    file.seek(0)
    same_tokens, same_groupings = torch.load(file, weights_only=False)
    assert torch.equal(same_tokens.x, tokens.x)
    assert torch.equal(unmerge(same_tokens.x, same_groupings[-1]), unmerge(tokens.x, groupings[-1]))


@pytest.mark.parametrize("make_merger", [partial(UNIFORM, weighting=size_weights), LEARNED], ids=["size", "saliency"])
@pytest.mark.parametrize("mode", ["autocast", "bfloat16"])
def test_half_precision_trains_every_parameter(make_merger: partial[TokenMerger], mode: str) -> None:
    host = make_host(make_merger).train()
    x, labels = batch()
    if mode == "bfloat16":
        host, x = host.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        tokens, _ = host.encode(Tokens.from_sequence(x))
        loss = loss_of(host, x, labels)
    assert tokens.x.dtype == x.dtype
    assert tokens.size.dtype == torch.float32
    assert torch.equal(tokens.size.sum(1), torch.full((4,), float(COUNTS[0])))
    assert all(value.isfinite().all() and value.abs().max() > 0 for value in gradients(host, loss).values())


def test_autocast_is_close_to_full_precision() -> None:
    host = make_host(partial(UNIFORM, merge_count=0.0)).eval()
    x = batch()[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = host(x)
    torch.testing.assert_close(found.float(), host(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("tokens", "keys", "error", "says"),
    [
        (torch.zeros(2, 12, WIDTH), (2, 12, WIDTH), TypeError, r"expected Tokens, got Tensor.*from_sequence"),
        (Tokens.from_sequence(torch.zeros(2, 12, 8)), (2, 12, 8), ValueError, r"keys.*\(2, 12, 16\).*\(2, 12, 8\)"),
        (Tokens.from_sequence(torch.zeros(2, 12, 8)), (3, 12, WIDTH), ValueError, r"\(2, 12, 16\).*\(3, 12, 16\)"),
        (Tokens.from_sequence(torch.zeros(2, 12, 8)), (2, 2, 12, 8), ValueError, r"\(2, 12, 16\).*\(2, 2, 12, 8\)"),
    ],
    ids=["not Tokens", "width", "batch", "heads"],
)
def test_wrong_input_is_one_error_that_prints_both_sides(tokens, keys, error, says) -> None:
    with pytest.raises(error, match=says):
        UNIFORM()(tokens, torch.zeros(keys))


def test_sizes_of_another_length_are_an_error_that_prints_both() -> None:
    tokens = Tokens.from_sequence(torch.zeros(2, 12, WIDTH))
    with pytest.raises(ValueError, match=r"size.*\(2, 11\).*\(2, 12\)"):
        replace(tokens, x=tokens.x[:, 1:])


def test_a_merger_without_a_grid_is_an_error_that_names_it() -> None:
    tokens = Tokens.from_sequence(torch.zeros(2, 12, WIDTH))
    assert UNIFORM()(tokens, tokens.x).tokens.x.shape == (2, 8, WIDTH)
    with pytest.raises(ValueError, match="grid"):
        UNIFORM(partition=center_partition)(tokens, tokens.x)
