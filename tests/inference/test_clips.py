"""The clips and steps that a model sees of a video, each step encoded once."""

import pytest
import torch

import vtm
from vtm.data.dataset import VideoDataset
from vtm.data.sampling import Single, Windows
from vtm.data.source import Video, VideoFiles
from vtm.encoders import Precomputed
from vtm.inference.clips import EncodedVideo


@pytest.fixture(scope="module")
def path(tmp_path_factory, make_video):
    return make_video(tmp_path_factory.mktemp("videos") / "a.mp4", 5.5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, make_model):
    return vtm.load(make_model(tmp_path_factory.mktemp("model") / "model.safetensors")).encoder


def opened(path, encoder, protocol, motion=False):
    return EncodedVideo(path, encoder, protocol, motion=motion, device=torch.device("cpu"))


@pytest.mark.parametrize("motion", [False, True])
def test_a_clip_is_the_same_alone_and_among_the_others(path, encoder, motion):
    video = opened(path, encoder, Windows(num_frames=4, stride=1), motion=motion)
    clips = dict(video.clips())
    assert list(clips) == [0.0, 1.0]
    alone, frames = video.clip(1.0)
    assert frames.shape == (4, 3, 32, 32)
    torch.testing.assert_close(alone.inputs, clips[1.0].inputs, atol=1e-5, rtol=0)
    assert alone.id == clips[1.0].id == "a.mp4@1.00"
    assert (alone.motion is not None) == motion
    if motion:
        assert torch.equal(alone.motion, clips[1.0].motion)


def test_missing_steps_of_a_clip_are_masked(path, encoder):
    clip, frames = opened(path, encoder, Windows(num_frames=8, stride=1)).clip(0.0)
    assert (len(frames), clip.mask.tolist()) == (6, [True] * 6 + [False] * 2)
    assert not clip.inputs[6:].any()
    assert clip.inputs[:6].any((1, 2, 3)).all()


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize(
    "protocol", [Windows(num_frames=4, stride=1), Windows(num_frames=8, stride=1), Single(num_frames=4)]
)
def test_clips_are_those_of_the_test_of_training(path, encoder, protocol, motion):
    source = VideoFiles(root=path.parent, encoder=encoder, sampling=protocol.sampling, motion=motion)
    dataset = VideoDataset([Video(path.name, path, 0)], protocol, source, train=False)
    clips = [clip for _, clip in opened(path, encoder, protocol, motion=motion).clips()]
    assert len(clips) == len(dataset)
    for ours, theirs in zip(clips, (dataset[item] for item in range(len(dataset))), strict=True):
        steps = protocol.num_frames if theirs.mask is None else int(theirs.mask.sum())
        features = encoder(theirs.inputs[None])[0]
        torch.testing.assert_close(ours.inputs[:steps], features[:steps], atol=1e-5, rtol=0)
        assert not ours.inputs[steps:].any()
        for name in ("mask", "motion"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert (one is None and other is None) or torch.equal(one, other)
        assert (ours.id, ours.damaged, ours.from_codec) == (theirs.id, theirs.damaged, theirs.from_codec)


@pytest.mark.parametrize(
    ("protocol", "short"),
    [
        (Windows(num_frames=6, stride=1), False),
        (Windows(num_frames=7, stride=1), True),
        (Single(num_frames=44), False),  # all frames of the video
        (Single(num_frames=45), True),
    ],
)
def test_a_video_is_short_of_frames_or_not(path, encoder, protocol, short):
    video = opened(path, encoder, protocol)
    assert video.is_short(protocol.times(0.0, video.seconds)) == short


def test_the_message_names_a_video_that_cannot_be_encoded(path, encoder):
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4: no such file"):
        opened(path.with_name("absent.mp4"), encoder, Single(num_frames=4))
    features = Precomputed("noise", channels=8, grid=(2, 2))
    with pytest.raises(ValueError, match=r"was trained on features .* and cannot read .*a\.mp4"):
        opened(path, features, Single(num_frames=4))
