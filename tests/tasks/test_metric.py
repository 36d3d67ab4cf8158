"""Tests of the metrics of videos: averages, intervals, baselines, and two processes with unequal numbers of clips."""

import math
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from vtm.tasks.classification import majority_baseline
from vtm.tasks.intervals import bootstrap_interval
from vtm.tasks.metric import VideoAccuracy, VideoMetric, VideoMSE, average_clips
from vtm.tasks.regression import mean_baseline


def clips(seed: int = 0, videos: int = 9, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return random probabilities, targets and videos of one to four clips per video, in random order."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (videos,), generator=generator)
    video = torch.arange(videos).repeat_interleave(counts)
    video = video[torch.randperm(len(video), generator=generator)]
    target = torch.randint(classes, (videos,), generator=generator)[video]
    return torch.rand(len(video), classes, generator=generator).softmax(1), target, video


def looped(scores: Tensor, target: Tensor, video: Tensor) -> dict[int, tuple[int, int]]:
    """Return the prediction and target of each video, computed one clip at a time."""
    answers = {}
    for index in sorted(set(video.tolist())):
        chosen = [n for n in range(len(video)) if video[n] == index]
        mean = [sum(float(scores[n, k]) for n in chosen) / len(chosen) for k in range(scores.shape[1])]
        answers[index] = (mean.index(max(mean)), int(target[chosen[0]]))
    return answers


def test_half_precision_scores_are_averaged_in_full_precision() -> None:
    metric = VideoMSE()
    metric.update(
        torch.full((1000,), 0.1, dtype=torch.bfloat16), torch.zeros(1000), torch.zeros(1000, dtype=torch.int64)
    )
    assert float(metric.compute()) == pytest.approx(float(torch.tensor(0.1).bfloat16()) ** 2)


def test_reset_removes_all_clips() -> None:
    metric = VideoAccuracy(3)
    metric.update(*clips(0))
    metric.compute()
    metric.reset()
    metric.update(*clips(1, videos=4))
    assert metric.summary()["n"] == 4


def test_invalid_updates_are_errors() -> None:
    scores, target, video = clips()
    with pytest.raises(ValueError, match=r"expected scores \(\d+, 4\), got \(\d+, 3\)"):
        VideoAccuracy(4).update(scores, target, video)
    with pytest.raises(ValueError, match=r"expected scores \(\d+,\), got \(\d+, 3\)"):
        VideoMSE().update(scores, target, video)
    with pytest.raises(ValueError, match=r"expected target \(B,\)"):
        VideoAccuracy(3).update(scores, target[:-1], video)
    with pytest.raises(ValueError, match=r"expected video \(B,\)"):
        VideoAccuracy(3).update(scores, target, video[:, None])
    with pytest.raises(TypeError, match="expected video as int64"):
        VideoAccuracy(3).update(scores, target, video.float())
    with pytest.raises(TypeError, match="expected target as int64"):
        VideoAccuracy(3).update(scores, target.float(), video)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_invalid_sets_of_clips_are_errors() -> None:
    for metric in (VideoAccuracy(3), VideoMSE()):
        with pytest.raises(ValueError, match="the evaluated split is empty"):
            metric.compute()
    metric = VideoAccuracy(3)
    metric.update(torch.eye(3), torch.tensor([0, 2, 1]), torch.tensor([5, 6, 5]))
    with pytest.raises(ValueError, match="video 5 of the split has both"):
        metric.compute()
    metric.reset()
    metric.update(torch.eye(3), torch.tensor([0, 3, 1]), torch.arange(3))
    with pytest.raises(ValueError, match=r"expected classes in \[0, 3\), found class 3"):
        metric.compute()
    metric.reset()
    metric.update(torch.eye(3), torch.tensor([0, 2, 1]), torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match="expected a cluster for each video up to 7, got 3"):
        metric.summary(clusters=["a", "b", "c"])


def test_damaged_videos_are_counted_once() -> None:
    metric = VideoMSE()
    metric.update(torch.zeros(4), torch.zeros(4), torch.tensor([0, 1, 1, 2]), torch.tensor([False, True, True, False]))
    metric.update(torch.zeros(2), torch.zeros(2), torch.tensor([2, 3]), torch.tensor([True, False]))
    metric.update(torch.zeros(1), torch.zeros(1), torch.tensor([4]))
    assert metric.summary()["damaged_videos"] == 2


def test_clusters_are_found_by_the_index_of_the_video_and_widen_the_interval() -> None:
    cameras, performances = 5, 16
    metric = VideoAccuracy(2)
    right = torch.arange(performances).remainder(4).gt(0).repeat_interleave(cameras)  # whole performances are wrong
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    metric.update(torch.eye(2)[right.long()][order], torch.ones(len(right), dtype=torch.int64), order)
    performance = [index // cameras for index in range(len(right))]
    low, high = metric.summary(clusters=performance)["interval"]
    alone_low, alone_high = metric.summary()["interval"]
    assert low < alone_low < 0.75 < alone_high < high
    # 16 independent trials, not 80: the standard deviation is √(p(1 - p)/16)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.75 * 0.25 / 16), rel=0.1)


def test_only_clusters_of_evaluated_videos_are_used() -> None:
    metric = VideoMSE()
    metric.update(torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.zeros(4), torch.tensor([7, 0, 3, 5]))
    summary = metric.summary(clusters="aabbccdd")
    assert summary["interval"] == list(bootstrap_interval(torch.tensor([1.0, 4.0, 9.0, 16.0]), clusters="abcd"))
    same = metric.summary(clusters=["x", None, None, "x", None, "y", None, "y"])
    assert same["interval"] == list(bootstrap_interval(torch.tensor([1.0, 4.0, 9.0, 16.0]), clusters="xxyy"))


def test_baselines() -> None:
    assert majority_baseline([2, 2, 0, 0, 1], [0, 0, 2, 1]) == 0.5  # ties go to the lower class
    assert majority_baseline(torch.tensor([1, 1, 0]), torch.tensor([0, 2])) == 0
    assert mean_baseline(torch.tensor([0.0, 1.0]), [0.5, 2.5]) == 2.0
    for baseline in (majority_baseline, mean_baseline):
        with pytest.raises(ValueError, match="got 2 and 0"):
            baseline([0, 1], [])


def shares(clips: int) -> list[Tensor]:
    """Return the clips of each of two ranks, most of them on the first."""
    return [torch.arange(clips - 3), torch.arange(clips - 3, clips)]


def fill(metric: VideoMetric, share: Tensor) -> None:
    scores, target, video = clips()
    if isinstance(metric, VideoMSE):
        scores, target = scores[:, 0], target.float()
    for first in range(0, len(share), 3):
        part = share[first : first + 3]
        metric.update(scores[part], target[part], video[part])


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    total = len(clips()[0])
    for name, parts in (("uneven", shares(total)), ("empty", [torch.arange(total), torch.arange(0)])):
        for metric in (VideoAccuracy(3), VideoMSE()):
            fill(metric, parts[rank])
            found[f"{name} {metric.name}"] = float(metric.compute()), metric.summary()
            metric.reset()
            fill(metric, torch.arange(total))  # update still works after reset
            assert metric.summary()["clip_level"]["n"] == 2 * total
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_different_numbers_of_clips_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(worker, args=(port, str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for metric in (VideoAccuracy(3), VideoMSE()):
        fill(metric, torch.arange(len(clips()[0])))
        for name in ("uneven", "empty"):
            for found in (first, second):
                value, summary = found[f"{name} {metric.name}"]
                assert value == pytest.approx(float(metric.compute()))
                assert summary == metric.summary()


def test_average_clips_orders_by_video() -> None:
    means, targets, videos = average_clips(*clips(3))
    assert videos.tolist() == sorted(videos.tolist()) == list(range(9))
    answers = looped(*clips(3))
    assert means.argmax(1).tolist() == [found for found, _ in answers.values()]
    assert targets.tolist() == [target for _, target in answers.values()]
