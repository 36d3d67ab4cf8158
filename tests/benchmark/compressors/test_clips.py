"""The drawn clips: their answers are what a slow reading of the pixels finds, and objects are where they may be."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from vtm.benchmark.compressors.clips import CELLS, CODES, COUNTED, HALF, KINDS, PAIR, PATCH, draw_clips, pattern

FRAMES = 16
CELL = 2 * PATCH
NAMES = CODES + HALF + PAIR + COUNTED


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(clip: Tensor) -> list[Counter[str]]:
    """Count the cells of each pattern in each frame of a clip (T, 3, S, S), one pixel after the other."""
    wanted = {name: pattern(name)[0].tolist() for name in NAMES}
    frames = []
    for frame in clip.tolist():
        found: Counter[str] = Counter()
        for top in range(0, CELLS * CELL, CELL):
            for left in range(0, CELLS * CELL, CELL):
                for name, values in wanted.items():
                    differences = (
                        abs(frame[channel][top + y][left + x] - values[(y % PATCH * PATCH + x % PATCH) * 3 + channel])
                        for y in range(CELL)
                        for x in range(CELL)
                        for channel in range(3)
                    )
                    found[name] += all(difference < 0.4 for difference in differences)
        frames.append(found)
    return frames


def answers(frames: list[Counter[str]]) -> list[str]:
    """Answer all kinds of question from the patterns of each frame."""
    times = {name: [t for t, found in enumerate(frames) if found[name]] for name in NAMES}
    (code,) = (name for name in CODES if times[name])
    (late,) = {t >= len(frames) / 2 for t in times[HALF]}
    (start, first), (other_start, _) = sorted((times[name][0], name) for name in PAIR if times[name])
    assert start < other_start
    return [code, "second" if late else "first", first, str(sum(found[COUNTED] for found in frames) // 4)]


@pytest.mark.parametrize("frames", [2, 4, FRAMES])
def test_the_answers_are_those_of_a_slow_reading(frames):
    drawn = draw_clips(24, frames=frames, generator=seeded(frames))
    assert drawn.pixels.shape == (24, frames, 3, CELLS * CELL, CELLS * CELL)
    for clip, given in zip(drawn.pixels, drawn.answers.tolist(), strict=True):
        options = [names[i] for names, i in zip(KINDS.values(), given, strict=True)]
        assert answers(seen(clip)) == options


def test_objects_have_their_size_and_length_and_cover_none_of_the_others():
    drawn = draw_clips(12, frames=FRAMES, generator=seeded(0))
    for clip, given in zip(drawn.pixels, drawn.answers.tolist(), strict=True):
        frames = seen(clip)
        code = CODES[given[0]]
        assert [found[code] for found in frames if found[code]] == [1] * 4
        for name in (HALF, *(name for name in PAIR if any(found[name] for found in frames))):
            times = [t for t, found in enumerate(frames) if found[name]]
            assert times == list(range(times[0], times[0] + 2))
            assert {frames[t][name] for t in times} == {4}
        assert sum(found[COUNTED] for found in frames) == 4 * given[3]


def test_patterns_are_orthogonal_to_each_other_and_to_gray():
    patterns = torch.cat([pattern(NAMES), torch.ones(1, 12)])
    assert len(set(NAMES)) == 10
    assert torch.equal(patterns @ patterns.T, 12 * torch.eye(11))


def test_a_row_has_at_least_twelve_tokens():
    assert CELLS >= 12


def test_every_option_is_right_about_as_often():
    drawn = draw_clips(800, frames=2, generator=seeded(1))
    for names, chosen in zip(KINDS.values(), drawn.answers.T, strict=True):
        share = chosen.bincount(minlength=len(names)) / 800
        assert len(share) == len(names)
        assert float((share - 1 / len(names)).abs().max()) < 4 * (1 / len(names) / 800) ** 0.5


def test_the_background_becomes_brighter():
    light = draw_clips(50, frames=FRAMES, generator=seeded(2)).pixels.flatten(2).median(2).values.mean(0)
    assert bool((light.diff() > 0).all())


def test_the_seed_determines_the_clips():
    first, second, other = (draw_clips(3, frames=4, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.answers, second.answers)
    assert not torch.equal(first.pixels, other.pixels)
