import pickle
from pathlib import Path

import pytest
import torch

from vtm.data.sampling import Single, Windows
from vtm.data.source import Video, VideoFiles, region_length, stored_times
from vtm.encoders import Precomputed
from vtm.video.decoding import TooShortError, VideoError


@pytest.fixture
def make(loading, tmp_path):
    def make(*, motion=False, **frames):
        encoder = loading(tmp_path)["encoder"]
        encoder.frames = encoder.frames._replace(**frames)
        return VideoFiles(root=tmp_path, encoder=encoder, sampling="any", motion=motion)

    return make


@pytest.fixture
def video(stamps, tmp_path):
    return Video("a.mp4", stamps.write(tmp_path / "a.mp4", 40), 0)  # 4 s


def test_loading_processes_do_not_carry_the_weights(loading, tmp_path):
    encoder = loading(tmp_path)["encoder"]
    encoder.weights = torch.zeros(10_000)
    source = VideoFiles(root=tmp_path, encoder=encoder, sampling="any", motion=True)
    assert len(pickle.dumps(source)) < 2_000


def test_features_that_are_there_already_have_no_frames(tmp_path):
    with pytest.raises(ValueError, match="got needle-3x5x16, which stands for data that are features already"):
        VideoFiles(root=tmp_path, encoder=Precomputed("needle", grid=[3, 5], channels=16), sampling="any", motion=False)


def test_frames_are_read_as_the_encoder_wants_them(make, stamps, video):
    content = make(frames_per_step=2).read(video, [1.0, 2.5])
    assert stamps.read(content.inputs) == [10, 11, 25, 26]
    assert content.motion is None
    assert content.from_codec is None
    assert content.substituted.tolist() == [0, 0]
    assert make(image_size=24).read(video, [0.0]).inputs.shape == (1, 3, 24, 24)
    assert make(motion=True).read(video, [1.0]).motion.shape == (1, 3, 3)


def test_the_length_is_annotated_or_measured(make, video):
    assert make().length(video) == pytest.approx(4.0)
    assert make().length(Video("a", video.path, 0, start=1.0, end=3.5)) == 2.5
    assert make().length(Video("a", Path("absent"), 0, end=9.0)) == 9.0
    assert make().length(Video("a", video.path, 0, start=1.5)) == pytest.approx(2.5)


@pytest.mark.parametrize(("start", "end"), [(3.0, 3.0), (4.0, 3.0), (-1.0, 3.0)])
def test_an_empty_region_is_an_error_with_the_path(start, end):
    with pytest.raises(ValueError, match=r"x.mp4: expected a region 0 <= start < end, got start .* and end 3.0 s"):
        region_length(Video("x", Path("x.mp4"), 0, start=start), end)


def test_stored_times_count_from_the_start_of_the_file(make, video):
    region = Video("a", video.path, 0, start=1.0, end=3.0)
    assert stored_times(make(), region, Single(num_frames=2, train_positions=4), train=True) == [1.25, 1.75, 2.25, 2.75]
    assert stored_times(make(), region, Windows(num_frames=60, stride=1), train=False) == [1.0, 2.0]


def test_the_version_changes_with_the_file(make, video, tmp_path):
    before = make().version(video)
    assert before == make().version(video)
    video.path.write_bytes(video.path.read_bytes() + b"x")
    assert make().version(video) != before
    assert make().version(Video("b", tmp_path / "absent.mp4", 0)) is None
    assert make().version(Video("b", video.path / "below", 0)) is None
    assert make().version(Video("b", tmp_path, 0)) is None  # a folder


def test_a_check_reads_the_first_and_the_last_frame(make, video):
    protocol = Windows(num_frames=2, stride=1)
    make().check(video, protocol, train=False)
    with pytest.raises(TooShortError, match=r"the file ends at 4\.00 s"):
        make().check(Video("a", video.path, 0, end=9.0), protocol, train=False)
    video.path.write_text("no video")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        make().check(video, protocol, train=False)
