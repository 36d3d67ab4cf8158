"""Extraction stores the right features, estimates its cost, and reports videos that cannot be stored."""

import os
import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch

from vtm.data.datasets.demo import DemoDataModule, Scene
from vtm.data.sampling import Single, Windows
from vtm.data.source import VideoFiles
from vtm.encoders import ImageEncoder
from vtm.features.extraction import extract
from vtm.features.file import FeatureWriter
from vtm.features.store import FeatureStore
from vtm.patching import DenseMerge, merge_similar

SCENE = Scene(
    num_classes=2, seconds=5, fps=4, height=48, width=64, object_size=16, min_visible=0.3, max_visible=0.4,
    num_distractors=1, object_speed=8, distractor_speed=32, pan_speed=32,
)  # fmt: skip


CPU = torch.device("cpu")


class Dataset:
    """A demonstration set of nine videos with its encoder and store."""

    def __init__(
        self,
        root: Path,
        *,
        storage: str = "bfloat16",
        protocol: Any = None,
        allow_missing: bool = False,
        merge: DenseMerge | None = None,
    ) -> None:
        self.encoder = ImageEncoder(
            "vit_tiny_patch16_224", image_size=32, pretrained=False, checkpoint=None, seed=0,
            model_args={"depth": 1}, squash=False, normalize=True, cls_in_grid=False, precision="float32",
            storage=storage, merge=merge,
        )  # fmt: skip
        self.protocol = protocol or Single(num_frames=6)
        self.data = DemoDataModule(
            scene=SCENE, num_train=4, num_val=2, num_test=3, data_seed=0, root=root, protocol=self.protocol,
            source=partial(VideoFiles, motion=True), encoder=self.encoder, batch_size=2, num_workers=0, seed=0,
            allow_missing=allow_missing,
        )  # fmt: skip
        self.store = FeatureStore(
            root=root, encoder=self.encoder, sampling=self.protocol.sampling, motion=True, address=None,
            cache=str(root / "cache"), cache_gb=1.0,
        )  # fmt: skip

    def extract(self) -> dict[str, str]:
        return extract(self.data, self.store, self.encoder, device=CPU)

    def files(self) -> list[Path]:
        return sorted(path for path in Path(self.store.folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    Dataset(root).data.prepare_data()
    return root


@pytest.fixture
def root(videos, tmp_path) -> Path:
    """The videos of the demonstration set, without features."""
    for path in videos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize("protocol", [Single(num_frames=10, train_positions=20), Windows(num_frames=3, stride=1)])
def test_stored_features_are_those_of_the_frames(root, storage, protocol, monkeypatch):
    monkeypatch.setattr("vtm.features.extraction._FRAMES", 1)  # several jobs for a video
    dataset = Dataset(root, storage=storage, protocol=protocol)
    assert dataset.extract() == {}
    for split in ("train", "val", "test"):
        for video in dataset.data.videos(split):
            times = protocol.stored(5.0, train=split == "train")
            frames, stored = dataset.data.source.read(video, times), dataset.store.read(video, times)
            assert torch.equal(stored.inputs.float(), dataset.encoder(frames.inputs[None])[0])
            assert torch.equal(stored.motion, frames.motion)
            assert torch.equal(stored.from_codec, frames.from_codec)
            assert torch.equal(stored.substituted, frames.substituted)
            assert dataset.store.length(video) == 5.0
    assert len(dataset.files()) == 9  # and nothing else


def test_the_work_is_estimated_for_all_processes(root, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    Dataset(root).extract()
    steps, processes = map(
        int,
        re.search(r"9 of 9 videos are to be stored: about (\d+) .* for (\d) process", capsys.readouterr().out).groups(),
    )
    assert (steps, processes) == (9 * len(Single(num_frames=6).stored(5.0, train=True)), 2)


def test_the_error_of_merging_inside_the_encoder_is_reported(root, capsys, monkeypatch):
    merge = DenseMerge(count=1, shape="constant", proportional=True, reduce=merge_similar)
    dataset, plain = Dataset(root, merge=merge), Dataset(root).encoder
    seen = []
    monkeypatch.setattr(dataset.encoder, "unmerged_tokens", lambda frames: seen.append(frames) or plain.tokens(frames))
    dataset.extract()
    printed = re.search(
        r"merging inside the encoder, on (\d+) steps of one video: relative error of the tokens \(RMS\) ([\d.e-]+), "
        r"cosine ([\d.]+)",
        capsys.readouterr().out,
    )
    assert printed is not None
    (frames,) = seen
    assert int(printed[1]) == frames.shape[1] == 4
    found, expected = dataset.encoder.tokens(frames).flatten(0, 3), plain.tokens(frames).flatten(0, 3)
    assert float(printed[2]) == pytest.approx(float((found - expected).norm() / expected.norm()), abs=0.006)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(found, expected, strict=True)]
    assert float(printed[3]) == pytest.approx(sum(cosines) / len(cosines), abs=0.001)
    Dataset(root).extract()
    assert "merging inside" not in capsys.readouterr().out


def test_stored_videos_are_not_stored_twice(root, capsys):
    Dataset(root).extract()
    assert "9 of 9 videos are to be stored" in capsys.readouterr().out
    files = Dataset(root).files()
    before = [path.stat().st_mtime_ns for path in files]
    files[3].unlink()
    Dataset(root).extract()
    assert "1 of 9 videos are to be stored" in capsys.readouterr().out
    after = [path.stat().st_mtime_ns for path in Dataset(root).files()]
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
    Dataset(root).extract()
    assert capsys.readouterr().out.startswith("9 of 9 videos are stored")


def test_a_damaged_header_is_stored_again(root):
    dataset = Dataset(root)
    dataset.extract()
    path = dataset.files()[0]
    content = path.read_bytes()
    path.write_bytes(content[:50])
    Dataset(root).extract()
    assert path.read_bytes() == content


def test_an_unreadable_video_is_reported_and_the_rest_is_stored(root, tmp_path):
    (root / "videos").unlink()
    (root / "videos").mkdir()
    dataset = Dataset(root)
    for split in ("train", "val", "test"):
        for video in dataset.data.read_split(split):
            video.path.parent.mkdir(parents=True, exist_ok=True)
            if video.id.startswith("val"):
                video.path.write_text("not a video")
            else:
                source = Path(os.readlink(root / "annotations")).parent / "videos" / video.id
                video.path.symlink_to(source)
    failed = dataset.extract()
    assert len(failed) == 2
    assert all(name.startswith("val/") and str(root / "videos" / name) in reason for name, reason in failed.items())
    assert len(dataset.files()) == 7
    dataset.store.check(dataset.data.videos("test")[0], Single(num_frames=6), train=False)


def test_missing_videos_stop_it_unless_they_may_be_missing(root, videos):
    (root / "videos").unlink()
    (root / "videos").mkdir()
    for name in ("train", "val"):
        (root / "videos" / name).symlink_to(videos / "videos" / name)
    (root / "videos" / "test" / "red-orange").mkdir(parents=True)
    present = videos / "videos" / "test" / "red-orange" / "0000.mp4"
    (root / "videos" / "test" / "red-orange" / "0000.mp4").symlink_to(present)
    with pytest.raises(FileNotFoundError, match=r"2 of the 3 test videos are missing"):
        Dataset(root).extract()
    dataset = Dataset(root, allow_missing=True)
    assert dataset.extract() == {}
    assert len(dataset.files()) == 7


def test_too_little_room_is_said_before_anything_is_written(root, monkeypatch):
    monkeypatch.setattr("vtm.features.extraction.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    dataset = Dataset(root)
    with pytest.raises(OSError, match=r"expected about .* GB of free space .*, got 1e-06 GB; .*encoder.storage=int8"):
        dataset.extract()
    assert not dataset.files()


def test_tokens_that_do_not_fit_fail_by_video_and_say_so(root):
    dataset = Dataset(root, storage="float16")
    dataset.encoder.tokens(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))
    with torch.no_grad():
        dataset.encoder._loaded.backbone.norm.weight *= 1e6
    failed = dataset.extract()
    assert len(failed) == 9
    assert "not finite in float16; choose another encoder.storage" in next(iter(failed.values()))
    assert not dataset.files()


def stored(root: Path) -> list[Path]:
    return sorted((root / "features").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("pixel_aspect", "params", "again"), [("64/45", "tff=0", 1), (None, "tff=1", 1), ("1", "tff=0", 0)]
)
def test_features_of_earlier_versions_are_stored_again_where_pixels_were_wrong(
    root, videos, capsys, monkeypatch, pixel_aspect, params, again
):
    (root / "videos").unlink()
    copytree(videos / "videos", root / "videos")
    dataset = Dataset(root)
    path = dataset.data.videos("test")[1].path
    path.unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"x264-params": params})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    write = FeatureWriter.__init__

    def write_without_record(self, path, times, shape, storage, facts):
        recorded = {"pixel_rule", "pyav", "motion_source"}
        assert recorded < facts.keys()
        write(self, path, times, shape, storage, {key: facts[key] for key in facts.keys() - recorded})

    with monkeypatch.context() as earlier:
        earlier.setattr(FeatureWriter, "__init__", write_without_record)
        assert dataset.extract() == {}
    dataset.store.check(dataset.data.videos("test")[1], dataset.protocol, train=False)  # it can still be read
    capsys.readouterr()
    assert Dataset(root).extract() == {}
    assert capsys.readouterr().out.startswith(f"{again} of 9 videos are to be stored" if again else "9 of 9 videos are")
    assert Dataset(root).extract() == {}
    assert capsys.readouterr().out.startswith("9 of 9 videos are stored")
