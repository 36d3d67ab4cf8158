"""Features are extracted once, whatever happens meanwhile, and a run on them scores as on the videos."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train
from vtm import check_data
from vtm.data.features import FeatureStore
from vtm.data.sampling import Single, Windows
from vtm.data.source import VideoFiles
from vtm.data.synthetic import DemoDataModule, Scene
from vtm.encoders import ImageEncoder
from vtm.extract import extract

SCENE = Scene(
    num_classes=2, seconds=5, fps=4, height=48, width=64, object_size=16, min_visible=0.3, max_visible=0.4,
    num_distractors=1, object_speed=8, distractor_speed=32, pan_speed=32,
)  # fmt: skip
CPU = torch.device("cpu")


class Dataset:
    """A demonstration set of 9 videos, its encoder and its store."""

    def __init__(
        self, root: Path, *, storage: str = "bfloat16", protocol: Any = None, allow_missing: bool = False
    ) -> None:
        self.encoder = ImageEncoder(
            "vit_tiny_patch16_224", image_size=32, pretrained=False, checkpoint=None, seed=0,
            model_args={"depth": 1}, squash=False, normalize=True, cls_in_grid=False, precision="float32",
            storage=storage,
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
    monkeypatch.setattr("vtm.extract._FRAMES", 1)  # several jobs for a video
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


def test_what_is_stored_is_not_stored_again(root, capsys):
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
    monkeypatch.setattr("vtm.extract.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    dataset = Dataset(root)
    with pytest.raises(OSError, match=r"has room for 1e-06 GB, but about .* GB are needed.*encoder.storage=int8"):
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


# the commands

TINY = [
    "experiment=demo", "data.num_train=8", "data.num_val=4", "data.num_test=6", "data.scene.seconds=6",
    "data.scene.height=48", "data.scene.width=48", "data.scene.object_size=16", "data.protocol.num_frames=4",
    "data.num_workers=1", "data.batch_size=4", "encoder.image_size=32", "encoder.model_args.depth=1",
    "encoder.storage=bfloat16", "model.window_frames=[2,4]", "model.channels=[8,8]", "trainer=cpu",
    "trainer.max_epochs=1", "scheduler.warmup_epochs=0", "logger=csv",
]  # fmt: skip
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"OMP_NUM_THREADS": "1"}


def start(cwd: Path, command: list[str], *overrides: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, *command, *TINY, *overrides]
    return subprocess.Popen(command, cwd=cwd, text=True, env=ENVIRONMENT, start_new_session=True, **pipes, **options)


def run(cwd: Path, command: list[str], *overrides: str, succeeds: bool = True, **options: Any) -> str:
    process = start(cwd, command, *overrides, **options)
    output, _ = process.communicate(timeout=600)
    assert (process.returncode == 0) == succeeds, output
    return output


EXTRACT = ["-m", "vtm.extract"]


def stored(root: Path) -> list[Path]:
    return sorted((root / "features").rglob("*.safetensors"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> tuple[Path, str]:
    """A folder with the features of 18 videos, and what two processes said that stored them."""
    cwd = tmp_path_factory.mktemp("extracted")
    return cwd, run(cwd, EXTRACT, f"data.root={cwd / 'demo'}", "trainer=ddp_cpu")


@pytest.fixture
def unstored(extracted, tmp_path) -> Path:
    """The videos of the extracted set, to be spoilt or not, without their features."""
    root = tmp_path / "demo"
    shutil.copytree(extracted[0] / "demo" / "videos", root / "videos")
    for name in ("demo.json", "annotations"):
        (root / name).symlink_to(extracted[0] / "demo" / name)
    return root


def results(cwd: Path) -> dict[str, Any]:
    (path,) = cwd.rglob("results.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_processes_share_the_work(extracted):
    cwd, output = extracted
    assert len(stored(cwd / "demo")) == 18
    assert not list((cwd / "demo" / "features").rglob(".*"))
    assert "18 of 18 videos are stored" in output


@pytest.mark.slow
def test_runs_on_features_score_as_runs_on_videos(call, extracted, tmp_path):
    root = f"data.root={extracted[0] / 'demo'}"
    for source in ("videos", "features"):
        call(train.main, tmp_path / source, *TINY, root, f"data/source={source}", "merging=motion")
    ours, theirs = results(tmp_path / "videos"), results(tmp_path / "features")
    for stage in ("val", "test", "test_last"):
        del ours[stage]["cost"], theirs[stage]["cost"]
        assert ours[stage] == theirs[stage]


@pytest.mark.slow
def test_features_are_enough(call, extracted, tmp_path, capsys):
    cwd, _ = extracted
    root = tmp_path / "demo"
    root.mkdir()
    for name in ("demo.json", "annotations", "features"):
        (root / name).symlink_to(cwd / "demo" / name)
    call(train.main, tmp_path, *TINY, f"data.root={root}", "data/source=features", "merging=uniform")
    assert results(tmp_path)["test"]["n"] == 6
    call(check_data.main, tmp_path, *TINY, f"data.root={root}", "data/source=features")
    assert "test       6        0           0          0" in capsys.readouterr().out


@pytest.mark.slow
def test_missing_features_stop_a_run_with_what_to_do(call, extracted, tmp_path):
    overrides = [f"data.root={extracted[0] / 'demo'}", "data/source=features", "encoder.seed=5"]
    with pytest.raises(SystemExit, match=r"8 of the 8 train videos are missing.*extract them with `python -m vtm.extr"):
        call(train.main, tmp_path, *TINY, *overrides)


@pytest.mark.slow
def test_a_killed_extraction_leaves_nothing_wrong_and_is_gone_on_with(extracted, unstored, tmp_path):
    cwd, _ = extracted
    root = unstored
    right = {path.name: path.read_bytes() for path in stored(cwd / "demo")}
    for kept in (1, 7):
        process = start(tmp_path, EXTRACT, f"data.root={root}")
        while len(stored(root)) < kept:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert all(path.read_bytes() == right[path.name] for path in stored(root))
    output = run(tmp_path, EXTRACT, f"data.root={root}")
    assert "18 of 18 videos are stored" in output
    assert {path.name: path.read_bytes() for path in stored(root)} == right
    assert not list((root / "features").rglob(".*.part"))


@pytest.mark.slow
def test_an_unreadable_video_does_not_stop_the_other_processes(unstored, tmp_path):
    root = unstored
    bad = min((root / "videos" / "train").rglob("*.mp4"))
    bad.write_text("not a video")
    output = run(tmp_path, EXTRACT, f"data.root={root}", "trainer=ddp_cpu", succeeds=False)
    assert "some videos could not be stored; the lists" in output
    assert "Traceback" not in output
    assert len(stored(root)) == 17
    (listed,) = {path.read_text() for path in tmp_path.rglob("failed.*.csv")}
    assert str(bad) in listed


def _little_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(unstored, tmp_path):
    root = unstored
    limited = ["encoder.image_size=96", "data.num_workers=0"]  # loading processes need shared memory beyond the limit
    output = run(tmp_path, EXTRACT, f"data.root={root}", *limited, succeeds=False, preexec_fn=_little_disk)
    assert "the same command goes on when this is put right" in output
    assert "Traceback" not in output
    assert not stored(root)
    assert not list((root / "features").rglob("*.part"))


@pytest.mark.slow
def test_check_data_counts_and_lists(call, unstored, tmp_path, capsys):
    root = unstored
    trains, vals = [sorted((root / "videos" / name).rglob("*.mp4")) for name in ("train", "val")]
    trains[0].unlink()
    vals[1].write_text("not a video")
    with pytest.raises(SystemExit, match=r"2 are not sound, listed in .*problems.csv"):
        call(check_data.main, tmp_path, *TINY, f"data.root={root}")
    output = capsys.readouterr().out
    assert "train      7        1           0          0" in output
    assert "val        3        0           1          0" in output
    assert "test       6        0           0          0" in output
    (problems,) = tmp_path.rglob("problems.csv")
    assert str(trains[0]) in problems.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="1 of the 8 train videos are missing"):
        call(train.main, tmp_path, *TINY, f"data.root={root}")
    call(train.main, tmp_path, *TINY, f"data.root={root}", "data.allow_missing=true")
    found = results(tmp_path)
    assert (found["val"]["n"], found["val"]["missing"]) == (3, 1)
    assert found["val"]["missing_ids"] == [str(vals[1].relative_to(root / "videos"))]
    assert found["test"]["train_videos"] == {"n": 7, "missing": 1}
