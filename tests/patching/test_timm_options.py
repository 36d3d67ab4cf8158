"""Every option of timm's models is respected: a patched model that takes nothing away computes what it did before."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vtm.patching import patch, recording, unpatch
from vtm.patching.block import keep_output

VIT, EVA, DINOV3 = "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"
OPTIONS = [
    (VIT, {"qkv_bias": False}),
    (VIT, {"qk_norm": True}),
    (VIT, {"scale_attn_norm": True, "scale_mlp_norm": True}),
    (VIT, {"proj_bias": False}),
    (VIT, {"init_values": 1e-5}),
    (VIT, {"class_token": False, "global_pool": "avg"}),
    (VIT, {"reg_tokens": 3, "no_embed_class": True}),
    (VIT, {"dynamic_img_size": True}),
    (VIT, {"pos_embed": "none"}),
    (VIT, {"pre_norm": True}),
    (VIT, {"attn_layer": "diff"}),
    (VIT, {"mlp_layer": timm.layers.SwiGLUPacked, "norm_layer": "rmsnorm"}),
    (VIT, {"global_pool": "map"}),
    (VIT, {"patch_drop_rate": 0.5}),
    (VIT, {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}),
    (EVA, {"qkv_fused": False, "qk_norm": True}),
    (EVA, {"scale_attn_inner": True}),
    (EVA, {"init_values": 1e-5}),
    (EVA, {"class_token": False, "global_pool": "avg"}),
    (EVA, {"num_reg_tokens": 2, "use_abs_pos_emb": False}),
    (EVA, {"attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False}),
    (EVA, {"rope_rotate_half": True}),
    (EVA, {"dynamic_img_size": True}),
    (EVA, {"patch_drop_rate": 0.5}),
    (EVA, {"drop_path_rate": 0.3}),
    (DINOV3, {"patch_drop_rate": 0.5}),
    ("vit_small_patch16_rope_ape_224", {}),
    ("vit_pe_core_tiny_patch16_384", {}),
    ("vit_base_r50_s16_224", {"embed_dim": 48, "num_heads": 3}),
]


def build(name: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = 70 if name == EVA else 64
    model = timm.create_model(name, depth=3, img_size=size, num_classes=5, **options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model, torch.randn(2, 3, size, size, dtype=torch.float64)


def run(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # of dropout
    output: Tensor = model(x)
    return output


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_block_computes_what_the_library_computes(name: str, options: dict[str, Any]) -> None:
    model, x = build(name, options)
    model.train(any("drop" in option for option in options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.eval()
    before = run(model, x)
    patch(model, [0, 0, 0])
    for block in model.blocks:  # with nothing to take away, the original forward would do the work
        block.merging = replace(block.merging, checked=False)
        block.attn.k_norm.register_forward_hook(keep_output)
    torch.testing.assert_close(run(model, x), before)
    patch(model, [3, 2, 1])
    with recording(model) as trace:
        merged = run(model, x)
    first = next(iter(trace.groupings.values())).index.shape[1]
    assert [size.shape[1] for size in trace.sizes.values()] == [first - 3, first - 5, first - 6]
    assert torch.equal(trace.sizes[2].sum(1), torch.full((2,), float(first)).double())
    assert not torch.allclose(merged, before, rtol=1e-6)
    assert torch.equal(run(unpatch(model), x), before)


def test_attention_that_is_not_fused_weighs_the_tokens_too() -> None:
    for name in (VIT, EVA):
        model, x = build(name, {})
        fused = run(patch(model, [3, 2, 1]), x)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(run(model, x), fused)


def test_a_gated_attention_is_patched() -> None:
    model, x = build(VIT, {})
    for block in model.blocks:
        block.attn.gate = nn.Linear(192, 192).double()
    before = run(model, x)
    patch(model, [3, 2, 1])
    assert not torch.allclose(run(model, x), before)
    assert torch.equal(run(unpatch(model), x), before)


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224", "samvit_base_patch16", "hiera_tiny_224", "mvitv2_tiny", "swinv2_tiny_window8_256",
        "naflexvit_base_patch16_gap", "cait_xxs24_224", "crossvit_tiny_240", "vit_base_patch16_rpn_224",
        "vit_base_patch16_xp_224", "vit_small_patch16_18x2_224", "vit_relpos_small_patch16_224", "resnet18",
        "vit_small_patch16_rope_mixed_224",
    ],
)  # fmt: skip
def test_other_models_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=r"contains none|itself can be patched|cannot be patched"):
        patch(model, [0] * 12)
    assert [type(module) for module in model.modules()] == classes


def test_two_transformers_in_a_model_are_refused() -> None:
    models = nn.ModuleList(build(VIT, {})[0] for _ in range(2))
    with pytest.raises(TypeError, match="ModuleList contains 2"):
        patch(models, [3, 2, 1])


def test_a_model_may_change_after_it_is_patched() -> None:
    model = build(VIT, {})[0]
    patch(model, [3, 2, 1])
    model.reset_classifier(7)
    model.set_input_size((96, 96))
    model.half()
    with recording(model) as trace:
        assert model(torch.randn(1, 3, 96, 96).half()).shape == (1, 7)
    assert [size.shape[1] for size in trace.sizes.values()] == [34, 32, 31]
    assert trace.sizes[2].sum() == 37


def test_a_count_is_clamped_to_half_of_the_tokens() -> None:
    model, x = build(VIT, {})
    with recording(patch(model, [100, 100, 100])) as trace:
        run(model, x)
    assert [size.shape[1] for size in trace.sizes.values()] == [9, 5, 3]
    assert torch.equal(trace.sizes[2].sum(1), torch.full((2,), 17.0).double())


@pytest.mark.slow
def test_a_compiled_model_notices_that_it_is_patched() -> None:
    model, x = build(VIT, {"global_pool": "avg"})
    before = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), before)
    for pool in ("size", "plain"):
        patch(model, [3, 2, 1], pool=pool)
        after = model(x)
        assert not torch.allclose(after, before, rtol=1e-6)
        torch.testing.assert_close(compiled(x), after)
    unpatch(model)
    torch.testing.assert_close(compiled(x), before)


def test_features_of_blocks_by_hooks_are_refused() -> None:
    options = {"features_only": True, "feature_cls": "hook", "out_indices": (1,)}
    model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=32, **options)
    with pytest.raises(TypeError, match=r"FeatureHookNet cannot be patched: it needs every token after a block"):
        patch(model, [1, 1, 1])
