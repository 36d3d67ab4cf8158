"""Features are extracted once, even after failures, and a run on them scores the same as on the videos."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import train
from vtm import check_data, extract

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
    """A folder with the features of 18 videos, and the output of the two processes that stored them."""
    cwd = tmp_path_factory.mktemp("extracted")
    return cwd, run(cwd, EXTRACT, f"data.root={cwd / 'demo'}", "trainer=ddp_cpu")


@pytest.fixture
def unstored(extracted, tmp_path) -> Path:
    """A copy of the videos of the extracted set, without their features."""
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
def test_missing_features_stop_a_run_with_a_remedy(call, extracted, tmp_path):
    overrides = [f"data.root={extracted[0] / 'demo'}", "data/source=features", "encoder.seed=5"]
    with pytest.raises(SystemExit, match=r"8 of the 8 train videos are missing.*extract them with `python -m vtm.extr"):
        call(train.main, tmp_path, *TINY, *overrides)


@pytest.mark.slow
def test_a_killed_extraction_leaves_nothing_wrong_and_is_gone_on_with(call, extracted, unstored, tmp_path, capfd):
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
    call(extract.main, tmp_path, *TINY, f"data.root={root}")
    assert "18 of 18 videos are stored" in "".join(capfd.readouterr())
    assert {path.name: path.read_bytes() for path in stored(root)} == right
    assert not list((root / "features").rglob(".*.part"))


@pytest.mark.slow
def test_an_unreadable_video_does_not_stop_the_other_processes(call, unstored, tmp_path, capfd):
    root = unstored
    bad = min((root / "videos" / "train").rglob("*.mp4"))
    bad.write_text("not a video")
    with pytest.raises(SystemExit) as stop:
        call(extract.main, tmp_path, *TINY, f"data.root={root}", "trainer=ddp_cpu")
    output = "".join([*capfd.readouterr(), str(stop.value.code)])
    assert "some videos could not be stored; " in output
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
    limited = ["encoder.image_size=96", "data.num_workers=0"]  # workers need shared memory beyond the limit
    output = run(tmp_path, EXTRACT, f"data.root={root}", *limited, succeeds=False, preexec_fn=_little_disk)
    assert "the stored features are complete, fix this and run the same command again to continue" in output
    assert "Traceback" not in output
    assert not stored(root)
    assert not list((root / "features").rglob("*.part"))


@pytest.mark.slow
def test_check_data_counts_and_lists(call, unstored, tmp_path, capsys):
    root = unstored
    trains, vals = [sorted((root / "videos" / name).rglob("*.mp4")) for name in ("train", "val")]
    trains[0].unlink()
    vals[1].write_text("not a video")
    with pytest.raises(SystemExit, match=r"2 of \d+ videos are not sound, see .*problems.csv"):
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
