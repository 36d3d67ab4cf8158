"""Samplers divide clips among ranks: all of them exactly once in evaluation, in equal numbers in training."""

import pytest

from vtm.data.samplers import EvalSampler, TrainSampler


def test_train_sampler_leaves_out_other_items_each_epoch():
    samplers = [TrainSampler(11, seed=0, rank=rank, world_size=4) for rank in range(4)]
    left_out = set()
    for epoch in range(20):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [list(sampler) for sampler in samplers]
        assert [len(part) for part in parts] == [len(sampler) for sampler in samplers] == [2] * 4
        assert len(set().union(*parts)) == 8
        left_out |= set(range(11)).difference(*parts)
    assert left_out == set(range(11))


def test_train_sampler_needs_an_item_for_every_rank():
    with pytest.raises(ValueError, match=r"3 for 4 devices"):
        TrainSampler(3, seed=0, rank=0, world_size=4)


def test_eval_sampler_may_leave_a_rank_without_items():
    parts = [EvalSampler(2, rank=rank, world_size=3) for rank in range(3)]
    assert [list(part) for part in parts] == [[0], [1], []]
    assert [len(part) for part in parts] == [1, 1, 0]
