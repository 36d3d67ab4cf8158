"""The drawn clips: balanced, determined by their seed, and of a class that no single frame shows."""

import pytest
import torch
from torch import Tensor

from vtm.benchmark.merging.clips import NUM_CLASSES, draw, moving_squares, velocities

SIZE = 32


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textures(count: int) -> tuple[Tensor, Tensor]:
    generator = seeded(5)
    background, square = (torch.rand(1, 3, side, side, generator=generator) for side in (SIZE, SIZE // 4))
    return background.expand(count, -1, -1, -1), square.expand(count, -1, -1, -1)


def nearest_mean(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy of the nearest mean of a class, on frames (N, 3, S, S)."""
    means = torch.stack([train[0][train[1] == label].mean(0) for label in range(NUM_CLASSES)])
    nearest = torch.cdist(test[0].flatten(1), means.flatten(1)).argmin(1)
    return float((nearest == test[1]).double().mean())


def test_the_classes_are_balanced_and_shuffled():
    clips, labels = moving_squares(8 * NUM_CLASSES, generator=seeded(0))
    assert clips.shape == (8 * NUM_CLASSES, 8, 3, SIZE, SIZE)
    assert labels.bincount().tolist() == [8] * NUM_CLASSES
    assert not torch.equal(labels, labels.sort().values)
    assert abs(float(clips.mean())) < 0.1
    assert 0.5 < float(clips.std()) < 1.5


def test_the_seed_determines_the_clips():
    first, second, other = (moving_squares(9, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_two_frames_show_the_class():
    clips, labels = moving_squares(200, generator=seeded(0))
    moved = [
        torch.roll(clips[:, 0], tuple(velocities(torch.tensor([label]), SIZE)[0].tolist()), (2, 3))
        for label in range(NUM_CLASSES)
    ]
    same = torch.stack([(clips[:, 1] == frame).flatten(1).sum(1) for frame in moved], dim=1)  # (N, classes)
    assert torch.equal(same.argmax(1), labels)


@pytest.mark.parametrize("frame", [0, 1, 7])
def test_over_all_starts_every_class_has_the_same_frames(frame):
    starts = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE))
    shape = (len(starts), 1, SIZE, SIZE)
    background, square = torch.zeros(shape), torch.ones(1, 1, SIZE // 4, SIZE // 4).expand(len(starts), -1, -1, -1)
    seen = []
    for label in range(NUM_CLASSES):
        clips = draw(torch.full((len(starts),), label), starts, background, square, frames=frame + 1)
        seen.append(clips[:, frame].flatten(1).bool().unique(dim=0))  # where the square is
    assert len(seen[0]) == len(starts)
    assert all(torch.equal(frames, seen[0]) for frames in seen)


def test_a_single_frame_is_at_chance_unless_the_square_starts_in_the_center():
    frame = 3
    train, test = (moving_squares(2000, generator=seeded(seed)) for seed in (0, 1))
    found = nearest_mean((train[0][:, frame], train[1]), (test[0][:, frame], test[1]))
    assert abs(found - 1 / NUM_CLASSES) < 4 * (1 / NUM_CLASSES * (1 - 1 / NUM_CLASSES) / 2000) ** 0.5
    labels = torch.arange(400) % NUM_CLASSES
    centered = draw(labels, torch.full((400, 2), 12), *textures(400), frames=frame + 1)[:, frame]
    assert nearest_mean((centered[:200], labels[:200]), (centered[200:], labels[200:])) > 0.9


def test_still_clips_repeat_their_first_frame():
    moving, labels = moving_squares(8, generator=seeded(0))
    still, same_labels = moving_squares(8, generator=seeded(0), still=True)
    assert torch.equal(labels, same_labels)
    assert still.shape == moving.shape
    assert torch.equal(still, moving[:, :1].expand_as(moving))


def test_larger_frames_move_in_proportion():
    labels = torch.arange(NUM_CLASSES)
    assert torch.equal(velocities(labels, 224), 7 * velocities(labels, 32))
    clips, _ = moving_squares(1, generator=seeded(0), frames=2, size=64)
    assert clips.shape == (1, 2, 3, 64, 64)
