"""Every kind of row is measured at a tiny size; a row that cannot be measured states why."""

from dataclasses import replace

import pytest
import torch

from vtm.benchmark import measuring
from vtm.benchmark.measuring import Result, matrix_rate, measure
from vtm.benchmark.network import Workload
from vtm.benchmark.processes import measured_apart
from vtm.benchmark.rows import Row, Setting

SMALL = Setting(
    4, 2, 2, 16, "cpu", 1, 1, 20, ("model.window_frames=[2,4]", "model.channels=[16,8]", "encoder=vit_tiny_random")
)
TINY_ENCODER = ("encoder.model_args.depth=1", "encoder.image_size=32")


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch):
    monkeypatch.setattr(measuring, "_MATRIX", {"cpu": 64})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def last(row: Row, setting: Setting = SMALL, rate: float | None = None) -> Result:
    *_, result = measure(row, setting, rate)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        Row("none", plain=True),
        Row("none", training=True, batch=2),
        Row("motion", training=True),
        Row("learnable", precision="bf16-mixed"),
        Row("learnable", training=True, precision="bf16-mixed"),
        Row("learnable", overrides=("merging.partition_factor=2",)),
        Row("learnable", frames=8),
        Row("motion", frames=8, streaming=True),
    ],
    ids=lambda row: row.name,
)
def test_a_row_is_measured(row):
    result = last(row)
    assert result.problem == ""
    assert result.seconds > 0
    assert result.rate > 0
    assert result.flop > 0
    assert isinstance(result.peak_bytes, int)


def test_where_the_time_of_learnable_goes_is_measured():
    inference, training = last(Row("learnable")).details, last(Row("learnable", training=True)).details
    assert 0 < inference["% in partition, match and merge"] < 100
    assert inference["times its projections and attention alone"] > 1
    assert training["times forward and backward of the main path in evaluation"] > 0
    assert last(Row("uniform")).details == {}


def test_the_encoder_is_measured_with_the_head(monkeypatch):
    seconds = iter([4.0, 1.0, 1.0])  # of the whole, of the head, and of a matrix product
    monkeypatch.setattr(measuring, "median_seconds", lambda call, **_: (call(), next(seconds))[1])
    result = last(Row("learnable", encoder=True), replace(SMALL, overrides=SMALL.overrides + TINY_ENCODER))
    assert result.seconds == 4.0
    assert result.details["% in the head"] == 25.0


def test_in_training_the_head_s_part_has_its_backward_pass(monkeypatch):
    calls = []
    monkeypatch.setattr(measuring, "median_seconds", lambda call, **_: (call(), calls.append(call), 1.0)[2])
    setting = replace(SMALL, overrides=SMALL.overrides + TINY_ENCODER)
    assert last(Row("learnable", training=True, encoder=True), setting).details == {"% in the head": 100.0}
    workload = calls[0]
    workload.model.zero_grad(set_to_none=True)
    calls[1]()
    assert all(parameter.grad is not None for parameter in workload.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "setting"),
    [
        (Row("none", plain=True), replace(SMALL, frames=60, height=8, width=8, channels=64)),  # 50 MB of N × N matrices
        (
            Row("learnable"),
            Setting(60, 8, 8, 128, "cpu", 1, 1, 20, ("model.channels=[64,32,32]", "model.window_frames=[4,20,60]")),
        ),
    ],
    ids=["plain attention", "learnable"],
)
def test_the_peak_is_of_the_tensors_and_has_nothing_of_the_start_of_a_process(row, setting):
    result = measured_apart(measure, row, setting, None)
    assert result.problem == ""
    if result.peak_bytes is None:
        pytest.skip("the system does not tell how much memory is in use")
    workload = Workload(row, setting)
    held = workload.inputs.nbytes + sum(parameter.nbytes for parameter in workload.model.parameters())
    assert 0.7 < result.peak_bytes / (result.needed_bytes - held) < 1.3


def test_compilation_is_told_apart_from_running(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    result = last(Row("learnable", compiled=True))
    assert len(compiled) == 1
    assert result.details["s to compile"] > 0


def test_a_row_that_does_not_fit_reports_its_memory_and_is_not_run(monkeypatch):
    monkeypatch.setattr(measuring, "Workload", None)
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 1000)
    result = last(Row("none", plain=True, batch=16), replace(SMALL, height=64, width=64))
    assert result.seconds is None
    assert result.problem == f"needs {result.needed_bytes / 1e9:.1f} GB, but 0.0 GB are free"
    assert result.needed_bytes > 2 * 16 * 8 * 4 * (4 * 64 * 64) ** 2  # bytes of the N × N matrices


def test_a_row_that_takes_too_long_is_skipped(monkeypatch):
    monkeypatch.setattr(measuring, "Workload", None)
    result = last(Row("learnable"), rate=1.0)
    assert result.problem == f"skipped: its arithmetic alone takes over {result.flop} s per call (--limit)"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
    ],
)
def test_running_out_of_memory_is_a_cell_too(monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(measuring, "_measured", fail)
    result = last(Row("learnable"))
    assert result.problem == f"out of memory; needs about {result.needed_bytes / 1e9:.1f} GB"


def test_a_mistake_of_ours_is_no_cell(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(measuring, "_measured", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        last(Row("learnable"))
    assert last(Row("learnable", compiled=True)).problem.startswith("torch.compile failed: a bug")


def test_clips_that_fit_no_window_say_so():
    assert "do not fit window_frames" in last(Row("learnable"), replace(SMALL, frames=3)).problem
    assert "one entry per block" in last(Row("none", overrides=("model.channels=[16]",))).problem


def test_the_matrix_rate_is_of_its_arithmetic(monkeypatch):
    monkeypatch.setattr(measuring, "median_seconds", lambda call, **_: (call(), 0.5)[1])
    assert matrix_rate(torch.device("cpu"), torch.bfloat16, repeats=1) == 2 * 64**3 / 0.5
