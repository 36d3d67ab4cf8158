"""The state passes between the blocks exactly, and what cannot be patched or undone is an error."""

import pytest
import torch

from tests.patching.test_patch import SCHEDULE, vit
from vtm.patching import patch, recording, unpatch


def test_a_block_that_runs_several_times_is_refused() -> None:
    model = vit()
    model.blocks[2] = model.blocks[0]
    with pytest.raises(TypeError, match="VisionTransformer runs one of its blocks several times"):
        patch(model, SCHEDULE)


@pytest.mark.parametrize("name", ["block", "model"])
def test_a_patched_part_of_another_class_is_not_passed_over_by_unpatch(name: str) -> None:
    model = patch(vit(global_pool="avg"), SCHEDULE, pool="size")
    part = model.blocks[1] if name == "block" else model
    part.__class__ = type("Sharded", (type(part),), {})
    for undo in (unpatch, lambda model: patch(model, SCHEDULE)):
        with pytest.raises(TypeError, match="Sharded"):
            undo(model)


def test_too_many_tokens_for_half_precision_are_refused() -> None:
    merging = patch(vit(), SCHEDULE).blocks[0].merging
    tokens = torch.zeros(1, 65_505, 48, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="a clip can have up to 65,504 tokens while it is merged, got 65505"):
        merging.enter(tokens)
    assert merging.enter(tokens[:, 1:]).size.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sizes_and_places_pass_between_blocks_exactly(dtype: torch.dtype) -> None:
    merging = patch(vit(), SCHEDULE).blocks[0].merging
    state = merging.enter(torch.zeros(1, 65_504, 48, dtype=dtype))
    state = state._replace(size=torch.arange(1.0, 65_505, dtype=state.size.dtype)[None])
    passed = merging.enter(merging.leave(state))
    assert torch.equal(passed.size, state.size)
    assert torch.equal(passed.place, state.place)


def test_a_recording_goes_on_after_one_inside_it() -> None:
    model, x = patch(vit(), SCHEDULE), torch.randn(1, 3, 64, 64)
    with recording(model) as outer:
        with recording(model) as inner:
            model(x)
        assert not outer.groupings
        model(2 * x)
    assert set(outer.groupings) == set(inner.groupings) == {0, 1, 2}
    model(x)
    assert torch.equal(outer.sizes[2].sum(1), torch.tensor([17.0]))
