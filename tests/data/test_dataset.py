import pickle
from dataclasses import replace

import pytest
import torch

from vtm.data.dataset import Clip, VideoDataset, clip_generator, collate
from vtm.data.sampling import Dense, Single, Windows
from vtm.data.source import Video, VideoFiles
from vtm.video.decoding import VideoError
from vtm.video.frames import FrameSpec


@pytest.fixture(scope="module")
def videos(stamps, tmp_path_factory):
    """Two videos of 12 s and 2.5 s at 10 frames per second."""
    folder = tmp_path_factory.mktemp("dataset")
    long, short = stamps.write(folder / "long.mp4", 120, g="20"), stamps.write(folder / "short.mp4", 25)
    return [Video("a/long.mp4", long, 3), Video("a/short.mp4", short, 1)]


@pytest.fixture
def make(loading, tmp_path):
    def make(videos, protocol, *, frames_per_step=1, train=False, motion=False):
        arguments = loading(tmp_path)
        arguments["encoder"].frames = FrameSpec(48, frames_per_step, squash=False)
        source = VideoFiles(root=tmp_path, encoder=arguments["encoder"], sampling=protocol.sampling, motion=motion)
        return VideoDataset(videos, protocol, source, train=train)

    return make


def test_single_spreads_frames_over_the_video(stamps, make, videos):
    dataset = make(videos, Single(num_frames=4))
    assert len(dataset) == 2
    clip = dataset[0]
    assert clip.inputs.shape == (4, 3, 48, 48)
    assert stamps.read(clip.inputs) == [15, 45, 75, 105]
    assert clip.mask is None
    assert clip.motion is None
    assert (clip.target.item(), clip.target.dtype, clip.index, clip.id) == (3, torch.int64, 0, "a/long.mp4@0.00")


def test_a_region_of_interest_is_all_that_is_seen(stamps, make, videos):
    region = replace(videos[0], start=2.0, end=6.0)
    assert stamps.read(make([region], Single(num_frames=4))[0].inputs) == [25, 35, 45, 55]
    dataset = make([region], Windows(num_frames=2, stride=1))
    assert [dataset[item].id for item in range(len(dataset))] == [f"a/long.mp4@{start}.00" for start in (2, 3, 4)]
    assert stamps.read(dataset[2].inputs) == [40, 50]


def test_evaluation_sees_every_window_of_every_video(stamps, make, videos):
    dataset = make(videos, Windows(num_frames=5, stride=3))
    clips = [dataset[item] for item in range(len(dataset))]
    assert [(clip.index, clip.id) for clip in clips] == [
        (0, "a/long.mp4@0.00"),
        (0, "a/long.mp4@3.00"),
        (0, "a/long.mp4@6.00"),
        (1, "a/short.mp4@0.00"),
    ]
    assert stamps.read(clips[1].inputs) == [30, 40, 50, 60, 70]


def test_steps_after_the_end_are_zero_and_masked(stamps, make, videos):
    clip = make(videos, Windows(num_frames=5, stride=1), frames_per_step=2)[8]
    assert clip.id == "a/short.mp4@0.00"
    assert clip.mask.tolist() == [True, True, True, False, False]
    assert stamps.read(clip.inputs[:6]) == [0, 1, 10, 11, 20, 21]
    assert clip.inputs.shape == (10, 3, 48, 48)
    assert not clip.inputs[6:].any()


def test_training_draws_one_window_per_video_from_the_global_generator(stamps, make, videos):
    dataset = make(videos, Windows(num_frames=4, stride=100), train=True)
    assert len(dataset) == 2
    torch.manual_seed(1)
    ids = [dataset[0].id for _ in range(12)]
    assert len(set(ids)) > 3
    torch.manual_seed(1)
    assert [dataset[0].id for _ in range(12)] == ids
    clip = dataset[0]
    start = int(float(clip.id.split("@")[1]))
    assert stamps.read(clip.inputs) == [10 * (start + second) for second in range(4)]


def test_regression_targets_are_float32(make, videos):
    target = make([replace(videos[1], target=-0.25)], Single(num_frames=1))[0].target
    assert (target.item(), target.dtype) == (-0.25, torch.float32)


def test_dataset_survives_pickling(make, videos):
    dataset = make(videos, Single(num_frames=2))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].inputs, dataset[1].inputs)


def test_unreadable_video_raises_with_its_path(make, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"bad.mp4"):
        make([Video("bad", tmp_path / "bad.mp4", 0, end=3.0)], Single(num_frames=1))[0]


@pytest.mark.parametrize(("start", "end"), [(4.0, 3.0), (3.0, 3.0), (-1.0, 3.0), (99.0, None)])
def test_empty_region_raises_with_the_path(make, videos, start, end):
    with pytest.raises(ValueError, match=r"long.mp4.*start < end"):
        make([replace(videos[0], start=start, end=end)], Single(num_frames=1))


def test_motion_of_the_steps_after_the_end_is_zero(make, videos):
    clip = make(videos, Windows(num_frames=5, stride=1), motion=True)[8]
    assert clip.motion.shape == (5, 3, 3)
    assert clip.motion[:3].any()
    assert not clip.motion[3:].any()
    assert clip.from_codec == 1.0
    assert clip.damaged is False


def clip(index, mask=None, motion=None):
    target = torch.tensor(index)
    return Clip(
        torch.full((3, 3, 2, 2), index, dtype=torch.uint8),
        mask,
        motion,
        target,
        index,
        f"v{index}@0.00",
        index > 3,
        0.5,
    )


def test_collate_stacks():
    batch = collate([clip(4), clip(2)])
    assert batch.inputs.shape == (2, 3, 3, 2, 2)
    assert batch.inputs[:, 0, 0, 0, 0].tolist() == [4, 2]
    assert batch.target.tolist() == batch.index.tolist() == [4, 2]
    assert batch.target.dtype == batch.index.dtype == torch.int64
    assert batch.id == ["v4@0.00", "v2@0.00"]
    assert batch.damaged.tolist() == [True, False]
    assert batch.from_codec is None
    assert batch.mask is None
    assert batch.motion is None


def test_collate_keeps_the_mask_only_where_it_says_something():
    part, whole = torch.tensor([True, False, False]), torch.ones(3, dtype=torch.bool)
    assert collate([clip(0, whole), clip(1)]).mask is None
    mixed = collate([clip(0), clip(1, part), clip(2, whole)]).mask
    assert mixed.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert mixed.dtype == torch.bool


def test_collate_wants_motion_in_all_clips_or_none():
    motion = torch.ones(3, 2, 2)
    batch = collate([clip(0, motion=motion)])
    assert batch.motion.shape == (1, 3, 2, 2)
    assert batch.from_codec.tolist() == [0.5]
    with pytest.raises(ValueError, match=r"v1@0.00"):
        collate([clip(0, motion=motion), clip(1)])


def test_the_clip_s_id_seeds_its_noise():
    first, again, other = (torch.rand(3, generator=clip_generator(clip)) for clip in ("a@0", "a@0", "a@1"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dense_evaluation_sees_every_view_and_crop(stamps, make, videos):
    dataset = make(videos, Dense(num_frames=3, rate=5, views=2, num_crops=3))
    clips = [dataset[item] for item in range(len(dataset))]
    starts = ("a/long.mp4@0.00", "a/long.mp4@10.90", "a/short.mp4@0.00", "a/short.mp4@1.40")
    assert [clip.id for clip in clips] == [f"{start}{crop}" for start in starts for crop in ("@0", "", "@1")]
    assert [stamps.read(clip.inputs) for clip in clips[1::3]] == [
        [0, 5, 10],
        [109, 114, 119],
        [0, 5, 10],
        [14, 19, 24],
    ]
    left, center, right = (clip.inputs for clip in clips[:3])  # the frames are 16 columns wider than the square
    assert torch.equal(left[..., 8:], center[..., :-8])
    assert torch.equal(right[..., :-8], center[..., 8:])


def test_dense_clips_have_no_padding(stamps, make, videos):
    with pytest.warns(UserWarning, match="1 of 2 videos are shorter than a clip, so their clips repeat the last frame"):
        dataset = make(videos, Dense(num_frames=4, rate=10, views=1, num_crops=1))
    clip = dataset[1]
    assert stamps.read(clip.inputs) == [0, 10, 20, 24]
    assert clip.mask is None
    region = replace(videos[0], start=2.0, end=3.0)
    clip = make([region], Dense(num_frames=4, rate=4, views=1, num_crops=1))[0]
    assert stamps.read(clip.inputs) == [20, 24, 28, 29]


def test_motion_is_refused_outside_the_center(make, videos):
    dataset = make(videos, Dense(num_frames=1, rate=1, views=1, num_crops=3), motion=True)
    with pytest.raises(ValueError, match=r"set data\.protocol\.num_crops=1"):
        dataset[0]
