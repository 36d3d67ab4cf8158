"""Tests of the network: equal to the loops of tests/reference.py, saliency, masks, windows, precision, export."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.reference import (
    BlockParameters,
    center_loops,
    network_loops,
    saliency_loops,
    saliency_weights_loops,
)
from vtm.merging import (
    NoMerger,
    TokenMerger,
    center_partition,
    motion_partition,
    saliency_partition,
    saliency_weights,
    uniform_partition,
)
from vtm.merging.attention import attention
from vtm.models import VTM, SinusoidalTime
from vtm.models.block import Block, SelfAttention

HEADS = 2
LEARNABLE = partial(
    TokenMerger,
    partition=saliency_partition,
    partition_factor=3,
    merge_count=0.8,
    weighting=partial(saliency_weights, beta=2.0),
    saliency_weight=1.5,
)
CENTER = partial(TokenMerger, partition=center_partition, partition_factor=3, merge_count=0.5)


def network(merge_layer=LEARNABLE, *, window_frames=(2, 4), channels=(6, 4), dropout=0.0, **options) -> VTM:
    torch.manual_seed(0)
    model = VTM(
        8, 3, window_frames=window_frames, channels=channels, num_heads=HEADS, dropout=dropout,
        merge_layer=merge_layer, **options,
    )  # fmt: skip
    for parameter in model.parameters():  # so that no bias is zero and no norm is one
        nn.init.normal_(parameter, std=0.5)
    return model.double()


def clip(batch=2, frames=4, height=2, width=2, channels=8, *, seed=1) -> torch.Tensor:
    return torch.randn(batch, frames, height, width, channels, generator=torch.Generator().manual_seed(seed)).double()


def path_parameters(attention_module: nn.Module, project: nn.Module) -> dict[str, torch.Tensor]:
    state = attention_module.state_dict() | {f"linear.{k[2:]}": v for k, v in project.state_dict().items()}
    return dict(state.items())


def block_parameters(block: Block) -> BlockParameters:
    side = block.auxiliary
    return BlockParameters(
        main=path_parameters(block.attention, block.project),
        auxiliary=None if side is None else path_parameters(side.attention, side.project),
        saliency=None if block.merger.saliency is None else block.merger.saliency.u.weight,
    )


def reference(model: VTM, features: torch.Tensor, **options):
    return network_loops(
        features,
        [block_parameters(block) for block in model.blocks],
        {"weight": model.head.weight, "bias": model.head.bias},
        window_frames=model.window_frames,
        num_heads=HEADS,
        **options,
    )


LEARNABLE_LOOPS = {
    "partition": saliency_loops,
    "partition_factor": 3,
    "merge_count": 0.8,
    "weighting": partial(saliency_weights_loops, beta=2.0),
    "saliency_weight": 1.5,
}


@pytest.mark.parametrize("key_bias", [None, torch.linspace(-1, 1, 10).double().reshape(2, 5)])
def test_self_attention_has_the_gradients_of_separate_norm_and_projection(key_bias):
    torch.manual_seed(0)
    module = SelfAttention(6, num_heads=HEADS, dropout=0.0).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, weights = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    inputs = [x.requires_grad_(), *module.parameters()]
    q, k, v = module.qkv(module.norm(x)).chunk(3, dim=-1)
    expected = x + attention(q, k, v, num_heads=HEADS, key_bias=key_bias)
    out, keys = module(x, key_bias=key_bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(keys, k, rtol=0, atol=1e-12)
    actual_gradients = torch.autograd.grad(((out + keys) * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad(((expected + k) * weights).sum(), inputs)
    for actual, wanted in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("needs_gradient", "products"), [(False, 1), (True, 2)])
def test_the_backward_pass_skips_features_that_need_no_gradient(needs_gradient, products):
    module, x = SelfAttention(6, num_heads=HEADS, dropout=0.0), torch.randn(2, 5, 6, requires_grad=needs_gradient)
    out, _ = module(x)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_flop_counts()["Global"][torch.ops.aten.mm] == products * 2 * (2 * 5) * 6 * (3 * 6)


@pytest.mark.parametrize("masked", [0, 1, 3])
@pytest.mark.parametrize(
    ("merge_layer", "loops"),
    [
        (LEARNABLE, LEARNABLE_LOOPS),
        (CENTER, {"partition": center_loops, "partition_factor": 3, "merge_count": 0.5}),
        (NoMerger, {"partition": None, "partition_factor": 1, "merge_count": 0}),
    ],
)
def test_evaluation_equals_the_loops(merge_layer, loops, masked):
    model, features = network(merge_layer).eval(), clip(frames=8)
    mask = None if not masked else torch.arange(8).expand(2, 8) < torch.tensor([[8], [8 - masked]])
    output, expected = model(features, mask=mask), reference(model, features, mask=mask, **loops)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-10)
    assert output.aux_logits is None
    for actual, wanted in zip(output.blocks, expected.blocks, strict=True) if mask is None else ():  # padding ties
        assert torch.equal(actual.targets, wanted.targets)
        assert torch.equal(actual.grouping.index, wanted.groups.index)


def test_training_equals_the_loops_on_both_paths():
    model, features = network().train(), clip(frames=8)
    output = model(features, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    shapes = [(2 * plan.windows, plan.num_tokens) for plan in model.plan(8, 2, 2)]
    noise = [-torch.empty(shape).double().exponential_(generator=generator).log() for shape in shapes]  # of Gumbel
    expected = reference(model, features, noise=noise, **LEARNABLE_LOOPS)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.aux_logits, expected.aux_logits, rtol=0, atol=1e-10)


def test_saliency_weight_scale_is_the_logit_scale_of_each_block():
    literal = partial(TokenMerger, partition=saliency_partition, partition_factor=3, merge_count=0.8)
    weights = [b.auxiliary.saliency_weight for b in network(partial(literal, saliency_weight="scale")).blocks]
    assert weights == [(8 / HEADS) ** -0.5, (6 / HEADS) ** -0.5]


def test_the_auxiliary_loss_alone_trains_the_saliency():
    plain = partial(TokenMerger, partition=saliency_partition, partition_factor=3, merge_count=0.8, saliency_weight=1.0)
    model = network(plain).train()
    model(clip()).aux_logits.square().sum().backward()
    for block in model.blocks:
        assert block.merger.saliency.u.weight.grad.abs().sum() > 0


def test_without_weighting_the_main_loss_does_not_reach_the_saliency():
    plain = partial(TokenMerger, partition=saliency_partition, partition_factor=3, merge_count=0.8, saliency_weight=1.0)
    model = network(plain).train()
    model(clip()).logits.square().sum().backward()
    assert all(block.merger.saliency.u.weight.grad is None for block in model.blocks)


def test_evaluation_uses_no_auxiliary_weight():
    model, features = network().eval(), clip()
    expected = model(features).logits
    for name, parameter in model.named_parameters():
        if ".auxiliary." in name:
            parameter.data.fill_(torch.nan)
    assert torch.equal(model(features).logits, expected)


def test_evaluation_is_deterministic():
    model, features = network(dropout=0.5).eval(), clip()
    assert torch.equal(model(features).logits, model(features).logits)


def test_sampling_in_evaluation_depends_only_on_the_generator_of_the_clip():
    model = network(partial(LEARNABLE, sample_in_eval=True), window_frames=(2, 4)).eval()
    features = clip(batch=3, frames=8, height=4, width=4)

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = model(features, generator=seeded(1, 2, 3)).logits
    alone = model(features[1:2], generator=seeded(2)).logits
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)
    other = model(features[1:2], generator=seeded(9)).blocks[0].targets
    assert not torch.equal(model(features[1:2], generator=seeded(2)).blocks[0].targets, other)


@pytest.mark.parametrize("partition", [uniform_partition, center_partition, motion_partition, saliency_partition])
@pytest.mark.parametrize("frames_left", [1, 2, 3, 5])
@pytest.mark.parametrize("training", [False, True])
def test_masked_frames_are_ignored_whatever_their_values(partition, frames_left, training):
    merge_layer = partial(
        TokenMerger, partition=partition, partition_factor=3, merge_count=0.8,
        saliency_weight=1.0 if partition is saliency_partition else None,
    )  # fmt: skip
    model = network(merge_layer).train(training)
    features, motion = clip(frames=8), torch.rand(2, 8, 2, 2).double()
    mask = torch.arange(8).expand(2, 8) < frames_left
    results = []
    for garbage in (0.0, 1e6, torch.nan, torch.inf):
        torch.manual_seed(5)
        hidden = ~mask[:, :, None, None]
        output = model(
            features.masked_fill(hidden[..., None], garbage), motion=motion.masked_fill(hidden, garbage), mask=mask
        )
        assert output.logits.isfinite().all()
        results.append((output.logits, output.aux_logits))
    for logits, aux_logits in results[1:]:
        assert torch.equal(logits, results[0][0])
        assert aux_logits is None or torch.equal(aux_logits, results[0][1])


def test_a_clip_without_real_frames_has_finite_logits():
    mask = torch.tensor([[True] * 4, [False] * 4])
    output = network().train()(clip(), mask=mask)
    output.logits.sum().backward()
    assert output.logits.isfinite().all()


def test_a_full_mask_equals_no_mask():
    model, features = network().eval(), clip()
    torch.testing.assert_close(
        model(features, mask=torch.ones(2, 4, dtype=torch.bool)).logits, model(features).logits, rtol=0, atol=1e-12
    )


def test_the_windows_of_the_paper():
    model = VTM(
        1024, 6, window_frames=(6, 30, 60), channels=(512, 256, 256), num_heads=8, dropout=0.0,
        merge_layer=partial(TokenMerger, partition=uniform_partition, partition_factor=6, merge_count=0.8),
    )  # fmt: skip
    plans = model.plan(60, 16, 16)
    assert [plan.windows * plan.num_tokens for plan in plans] == [15360, 5120, 1708]
    assert plans[-1].num_tokens - plans[-1].merge_count == 570


def test_blocks_with_windows_longer_than_the_clip_are_skipped():
    model = network(window_frames=(2, 4, 8), channels=(6, 6, 6)).eval()
    assert len(model(clip(frames=4)).blocks) == 2
    assert len(model(clip(frames=8)).blocks) == 3


def test_the_time_embedding_distinguishes_frames():
    still = clip(frames=1).expand(2, 4, 2, 2, 8)
    swapped = torch.cat([torch.zeros_like(still[:, :2]), still[:, 2:]], 1)
    features = torch.cat([still[:, :2], torch.zeros_like(still[:, 2:])], 1)
    blind, telling = network(NoMerger).eval(), network(NoMerger, time_embedding=SinusoidalTime()).eval()
    torch.testing.assert_close(blind(features).logits, blind(swapped).logits)
    assert not torch.allclose(telling(features).logits, telling(swapped).logits)


@pytest.mark.parametrize(
    ("options", "frames", "message"),
    [
        ({"window_frames": (2, 3)}, 4, r"divide the next, got \[2, 3\]"),
        ({"window_frames": (2,)}, 4, "one entry per block in window_frames and channels, got 1, 2"),
        ({}, 6, r"clips of 6 frames do not fit window_frames = \[2, 4\]"),
        ({}, 3, r"clips of 3 frames do not fit window_frames = \[2, 4\]"),
        ({"merge_layer": partial(LEARNABLE, merge_count=6)}, 4, "block 1 of 2 .2 frames.: merge_count = 6 tokens"),
    ],
)
def test_invalid_shapes_and_options_are_errors_that_name_them(options, frames, message):
    with pytest.raises(ValueError, match=message):
        network(**options)(clip(frames=frames))


def test_features_of_another_width_are_an_error_that_prints_both():
    with pytest.raises(ValueError, match=r"C = 8, got \(2, 4, 2, 2, 5\)"):
        network()(clip(channels=5))


@pytest.mark.parametrize("merge_layer", [LEARNABLE, CENTER, NoMerger])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_empty_logits(merge_layer, training):
    output = network(merge_layer).train(training)(clip(batch=0), mask=torch.ones(0, 4, dtype=torch.bool))
    assert output.logits.shape == (0, 3)
    assert output.aux_logits is None or output.aux_logits.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_features_that_are_not_floating_point_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"as a tensor of floating-point numbers, got {dtype}"):
        network().eval()(torch.ones(1, 4, 2, 2, 8, dtype=dtype))
    with pytest.raises(TypeError, match="as a tensor of floating-point numbers, got ndarray"):
        network().eval()(clip().numpy())


def test_dropout_is_active_only_in_training():
    model, features = network(NoMerger, dropout=0.5), clip()
    assert not torch.equal(model.train()(features).logits, model.train()(features).logits)
    assert torch.equal(model.eval()(features).logits, model.eval()(features).logits)


def test_bf16_autocast_stays_close_to_fp32():
    model, features = network(CENTER).float().eval(), clip(frames=8, height=4, width=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(features).logits
    assert (half.float() - model(features).logits).abs().max() < 0.1 * model(features).logits.abs().max()


def test_compile_gives_the_same_result_in_one_graph():
    model, features = network().float().eval(), clip().float()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features).logits, model(features).logits)


def test_export_with_a_dynamic_batch_gives_the_same_result():
    model, features = network().float().eval(), clip(batch=3).float()
    program = torch.export.export(model, (features,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for batch in (3, 2, 1):
        torch.testing.assert_close(program.module()(features[:batch]).logits, model(features[:batch]).logits)
