"""The needs of a row are known before it runs, and follow from its shapes."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from vtm.benchmark import counting
from vtm.benchmark.counting import free_bytes
from vtm.benchmark.network import CLASSES, Workload
from vtm.benchmark.rows import Row, Setting

needs = cache(counting.needs)  # takes half a second, and tests share rows
SMALL = Setting(60, 2, 2, 16, "cpu", threads=1, repeats=1, limit=20, overrides=("model.channels=[16,8,8]",))


def formula(row: Row, setting: Setting, matching: float) -> float:
    """Count FLOP by formula; the share `matching` of the N × M key products is computed."""
    workload = Workload(row, setting)
    flop = 0.0
    for plan in workload.plan:
        n, c = plan.num_tokens, plan.in_channels
        projections = 2 * n * c * 3 * c + 2 * (n - plan.merge_count) * c * plan.out_channels
        match = 2 * n * plan.num_targets * c * matching if plan.merge_count else 0
        saliency = 2 * n * c if plan.merge_count and row.strategy == "learnable" else 0
        flop += row.batch * plan.windows * (projections + 4 * n * n * c + match + saliency)
    return flop + 2 * row.batch * workload.model.widths[-1] * CLASSES


@pytest.mark.parametrize(("plain", "precision"), [(False, "32-true"), (False, "bf16-mixed"), (True, "32-true")])
def test_the_arithmetic_without_merging_is_the_formula(plain, precision):
    row = Row("none", plain=plain, batch=2, precision=precision)
    assert needs(row, SMALL).flop == formula(row, SMALL, matching=0)
    features_gradient = 2 * 2 * (60 * 4) * 16 * 48  # the first projection's input needs no gradient
    training = needs(replace(row, training=True), SMALL).flop
    assert training in (3 * needs(row, SMALL).flop - features_gradient, 3 * needs(row, SMALL).flop)


@pytest.mark.parametrize("strategy", ["uniform", "learnable"])
def test_the_arithmetic_with_merging_is_the_formula(strategy):
    row = Row(strategy)
    least, most = (formula(row, SMALL, matching) for matching in (1 / 2, 1))  # matching only sources, or all tokens
    assert least <= needs(row, SMALL).flop <= most


def test_the_auxiliary_path_counts_in_training():
    assert needs(Row("learnable", training=True), SMALL).flop > 1.8 * needs(Row("uniform", training=True), SMALL).flop


def test_the_paper_s_network_merges_two_thirds_of_the_arithmetic_away():
    paper = Setting(60, 16, 16, 1024, "cpu", threads=1, repeats=5, limit=20)
    assert needs(Row("none"), paper).flop == pytest.approx(728.8e9, rel=1e-3)
    assert needs(Row("learnable"), paper).flop == pytest.approx(247e9, rel=0.02)


def test_plain_attention_needs_the_memory_of_its_matrices():
    plan = Workload(Row("none"), SMALL).plan
    matrices = max(4 * 8 * p.windows * p.num_tokens**2 for p in plan)
    plain, fused = (needs(Row("none", plain=plain), SMALL).memory_bytes for plain in (True, False))
    assert plain > 2 * matrices > fused
    assert needs(Row("none", plain=True, batch=2), SMALL).memory_bytes > 1.8 * plain
    assert needs(Row("none", plain=True, training=True), SMALL).memory_bytes > plain


def test_moved_bytes_are_inputs_weights_gradients_and_logits():
    workload = Workload(Row("none"), SMALL)
    features, weights = 4 * 60 * 4 * 16, 4 * sum(parameter.numel() for parameter in workload.model.parameters())
    assert needs(Row("none"), SMALL).moved_bytes == features + weights + 4 * CLASSES
    assert needs(Row("none", training=True), SMALL).moved_bytes == features + 2 * weights + 4 * CLASSES
    more = needs(Row("learnable"), SMALL).moved_bytes - needs(Row("none"), SMALL).moved_bytes
    assert more == 4 * (16 + 16 + 8)  # the saliency estimators, but no auxiliary path


def test_the_encoder_is_counted():
    setting = replace(SMALL, overrides=("encoder=vit_tiny_random",))
    alone, both = needs(Row("none"), setting), needs(Row("none", encoder=True), setting)
    assert both.flop > alone.flop
    assert both.moved_bytes > 60 * 3 * 96 * 96  # the frames
    assert both.memory_bytes > alone.memory_bytes


def test_a_stream_is_counted_as_the_clip():
    assert needs(Row("learnable", streaming=True), SMALL) == needs(Row("learnable"), SMALL)


def test_counting_takes_no_memory_and_leaves_no_fake_tensors():
    assert needs(Row("none", plain=True, batch=64), Setting(60, 64, 64, 64, "cpu", 1, 1, 20)).memory_bytes > 1e14
    assert type(torch.ones(1)) is torch.Tensor


def test_free_memory_is_known_here():
    assert 1e6 < free_bytes("cpu") < 1e15
