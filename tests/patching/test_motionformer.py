"""Motionformer computes what the formulas of the paper say, and merges within frames."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.patching.motionformer_loops import motionformer, trajectory_attention
from vtm.patching import constant, patch, recording, unpatch
from vtm.patching.motionformer import Motionformer, TrajectoryAttention, load_motionformer

TINY: Any = {"num_frames": 8, "image_size": 64, "width": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
FRAMES, PER_FRAME = 4, 16


@pytest.fixture(params=["trajectory", "projected"])
def values(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(values: Any) -> Motionformer:
    torch.manual_seed(0)
    model = Motionformer(values=values, **TINY).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_names_and_shapes_are_those_of_the_checkpoints() -> None:
    with torch.device("meta"):
        state = Motionformer().state_dict()
    linears = {
        "attn.qkv": (2304, 768), "attn.proj_q": (768, 768), "attn.proj_kv": (1536, 768), "attn.proj": (768, 768),
        "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072),
    }  # fmt: skip
    expected: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "temp_embed": (1, 8, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "patch_embed_3d.proj.weight": (768, 3, 2, 16, 16),
        "norm.weight": (768,),
        "pre_logits.fc.weight": (768, 768),
        "head.weight": (400, 768),
    }
    for block in range(12):
        expected |= {f"blocks.{block}.{norm}.weight": (768,) for norm in ("norm1", "norm2")}
        expected |= {f"blocks.{block}.{name}.weight": shape for name, shape in linears.items()}
    expected |= {name[:-6] + "bias": shape[:1] for name, shape in expected.items() if name.endswith("weight")}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert len(state) == 205
    assert round(sum(value.numel() for value in state.values()) / 1e6, 1) == 109.1


@pytest.mark.parametrize("sized", [False, True])
def test_the_attention_is_the_formula(values: Any, sized: bool) -> None:
    torch.manual_seed(0)
    attention = TrajectoryAttention(24, 3, FRAMES, values).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 1 + FRAMES * 5, 24, dtype=torch.float64)
    size = torch.randint(1, 9, x.shape[:2]).double() if sized else None
    weights = {f"attn.{name}": value.detach() for name, value in attention.state_dict().items()}
    for row, found in enumerate(attention(x, size)):
        expected = trajectory_attention(
            x[row], weights, "attn", num_heads=3, frames=FRAMES, values=values, size=None if size is None else size[row]
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_two_readings_of_the_values_differ(x: Tensor) -> None:
    torch.manual_seed(0)
    released = Motionformer(**TINY).double()
    paper = Motionformer(values="projected", **TINY).double()
    paper.load_state_dict(released.state_dict())
    assert not torch.allclose(released(x), paper(x), atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "proportional"), [([0, 0, 0], True), ([3, 2, 1], False), ([3, 2, 1], True), ([0, 7, 9], True)]
)
def test_the_model_is_the_formula(
    model: Motionformer, x: Tensor, values: str, schedule: list[int], proportional: bool
) -> None:
    patch(model, schedule, groups="frame", proportional=proportional)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    with recording(model) as trace:
        logits = model(x[:1])
    counts = [min(count, left // 2) for count, left in zip(schedule, (16, 16 - schedule[0], 9), strict=True)]
    expected, size, merged = motionformer(
        x[0], weights, num_heads=3, schedule=counts, values=values, proportional=proportional
    )
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-10)
    assert list(trace.groupings) == [block for block, count in enumerate(schedule) if count]
    for block, grouping in trace.groupings.items():
        index = grouping.index[0]
        groups = [(index == group).nonzero().flatten().tolist() for group in range(grouping.num_groups)]
        assert groups == merged[block]
    if any(schedule):
        assert torch.equal(trace.sizes[2][0], size)


def test_groups_hold_tokens_of_one_frame_after_each_block(model: Motionformer, x: Tensor) -> None:
    patch(model, [5, 3, 3], groups="frame")
    with recording(model) as trace:
        model(x)
    frame = torch.cat([torch.tensor([-1]), torch.arange(FRAMES).repeat_interleave(PER_FRAME)]).expand(2, -1)
    for block, left in enumerate([11, 8, 5]):
        grouping = trace.groupings[block]
        after = torch.full((2, 1 + FRAMES * left), -2).scatter(1, grouping.index, frame)
        assert torch.equal(after.gather(1, grouping.index), frame)  # no group holds tokens of two frames
        frame = torch.cat([torch.tensor([-1]), torch.arange(FRAMES).repeat_interleave(left)]).expand(2, -1)
        assert torch.equal(after, frame)  # and the groups are frame-major
        assert torch.equal(trace.sizes[block][:, 1:].unflatten(1, (FRAMES, -1)).sum(-1), torch.full((2, 4), 16.0))
        assert (trace.sizes[block][:, 0] == 1).all()


def test_nothing_to_merge_is_equal_to_the_bit(model: Motionformer, x: Tensor) -> None:
    before = model(x)
    assert torch.equal(patch(model, [0, 0, 0], groups="frame")(x), before)
    patch(model, [4, 0, 0], groups="frame")
    assert not torch.allclose(model(x), before)
    assert torch.equal(unpatch(model)(x), before)


def test_tokens_may_only_meet_within_frames(model: Motionformer) -> None:
    with pytest.raises(ValueError, match='Motionformer attends within frames: set groups="frame"'):
        patch(model, [1, 1, 1])


def test_clips_of_another_size_resize_the_positions(model: Motionformer) -> None:
    large = torch.randn(1, 3, 8, 96, 96, dtype=torch.float64)  # 336 px is to 224 px as 96 px is to 64 px
    before = model(large)
    grid = model.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, scale_factor=1.5, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    other = Motionformer(**TINY | {"image_size": 96, "values": model.blocks[0].attn.values}).double()
    state = model.state_dict() | {"pos_embed": torch.cat([model.pos_embed[:, :1], resized], dim=1)}
    other.load_state_dict(state)
    torch.testing.assert_close(other(large), before, rtol=0, atol=1e-12)
    patch(model, [6, 6, 6], groups="frame")
    with recording(model) as trace:
        model(large)
    assert [size.shape[1] for size in trace.sizes.values()] == [121, 97, 73]
    assert model(large[..., :64]).shape == (1, 5)  # and need not be square


def test_clips_of_another_length_are_refused(model: Motionformer, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, 8, H, W\), .* got shape \(2, 3, 6, 64, 64\)"):
        model(x[:, :, :6])


def test_epic_kitchens_has_two_heads(x: Tensor) -> None:
    model = Motionformer(**TINY | {"num_classes": (97, 300)}).double()
    verbs, nouns = model(x)
    assert (verbs.shape, nouns.shape) == ((2, 97), (2, 300))
    assert {name for name in model.state_dict() if name.startswith("head")} == {
        "head0.weight", "head0.bias", "head1.weight", "head1.bias",
    }  # fmt: skip
    verbs, nouns = patch(model, [2, 2, 2], groups="frame")(x)
    assert (verbs.shape, nouns.shape) == ((2, 97), (2, 300))


def test_all_parameters_learn_but_for_those_without_a_part(model: Motionformer, x: Tensor) -> None:
    patch(model, [2, 2, 2], groups="frame")
    model(x).square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("num_classes", [5, (3, 4)])
def test_a_checkpoint_is_loaded(tmp_path: Path, num_classes: Any, x: Tensor) -> None:
    model = Motionformer(**TINY | {"num_classes": num_classes, "width": 128, "num_heads": 2})
    torch.save({"epoch": 34, "model_state": model.state_dict(), "cfg": "TRAIN: ..."}, tmp_path / "model.pyth")
    loaded = load_motionformer(tmp_path / "model.pyth", values="projected")
    assert {block.attn.values for block in loaded.blocks} == {"projected"}
    loaded = load_motionformer(tmp_path / "model.pyth")
    expected, found = model(x.float()), loaded(x.float())
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_another_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    state = Motionformer(**TINY | {"width": 64, "num_heads": 1}).state_dict()
    del state["norm.bias"]
    for number, content in enumerate([state, {"model_state": state}, {"model_state": {"head.weight": torch.ones(1)}}]):
        path = tmp_path / f"{number}.pyth"
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=rf"{number}\.pyth is not a checkpoint of Motionformer with an entry model"
        ):
            load_motionformer(path)


def test_counts_of_the_paper() -> None:
    """18 tokens of each frame in each block (Pollard and Wray 2025): 196 178 … 17 9 5, until half of them are left."""
    model = Motionformer(**TINY | {"image_size": 224, "depth": 12, "num_classes": 2}).eval()
    patch(model, constant(12, 18), groups="frame")
    with recording(model) as trace, torch.no_grad():
        model(torch.randn(1, 3, 8, 224, 224))
    left = [(size.shape[1] - 1) // FRAMES for size in trace.sizes.values()]
    assert left == [178, 160, 142, 124, 106, 88, 70, 52, 34, 17, 9, 5]
