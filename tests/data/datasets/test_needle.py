"""Needle clips have the configured needles, decoys and clutter, and the oracle classifies them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vtm.check_data import check
from vtm.data.datasets.needle import NeedleDataModule, Needles, NeedleSource
from vtm.data.sampling import Single
from vtm.data.source import Video, VideoFiles

CLIPS = Needles(
    num_classes=3, frames=4, height=3, width=5, channels=16, num_needles=2, num_decoys=7, clutter=0.2, num_patterns=4,
    noise=0.0, needle_speed=0.0, other_speed=4.0, seed=0,
)  # fmt: skip


def draw(clips=CLIPS, label=1, seed=0):
    return clips.draw(label, np.random.default_rng(seed))


def source(clips=CLIPS, *, motion=True):
    return NeedleSource(clips=clips, root=Path("nowhere"), encoder=None, sampling="", motion=motion)


def video(name, target=1):
    return Video(f"{CLIPS.key}/{name}", Path(name), target)


def data(**changes):
    given = {
        "clips": CLIPS, "num_train": 9, "num_val": 3, "num_test": 6, "root": "nowhere", "encoder": None,
        "protocol": Single(num_frames=4), "source": partial(NeedleSource, motion=False), "batch_size": 3,
        "num_workers": 0, "seed": 0, "allow_missing": False,
    }  # fmt: skip
    return NeedleDataModule(**given | changes)


def test_codes_and_mark_are_orthogonal_and_as_long_as_noise_of_variance_one():
    np.testing.assert_allclose(CLIPS.codes @ CLIPS.codes.T, 16 * np.eye(4), atol=1e-4)


@pytest.mark.parametrize("label", [0, 2])
def test_needles_are_code_and_mark(label):
    clip = draw(label=label)
    assert clip.features.shape == (4, 3, 5, 16)
    assert clip.features.dtype == torch.float32
    assert clip.needles.sum() == 2
    expected = torch.from_numpy(CLIPS.codes[label] + CLIPS.codes[3]) / 2**0.5
    torch.testing.assert_close(clip.features[clip.needles], expected.expand(2, -1))


def test_what_is_not_needle_decoy_or_clutter_is_one_of_a_few_patterns():
    clips = replace(CLIPS, num_decoys=0, clutter=0.0)
    clip = draw(clips)
    assert 1 < len(clip.features[~clip.needles].unique(dim=0)) <= 4
    own = [draw(replace(CLIPS, **change)).features.flatten(0, 2).unique(dim=0) for change in ({}, {"clutter": 0.0})]
    assert len(own[0]) - len(own[1]) == 12  # a fifth of 60 tokens, each of its own


def test_decoys_have_the_code_of_any_class_and_no_mark():
    clips = replace(CLIPS, num_decoys=40, clutter=0.0, num_needles=1, channels=64)
    tokens = torch.cat([(c := draw(clips, seed=seed)).features[~c.needles] for seed in range(20)])
    codes = torch.from_numpy(clips.codes) / 8
    parts = tokens @ codes.T  # (n, K + 1), the length of the tokens along codes and mark
    decoys = (parts[:, :3].max(1).values - 8 / np.sqrt(2)).abs() < 2
    assert 700 < decoys.sum() < 900
    classes = parts[decoys, :3].argmax(1).bincount(minlength=3)
    assert classes.min() > 200
    assert parts[decoys, 3].abs().mean() < 1.5  # a needle has 5.7


def test_needles_stand_still_while_others_move_or_the_other_way_round():
    clip = draw()
    assert clip.motion[clip.needles].abs().max() == 0
    assert clip.motion[~clip.needles].min() >= 0.5
    assert clip.motion.max() > 2
    moving = draw(replace(CLIPS, needle_speed=8.0, other_speed=1.0))
    assert moving.motion[moving.needles].min() > moving.motion[~moving.needles].max()


def test_noise_is_added_to_every_token():
    tokens = draw(replace(CLIPS, noise=0.5, channels=256)).features - draw(replace(CLIPS, channels=256)).features
    assert tokens.std() == pytest.approx(0.5, rel=0.05)
    assert tokens.mean().abs() < 0.02


def test_the_oracle_is_right_without_noise_and_guesses_in_very_much_of_it():
    rng = np.random.default_rng(0)
    for noise, low, high in ((0.0, 1.0, 1.0), (100.0, 0.2, 0.5)):
        clips = replace(CLIPS, noise=noise)
        right = [clips.oracle(clips.draw(label % 3, rng)) == label % 3 for label in range(200)]
        assert low <= np.mean(right) <= high


def test_a_clip_depends_on_its_name_and_the_seed_of_the_data_alone():
    one, again = source().clip(video("train/4")), source().clip(video("train/4"))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    others = [source().clip(video("train/7")), source().clip(video("val/4"))]
    others.append(source(replace(CLIPS, seed=1)).clip(video("train/4")))
    assert not any(torch.equal(one.features, other.features) for other in others)


def test_clips_are_kept_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr("vtm.data.datasets.needle._KEPT_BYTES", 2 * 4 * 60 * 16)  # two clips of 60 tokens
    kept = source()
    first = [kept.clip(video(f"train/{number}")) for number in range(3)]
    second = [kept.clip(video(f"train/{number}")) for number in range(3)]
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, False]
    assert torch.equal(first[2].features, second[2].features)


def test_clips_of_another_kind_have_other_names():
    names = [data(clips=clips).videos("test")[0].id for clips in (CLIPS, replace(CLIPS, noise=0.1))]
    assert names[0] != names[1]
    assert all(name.endswith("/test/0") for name in names)


def test_frames_are_read_at_their_times_with_motion_where_it_is_wanted():
    clip = source().clip(video("test/2"))
    found = source().read(video("test/2"), [0.5, 2.5])
    assert torch.equal(found.inputs, clip.features[[0, 2]])
    assert torch.equal(found.motion, clip.motion[[0, 2]])
    assert found.from_codec.tolist() == [True, True]
    assert found.substituted.tolist() == [False, False]
    assert source(motion=False).read(video("test/2"), [0.5]).motion is None


def test_the_classes_take_turns_and_all_clips_load():
    module = data()
    assert [video.target for video in module.videos("test")] == [0, 1, 2, 0, 1, 2]
    assert module.train_targets().bincount().tolist() == [3, 3, 3]
    assert module.class_names == ["class 0", "class 1", "class 2"]
    batch = next(iter(module.test_dataloader()))
    assert batch.inputs.shape == (3, 4, 3, 5, 16)
    assert torch.equal(batch.inputs[1], module.source.clip(module.videos("test")[1]).features)
    assert batch.mask is None
    assert {finding.state for finding in check(module)} == {"sound"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 16}, "2 <= num_classes < channels"),
        ({"num_needles": 0}, "at least one needle"),
        ({"num_decoys": -3}, "num_decoys of 0 or more, got -3"),
        ({"clutter": -0.1}, "clutter of 0 or more, got -0.1"),
        ({"noise": -1.0}, "noise of 0 or more"),
        ({"num_patterns": 0}, "num_patterns of 1 or more"),
        ({"num_decoys": 50}, "all kinds to fit into 60 tokens, got 2 needles, 50 decoys and 12 tokens of clutter"),
    ],
)
def test_impossible_clips_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CLIPS, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": Single(num_frames=2)}, "data.protocol.num_frames = data.clips.frames = 4, got 2"),
        ({"source": VideoFiles}, "needle clips are drawn"),
    ],
)
def test_clips_are_drawn_and_seen_whole(change, message):
    with pytest.raises(ValueError, match=message):
        data(**change)
