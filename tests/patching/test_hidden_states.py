"""The hidden states of patched models of transformers are split into tokens, sizes and places."""

import pytest
import torch
from torch import Tensor, nn

from tests.patching.test_patch import CASES, SCHEDULE, Case, logits, patched
from vtm.patching import merge_similar, patch, recording, split_hidden_states, unpatch

VIDEO = [name for name in CASES if name.startswith(("ViViT", "VideoMAE", "TimeSformer"))]


@pytest.fixture(params=VIDEO)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def model(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval()


@pytest.fixture
def x(case: Case) -> Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_and_places_are_those_of_the_trace(case: Case, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    patched(model.to(dtype), case, [3, 0, 1])
    with recording(model) as trace:
        output = model(x.to(dtype), output_hidden_states=True)
    states = split_hidden_states(model, output.hidden_states)
    assert [state.x.shape for state in states] == [
        (2, case.num_tokens - case.frames * taken, 24) for taken in (0, 3, 3, 4)
    ]
    assert torch.equal(states[0].size, torch.ones(2, case.num_tokens))
    assert torch.equal(states[0].place, torch.arange(case.num_tokens).expand(2, -1))
    for state, size in zip(states[1:], [trace.sizes[0], trace.sizes[0], trace.sizes[2]], strict=True):
        assert state.size.dtype == torch.float32
        assert state.place.dtype == torch.int64
        assert torch.equal(state.size, size)
        assert torch.equal(state.size.sum(1), torch.full((2,), float(case.num_tokens)))
    assert torch.equal(states[-1].place, trace.clip_grouping().anchor)


def test_tokens_are_those_of_the_model(case: Case, model: nn.Module, x: Tensor) -> None:
    """The first block maps the tokens like the model does that is not patched, but for what it merges."""
    before = model(x, output_hidden_states=True).hidden_states
    patched(model, case, [0, 0, 2])
    after = model(x, output_hidden_states=True)
    states = split_hidden_states(model, after.hidden_states)
    for state, tokens in zip(states[:3], before[:3], strict=True):
        assert torch.equal(state.x, tokens)
    base = next(model.children())
    expected = states[3].x if base.layernorm is None else base.layernorm(states[3].x)
    torch.testing.assert_close(base(x)[0], expected)


def test_asking_for_them_changes_no_logit_and_leaves_nothing_behind(case: Case, model: nn.Module, x: Tensor) -> None:
    before = logits(model, x)
    after = logits(patched(model, case), x)
    assert torch.equal(model(x, output_hidden_states=True).logits, after)
    assert torch.equal(logits(unpatch(model), x), before)
    assert [hidden.shape[-1] for hidden in model(x, output_hidden_states=True).hidden_states] == [24] * 4


def test_other_tensors_are_refused(case: Case, model: nn.Module, x: Tensor) -> None:
    hidden_states = model(x, output_hidden_states=True).hidden_states
    with pytest.raises(ValueError, match="expected a patched model"):
        split_hidden_states(model, hidden_states)
    patched(model, case)
    hidden_states = model(x, output_hidden_states=True).hidden_states
    message = "expected hidden states of this patched model, of 24 or 26 or 28 channels, the first without state, got"
    for wrong in (hidden_states[1][..., :25], hidden_states[1][..., :24]):
        with pytest.raises(ValueError, match=message):
            split_hidden_states(model, [hidden_states[0], wrong])


def test_the_last_hidden_state_has_no_state(case: Case, model: nn.Module, x: Tensor) -> None:
    patched(model, case, SCHEDULE, reduce=merge_similar)
    output = next(model.children())(x, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, case.num_tokens - case.frames * sum(SCHEDULE), 24)
    assert output.hidden_states[-1].shape[-1] == 26


def test_masked_clips_of_videomae_are_merged_by_clip_only() -> None:
    pytest.importorskip("transformers")
    model = CASES["VideoMAE"].make().videomae.eval()
    x = torch.randn(2, 8, 3, 32, 32)
    masked = torch.rand(2, 64).argsort(1) < 32
    patch(model, SCHEDULE)
    assert model(x, bool_masked_pos=masked).last_hidden_state.shape == (2, 26, 24)
    patch(model, SCHEDULE, groups="frame")
    with pytest.raises(ValueError, match='groups="frame" needs all 64 tokens of a clip, got 32'):
        model(x, bool_masked_pos=masked)
