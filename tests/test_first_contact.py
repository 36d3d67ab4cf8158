"""The ten most likely mistakes of a new user: each gets one helpful sentence and no stack trace."""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

import train
from vtm import check_data, extract
from vtm.training.module import VTMModule

TINY = [
    "experiment=demo", "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.scene.seconds=2",
    "data.scene.height=48", "data.scene.width=48", "data.scene.object_size=16", "data.protocol.num_frames=4",
    "data.num_workers=0", "data.batch_size=2", "encoder.image_size=32", "encoder.model_args.depth=1",
    "model.window_frames=[2,4]", "model.channels=[8,8]", "trainer=cpu", "trainer.max_epochs=1",
    "scheduler.warmup_epochs=0", "logger=csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The folder of the tiny demonstration set."""
    root = tmp_path_factory.mktemp("data") / "demo"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(train.CONF), version_base="1.3"):
        config = compose("train", [*TINY, f"data.root={root}"])
    instantiate(config.data, encoder=instantiate(config.encoder)).prepare_data()
    return root


@pytest.fixture
def tiny(root) -> list[str]:
    return [*TINY, f"data.root={root}"]


@pytest.fixture
def refusal(call, tmp_path, capfd) -> Callable[..., str]:
    """Run a command that fails, and return its one sentence on stderr."""

    def refusal(*overrides: str) -> str:
        with pytest.raises(SystemExit) as stop:
            call(train.main, tmp_path, *overrides)
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err
        lines = [line for line in said.err.splitlines() if not line.startswith("writing demonstration videos")]
        assert not lines  # Python writes the message only at the very end
        assert isinstance(stop.value.code, str)
        assert "\n" not in stop.value.code
        return stop.value.code

    return refusal


def left_by(folder: Path) -> set[str]:
    """Return the names of the files that the only run in a folder left, except its configuration and log."""
    (run,) = folder.glob("runs/*/*")
    return {path.name for path in run.iterdir()} - {".hydra", "train.log"}


def test_1_no_data(refusal, tmp_path):
    assert refusal("experiment=lvu_scene", "trainer=cpu") == (
        "The folder data/lvu is missing; data/README.md says how to get it."
    )
    assert not list(tmp_path.glob("runs*"))


def test_1_no_annotations(refusal, tmp_path):
    (tmp_path / "coin").mkdir()
    said = refusal("experiment=coin", "trainer=cpu", f"data.root={tmp_path / 'coin'}")
    assert said.startswith(f"The file {tmp_path / 'coin'}/annotations/COIN.json")
    assert said.endswith("is missing; data/README.md says how to get it.")


def test_1_no_videos(refusal, tmp_path):
    (tmp_path / "mine").mkdir()
    table = "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,val\nd.mp4,x,test\n"
    (tmp_path / "mine" / "videos.csv").write_text(table)
    said = refusal("experiment=folder", "trainer=cpu", f"data.root={tmp_path / 'mine'}", "encoder=vit_tiny_random")
    assert said.startswith(f"2 of the 2 train videos are missing, such as {tmp_path / 'mine/videos/a.mp4'}, ")
    assert "put them there as data/README.md describes" in said
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ckpt_path=nowhere.ckpt"],
            "ckpt_path=nowhere.ckpt is not a file; checkpoints are in <run folder>/checkpoints/",
        ),
        (["ckpt_path=."], "ckpt_path=. is not a file; checkpoints are in <run folder>/checkpoints/"),
        (
            ["ckpt_path=notes.txt"],
            "ckpt_path=notes.txt is not a checkpoint of vtm, or is damaged; give one that train.py has wr",
        ),
        (["finetune_from=nowhere.ckpt"], "finetune_from=nowhere.ckpt is not a file; checkpoints are in"),
        (["train=false"], "train=false needs ckpt_path=<file>, the checkpoint to test"),
        (["data.root=notes.txt"], "data.root=notes.txt is a file; give the folder of the data set"),
        (["encoder.checkpoint=none.pth"], "encoder.checkpoint = none.pth is missing; give a local file of weights"),
        (["experiment=folder", "data.root=none"], "none: expected videos.csv or the folder videos in it; see the sec"),
    ],
)
def test_2_wrong_path(refusal, tmp_path, overrides, message):
    (tmp_path / "notes.txt").write_text("words")
    assert refusal("encoder=vit_tiny_random", "trainer=cpu", *overrides).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=demoo", "'experiment=demoo' is unknown; did you mean 'experiment=demo'?"),
        ("max_epochs=1", "'max_epochs' is unknown; did you mean 'trainer.max_epochs'?"),
        ("data.scene.hight=48", "'data.scene.hight' is unknown; did you mean 'data.scene.height'?"),
        ("merging/weighting=sise", "'merging/weighting=sise' is unknown; did you mean 'merging/weighting=size'?"),
        ("seed=a", "seed=a: expected a whole number, such as 0"),
        (
            "encoder.storage=flaot16",
            "expected encoder.storage to be one of float32, bfloat16, float16, int8, got flaot16",
        ),
        ("trainer.precision=bf17", "trainer: Precision 'bf17' is invalid. Allowed precision values: ("),
        ("+trainer.max_epoch=2", "trainer: Trainer.__init__() got an unexpected keyword argument 'max_epoch'"),
        ("trainer=ddp", "trainer.accelerator = gpu, but torch finds no GPU here; use trainer=cpu, or trainer=ddp_cpu"),
        ("data=lvu", "data.task has no value: add data.task=…, or choose an experiment that sets it; --help"),
    ],
)
def test_3_misspelled_override(refusal, tiny, override, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    settings = ["encoder=vit_tiny_random"] if override == "data=lvu" else tiny
    assert refusal(*settings, override).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=regression"],
            "task=regression: expected data with one value per video, got 4 classes; use task=classi",
        ),
        (["task.class_weights=[1,2]"], "expected 4 class_weights, one for each class, got 2"),
        (["+task.num_classes=5"], "task: "),
    ],
)
def test_4_wrong_class_count(refusal, tiny, overrides, message, tmp_path):
    own = [f"data.root={tmp_path / 'own'}"]
    assert refusal(*tiny, *own, *overrides).startswith(message)


def test_4_numbers_for_classes(refusal, tmp_path):
    table = "path,label,split\na.mp4,1.5,train\nb.mp4,2,train\nc.mp4,1.5,val\nd.mp4,2,test\n"
    (tmp_path / "videos.csv").write_text(table)
    mine = ["experiment=folder", "encoder=vit_tiny_random", "trainer=cpu", f"data.root={tmp_path}"]
    assert "need task=regression" in refusal(*mine, "data.regression=true")
    with pytest.warns(UserWarning, match="all 2 classes have numbers as names"):
        assert "or add data.regression=true if" in refusal(*mine, "task=regression")


def test_5_out_of_memory(refusal, tiny, monkeypatch):
    def training_step(self, batch, batch_idx):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capac")

    monkeypatch.setattr(VTMModule, "training_step", training_step)
    assert refusal(*tiny) == (
        "out of memory while allocating 2.50 GiB: lower data.batch_size and raise "
        "trainer.accumulate_grad_batches by the same factor, set trainer.precision=bf16-mixed, or raise "
        "merging.partition_factor"
    )


@pytest.mark.parametrize(
    ("content", "workers", "says"),
    [
        (b"", 0, "cannot be read as a video ("),
        (b"", 1, "cannot be read as a video ("),
        (b"YUV4MPEG2 W48 H48 F4:1\n", 0, "has no frames; fetch or encode it again"),
    ],
)
def test_6_damaged_video(refusal, root, tmp_path, content, says, workers):
    shutil.copytree(root, tmp_path / "demo")
    video = sorted((tmp_path / "demo" / "videos" / "train").rglob("*.mp4"))[0]
    video.write_bytes(content)
    said = refusal(*TINY, f"data.root={tmp_path / 'demo'}", f"data.num_workers={workers}")
    assert said.startswith(f"{video}: {says}")
    assert said.endswith("fetch or encode it again")


@pytest.mark.slow
def test_7_features_of_another_encoder(refusal, call, tiny, root, tmp_path, capfd):
    stored = [*tiny, "data/source=features", f"data.source.address={tmp_path}"]
    call(extract.main, tmp_path, *stored)
    capfd.readouterr()
    said = refusal(*stored, "encoder.seed=1")
    assert said.startswith("4 of the 4 train videos are missing, such as ")
    assert "extract them with `python -m vtm.extract` and the same overrides" in said
    (folder,) = tmp_path.glob("*-random0-*")
    folder.rename(tmp_path / folder.name.replace("-random0-", "-random1-"))  # as if they were those of seed 1
    said = refusal(*stored, "encoder.seed=1")
    assert re.search(r": expected the features .*-random1-.* of .*, got .*-random0-", said)


@pytest.mark.slow
def test_8_checkpoint_of_another_run(refusal, call, tiny, tmp_path, capfd):
    call(train.main, tmp_path, *tiny)
    capfd.readouterr()
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    trained = "the checkpoint was trained"
    for other, message in {
        ("merging.partition_factor=2",): f"{trained} with merging.partition_factor = 6, but this run has 2; a run is "
        "tested with the settings it had (finetune_from= starts a new one)",
        ("model.channels=[8,4]",): f"{trained} with model.channels = [8, 8], but this run has [8, 4]; a run is tested",
        ("encoder.seed=1",): "belongs to encoder vit_tiny_patch16_224-random0-32px-",
        ("data.scene.num_classes=3", f"data.root={tmp_path / 'three'}"): f"{trained} on other classes: it has ",
    }.items():
        assert message in refusal(*tiny, "train=false", f"ckpt_path={checkpoint}", *other)


def test_9_no_network(refusal, tiny, tmp_path, monkeypatch, caplog):
    def unreachable(*address, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", unreachable)  # and then no attempt is made, and none is repeated
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    said = refusal(*tiny, "encoder.pretrained=true", "encoder.model_args=null")
    assert said.startswith(
        "the weights vit_tiny_patch16_224.augreg_in21k_ft_in1k cannot be found on this machine or downloaded ("
    )
    assert said.endswith(
        "download them elsewhere and give the file with encoder.checkpoint=<file>, or use encoder=vit_tiny_random, "
        "which needs none"
    )
    assert "Retrying" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_epochs=-1", "+trainer.max_time=00:00:00:05"], "trainer.max_epochs = -1 has no end, but the lea"),
        (["trainer.max_epochs=0"], "trainer.max_epochs = 0 trains nothing"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["+optimizer.foo=1"], "optimizer: AdamW.__init__() got an unexpected keyword argument 'foo'"),
        (["trainer.accumulate_grad_batches=0"], "expected trainer.accumulate_grad_batches of at least 1, got 0"),
        (["trainer.gradient_clip_val=-1"], "expected trainer.gradient_clip_val of at least 0, got -1"),
        (["seed=-1"], "seed: expected non-negative integer"),
        (["+logger.mine=3"], "logger.mine: expected a `_target_` that builds a Logger, got 3"),
        (["+callbacks.mine=3"], "callbacks.mine: expected a `_target_` that builds a Callback, got 3"),
        (["~callbacks.last"], "callbacks.last is missing, but every run needs it"),
        (["callbacks.results=null"], "callbacks.results is missing, but every run needs it"),
        (["model.window_frames=[5,10,20]"], "clips of 8 frames do not fit"),
        (
            ["data.batch_size=3", "trainer=ddp_cpu"],
            "expected a batch_size, which counts the clips on all devices",
        ),
        (["optimizer.lr=-1", "trainer=ddp_cpu"], "optimizer: Invalid learning rate: -1"),
        (["data.num_test=0"], "the test split has no videos"),
        (["trainer.devices=2"], "trainer.devices = 2 needs a process per device: add trainer=ddp"),
    ],
)
def test_settings_are_refused_before_anything_starts(refusal, tmp_path, overrides, message):
    tiny = ["experiment=needle", "trainer=cpu", "data.num_train=4", "data.num_val=2", "data.num_test=2"]
    assert refusal(*tiny, "scheduler.warmup_epochs=0", "data.num_workers=0", "logger=default", *overrides).startswith(
        message
    )
    assert list(tmp_path.iterdir()) == []  # also no run of W&B


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_account")
def test_10_wandb_without_login(call, tiny, tmp_path, capfd):
    call(train.main, tmp_path, *tiny, "logger=default")
    said = capfd.readouterr()
    assert re.search(
        r"W&B: no API key was found, .* logged offline in .* run `wandb login` and then `wandb sync", said.out
    )
    assert said.out.count("W&B") == 1
    assert "wandb" not in said.err
    assert {"results.json", "metrics.csv", "wandb"} <= left_by(tmp_path)


@pytest.mark.usefixtures("no_account")
def test_10_wandb_online_without_login(refusal, tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    said = refusal(*tiny, "logger=default")
    assert said.startswith("W&B did not accept the run, which WANDB_MODE=online asks for (")
    assert said.endswith("run `wandb login`, set WANDB_MODE=offline, or leave W&B out with logger=csv")


def test_tensorboard_that_is_not_installed(refusal, tiny, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "tensorboard" else found(name, *_)
    )
    said = refusal(*tiny, "logger=tensorboard")
    assert said.startswith("logger=tensorboard needs the package tensorboard, which is not installed; run pip install ")


@pytest.mark.parametrize("main", [train.main, check_data.main, extract.main], ids=["train", "check_data", "extract"])
def test_help_is_short_and_lists_the_options(call, tmp_path, capsys, main):
    with pytest.raises(SystemExit) as stop:
        call(main, tmp_path, "--help")
    assert stop.value.code in (None, 0)
    lines = capsys.readouterr().out.splitlines()
    assert 5 < len(lines) < 60
    assert "experiment=lvu_scene" in "\n".join(lines)
    assert max(len(line) for line in lines if not re.match(r"[a-z/]+: ", line)) <= 120  # except lists of options


def test_help_of_training_names_every_other_command(call, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(train.main, tmp_path, "--help")
    said = capsys.readouterr().out
    for name in ("check_data", "extract", "report", "export", "predict", "visualize", "benchmark"):
        assert f"python -m vtm.{name} " in said
