"""Tests of streams: outputs equal to the forward pass of whole clips, bounded memory, and cost."""

import gc
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vtm.merging import (
    NoMerger,
    TokenMerger,
    boundary_partition,
    center_partition,
    motion_partition,
    motion_weights,
    saliency_partition,
    saliency_weights,
    size_weights,
    uniform_partition,
)
from vtm.models import VTM, ClosedWindows, HeadOutput, SinusoidalTime, Stream
from vtm.system.measure import PeakMemory

MERGER = partial(TokenMerger, partition_factor=3, merge_count=0.6)
LEARNABLE = partial(
    MERGER, partition=saliency_partition, weighting=partial(saliency_weights, beta=2.0), saliency_weight=1.5
)
MERGERS = {
    "none": NoMerger,
    "uniform": partial(MERGER, partition=uniform_partition),
    "uniform by size": partial(MERGER, partition=uniform_partition, weighting=size_weights),
    "uniform by count": partial(MERGER, partition=uniform_partition, merge_count=2),
    "center": partial(MERGER, partition=center_partition),
    "boundary": partial(MERGER, partition=boundary_partition),
    "motion": partial(MERGER, partition=motion_partition),
    "motion by motion": partial(MERGER, partition=motion_partition, weighting=motion_weights),
    "learnable": LEARNABLE,
}
CHUNKS = (1, 3, 2, 5, 1, 1, 7, 13)  # cycled: chunks shorter than, across and much longer than the windows


def network(merge_layer=LEARNABLE, *, window_frames=(2, 4, 8), channels=(6, 6, 6), **options) -> VTM:
    torch.manual_seed(0)
    model = VTM(
        8, 3, window_frames=window_frames, channels=channels, num_heads=2, dropout=0.5, merge_layer=merge_layer,
        **options,
    )  # fmt: skip
    for parameter in model.parameters():  # so that no bias is zero and no norm is one
        nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def clip(frames, *, batch=2, height=2, width=3, channels=8) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(batch, frames, height, width, channels, generator=draw).double(),
        "motion": torch.rand(batch, frames, height, width, generator=draw).double(),
    }


def streamed(model: VTM, inputs: dict[str, Tensor], *, chunks=CHUNKS) -> tuple[Stream, list[ClosedWindows]]:
    stream, closed, start = Stream(model), [], 0
    frames = inputs["features"].shape[1]
    while start < frames:
        for chunk in chunks:
            part = {name: value[:, start : start + chunk] for name, value in inputs.items()}
            closed += stream.update(part.pop("features"), **part)
            start += chunk
    assert stream.frames == frames
    return stream, closed


def check_traces(closed: list[ClosedWindows], whole: HeadOutput, *, batch: int) -> None:
    """Compare the concatenated windows of each block with the windows of the whole clip."""
    for number, expected in enumerate(whole.blocks):
        windows = [window for window in closed if window.block == number]
        rows = [window.trace.targets.shape[0] // batch for window in windows]
        assert [window.first for window in windows] == [sum(rows[:i]) for i in range(len(rows))]

        def together(tensors):
            return torch.cat([t.reshape(batch, -1, *t.shape[1:]) for t in tensors], 1).flatten(0, 1)

        assert torch.equal(together([w.trace.grouping.index for w in windows]), expected.grouping.index)
        assert torch.equal(together([w.trace.grouping.anchor for w in windows]), expected.grouping.anchor)
        assert torch.equal(together([w.trace.targets for w in windows]), expected.targets)
        assert {w.trace.grouping.num_groups for w in windows} == {expected.grouping.num_groups}
        if expected.saliency is None:
            assert all(w.trace.saliency is None for w in windows)
        else:
            torch.testing.assert_close(together([w.trace.saliency for w in windows]), expected.saliency)


@pytest.mark.parametrize("strategy", MERGERS)
@pytest.mark.parametrize("chunks", [(1,), (4,), (24,), CHUNKS], ids=str)
def test_a_stream_equals_the_whole_clip(strategy, chunks):
    model = network(MERGERS[strategy], time_embedding=SinusoidalTime())
    inputs = clip(24)  # three windows of the last block
    stream, closed = streamed(model, inputs, chunks=chunks)
    whole = model(**inputs)
    torch.testing.assert_close(stream.logits(), whole.logits, rtol=0, atol=1e-10)
    check_traces(closed, whole, batch=2)


def test_parts_of_a_clip_have_the_embeddings_of_the_whole_clip():
    model, inputs = network(time_embedding=SinusoidalTime()), clip(5)
    whole = model.embed(**inputs)
    for start, stop in ((0, 2), (2, 5)):
        part = model.embed(inputs["features"][:, start:stop], motion=inputs["motion"][:, start:stop], first=start)
        tokens = slice(start * 6, stop * 6)  # 2 × 3 tokens per frame
        assert torch.equal(part.x, whole.x[:, tokens])
        assert torch.equal(part.position, whole.position[:, tokens])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_dtype_of_the_model(dtype):
    model, inputs = network().to(dtype), {"features": clip(16)["features"].to(dtype)}
    expected = model(**inputs).logits
    stream, _ = streamed(model, inputs)
    assert stream.logits().dtype == dtype
    atol = 1e-4 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
    torch.testing.assert_close(stream.logits(), expected, rtol=0, atol=atol)


def test_the_mean_of_many_equal_windows_in_half_precision_equals_the_mean_of_one():
    model, features = network().bfloat16(), clip(8)["features"].bfloat16()
    stream = Stream(model)
    for _ in range(100):
        stream.update(features)
    torch.testing.assert_close(stream.logits(), model(features).logits)


def test_inference_mode_and_autocast():
    model, inputs = network().float(), {"features": clip(16)["features"].float()}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        stream, _ = streamed(model, inputs)
        expected = model(**inputs).logits
        assert stream.logits().dtype == expected.dtype == torch.bfloat16
    assert not stream.logits().requires_grad  # after inference mode as well
    torch.testing.assert_close(stream.logits(), expected.float(), rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stream_on_a_gpu():
    model, inputs = network(time_embedding=SinusoidalTime()).cuda(), {k: v.cuda() for k, v in clip(19).items()}
    mask = torch.arange(24, device="cuda").expand(2, 24) < 19
    stream, _ = streamed(model, inputs)
    expected = model(nn.functional.pad(inputs["features"], (0, 0, 0, 0, 0, 0, 0, 5)), mask=mask).logits
    torch.testing.assert_close(stream.logits(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", MERGERS)
def test_masked_frames_are_ignored(strategy):
    model, inputs = network(MERGERS[strategy], time_embedding=SinusoidalTime()), clip(24)
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, 1:3] = False  # within windows
    mask[1, 6:16] = False  # a whole window of every block, and more
    mask[1, 21:] = False
    inputs["features"] = inputs["features"].masked_fill(~mask[:, :, None, None, None], torch.nan)
    stream, closed = streamed(model, inputs | {"mask": mask})
    whole = model(**inputs, mask=mask)
    torch.testing.assert_close(stream.logits(), whole.logits, rtol=0, atol=1e-10)
    check_traces(closed, whole, batch=2)


def test_the_first_mask_may_come_with_any_chunk():
    model, inputs = network(), clip(16)
    mask = torch.arange(16).expand(2, 16) < 11
    stream = Stream(model)
    for start in range(16):
        part = slice(start, start + 1)
        stream.update(inputs["features"][:, part], mask=None if start < 11 else mask[:, part])
    expected = model(inputs["features"], mask=mask).logits
    torch.testing.assert_close(stream.logits(), expected, rtol=0, atol=1e-10)


def test_a_stream_without_real_frames_equals_the_whole_clip():
    model, features, mask = network(), clip(8)["features"], torch.zeros(2, 8, dtype=torch.bool)
    stream, _ = streamed(model, {"features": features, "mask": mask})
    torch.testing.assert_close(stream.logits(), model(features, mask=mask).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", MERGERS)
@pytest.mark.parametrize("channels", [(6, 6, 6), (8, 8, 6), (4, 6, 6)], ids=str)
def test_logits_at_any_time_equal_those_of_the_frames_so_far(strategy, channels):
    model, inputs = network(MERGERS[strategy], channels=channels), clip(19)
    fitting = [frames for frames in range(1, 25) if fits(model, frames)]
    stream = Stream(model)
    for frames in range(1, 20):
        stream.update(inputs["features"][:, frames - 1 : frames], motion=inputs["motion"][:, frames - 1 : frames])
        padded = min(length for length in fitting if length >= frames)
        missing = padded - frames
        expected = model(
            nn.functional.pad(inputs["features"][:, :frames], (0, 0, 0, 0, 0, 0, 0, missing)),
            motion=nn.functional.pad(inputs["motion"][:, :frames], (0, 0, 0, 0, 0, missing)),
            mask=torch.arange(padded).expand(2, padded) < frames,
        )
        torch.testing.assert_close(stream.logits(), expected.logits, rtol=0, atol=1e-10)


def fits(model: VTM, frames: int) -> bool:
    try:
        return bool(model.plan(frames, 2, 3))
    except ValueError:
        return False


@pytest.mark.parametrize("window_frames", [(3,), (2, 2, 6), (1, 4)])
def test_a_stream_equals_the_whole_clip_for_any_window_lengths(window_frames):
    model = network(window_frames=window_frames, channels=(6,) * len(window_frames))
    inputs = {"features": clip(12)["features"]}
    stream, closed = streamed(model, inputs)
    whole = model(**inputs)
    torch.testing.assert_close(stream.logits(), whole.logits, rtol=0, atol=1e-10)
    check_traces(closed, whole, batch=2)


def test_batches_of_first_windows_end_with_a_window_of_the_second_block():
    model, rows = network(), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].x.shape[0]))
    Stream(model).update(clip(24, batch=1)["features"])
    assert rows == [2] * 6


def test_frames_may_be_overwritten_after_update():
    model, inputs = network(NoMerger), clip(8)
    stream = Stream(model)
    for start in range(8):
        part = {name: value[:, start : start + 1].clone() for name, value in inputs.items()}
        stream.update(**part)
        for value in part.values():
            value.fill_(torch.nan)
    torch.testing.assert_close(stream.logits(), model(**inputs).logits, rtol=0, atol=1e-10)


def state(stream: Stream) -> list[Tensor]:
    """List the tensors that a stream keeps, without its model."""
    kept = [value for name, value in vars(stream).items() if name != "model"]
    return [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]


def state_bytes(stream: Stream) -> int:
    """Return the bytes of the storages of these tensors, which may be views of larger ones."""
    storages = [tensor.untyped_storage() for tensor in state(stream)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("merge_layer", [LEARNABLE, NoMerger])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_stream_keeps_only_open_windows(merge_layer, chunk):
    model = network(merge_layer).float()
    # x (C), size, motion and saliency in fp32, position as three int64, mask
    bound = sum(plan.num_tokens * (4 * (plan.in_channels + 3) + 3 * 8 + 1) for plan in model.plan(8, 2, 3))
    bound += 4 * (6 + 1)  # sum and count
    stream, most = Stream(model), 0
    inputs = {name: value.float() for name, value in clip(chunk, batch=1).items()}
    for _ in range(512 // chunk):
        stream.update(**inputs)
        most = max(most, state_bytes(stream))
    assert most <= bound
    assert not any(tensor.requires_grad for tensor in state(stream))
    assert (most > bound / 10) == (chunk < 64)  # the bound is tight for short chunks; whole windows leave only sums


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_frames():
    torch.manual_seed(0)
    model = VTM(64, 3, window_frames=(2, 4, 16), channels=(64, 64, 64), num_heads=2, dropout=0.0, merge_layer=LEARNABLE)
    features = torch.randn(1, 16, 16, 16, 64)
    peaks = []
    for repeats in (2, 2, 64):  # the first to warm up
        stream = Stream(model.eval())
        gc.collect()
        with PeakMemory("cpu") as peak:
            for _ in range(repeats):
                stream.update(features)
        peaks.append(peak.bytes)
    if None in peaks:
        pytest.skip("the system does not report the peak resident memory")
    assert peaks[2] < peaks[1] + 64 * features.nbytes / 8


def test_the_cost_of_a_stream_is_linear_in_the_frames_and_equal_to_whole_clips():
    torch.manual_seed(0)
    merge_layer = partial(LEARNABLE, partition_factor=6, merge_count=0.8)
    model = VTM(
        8, 3, window_frames=(6, 30, 60, 120, 360), channels=(8,) * 5, num_heads=2, dropout=0.0,
        merge_layer=merge_layer,
    ).eval()  # fmt: skip
    stream, frames, flops = Stream(model), torch.randn(1, 360, 1, 1, 8), []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            stream.update(frames)
        flops.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        model(frames)
    head = 2 * 8 * 3  # the stream runs its head only in logits()
    assert flops == [counter.get_total_flops() - head] * 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"features": torch.zeros(2, 3, 8)}, r"\(B, T, H, W, C\) with C = 8, got \(2, 3, 8\)"),
        ({"features": torch.zeros(2, 3, 2, 3, 5)}, r"C = 8, got \(2, 3, 2, 3, 5\)"),
        ({"features": torch.zeros(1, 3, 2, 3, 8)}, r"\(2, 2, 3, False\), got \(1, 2, 3, False\): start a new stream"),
        ({"features": torch.zeros(2, 3, 4, 3, 8)}, r"\(2, 2, 3, False\), got \(2, 4, 3, False\)"),
        (clip(3), r"\(2, 2, 3, False\), got \(2, 2, 3, True\)"),
        (
            {"features": clip(3)["features"], "mask": torch.ones(2, 4).bool()},
            r"mask \(B, T\) = \(2, 3\) .*, got \(2, 4\)",
        ),
        ({"features": clip(3)["features"], "mask": torch.ones(2, 3)}, r"dtype torch.bool, got .* torch.float32"),
        (
            {"features": clip(3)["features"], "motion": torch.ones(2, 4, 2, 3)},
            r"motion .* \(2, 3, 2, 3\), got \(2, 4, 2",
        ),
    ],
)
def test_shapes_that_do_not_match_are_errors_that_print_both(inputs, message):
    stream = Stream(network(NoMerger))
    stream.update(clip(3)["features"])
    with pytest.raises(ValueError, match=message):
        stream.update(**inputs)


def test_a_merge_count_that_is_too_large_is_an_error_at_the_first_frame():
    with pytest.raises(ValueError, match=r"block 1 of 3 .2 frames.: merge_count = 99 tokens"):
        Stream(network(partial(LEARNABLE, merge_count=99))).update(clip(1)["features"])


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match=r"model is in training mode: call model.eval\(\)"):
        Stream(network().train())


def test_sampling_in_evaluation_is_refused():
    with pytest.raises(ValueError, match=r"merging\.sample_in_eval=false"):
        Stream(network(partial(LEARNABLE, sample_in_eval=True)))


def test_a_stream_without_frames_has_no_logits():
    stream = Stream(network())
    assert stream.update(clip(0)["features"]) == []
    with pytest.raises(ValueError, match="a stream without frames has no logits"):
        stream.logits()
