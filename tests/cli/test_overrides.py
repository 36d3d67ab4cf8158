"""A misspelled override gets a suggestion, and other values are refused where numbers are expected."""

import sys
from pathlib import Path

import pytest

from vtm.cli.overrides import check_overrides, near_misses

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=demo", "merging.partition_facto=4"], ["merging.partition_facto", "merging.partition_factor"]),
        (["experiment=demo", "trainer.max_epoch=4"], ["trainer.max_epoch", "trainer.max_epochs"]),
        (["-m", "experiment=demo", "merging.merge_cout=0.5,0.8"], ["merging.merge_cout", "merging.merge_count"]),
        (["experiment=demoo"], ["experiment=demoo", "experiment=demo"]),
        (["experiment=demo", "merging=center,learnabel", "-m"], ["merging=learnabel", "merging=learnable"]),
        (["experiment=demo", "merging/weighting=sise"], ["merging/weighting=sise", "merging/weighting=size"]),
        (["experimnt=demo"], ["experimnt", "experiment"]),
        (["experiment=lvu_scene", "data.protocol.strid=10"], ["data.protocol.strid", "data.protocol.stride"]),
        (["max_epochs=1"], ["max_epochs", "trainer.max_epochs"]),
        (["experiment=demo", "partition_facto=4"], ["partition_facto", "merging.partition_factor"]),
        (["model.partition_factor=4"], ["model.partition_factor", "merging.partition_factor"]),
        (["lr=1e-4"], ["lr", "optimizer.lr"]),
        (["task.num_classes=5"], ["task.num_classes", "data.scene.num_classes"]),
        (["trainer=ddp_cpu", "trainer.num_nodes=2"], ["trainer.num_nodes", "+trainer.num_nodes=2"]),
        (["experiment=needle", "num_nodes=2"], ["num_nodes", "+trainer.num_nodes=2"]),
        (["trainer.limit_train_batch=3"], ["trainer.limit_train_batch", "+trainer.limit_train_batches"]),
        (["optimizer.betas=[0.9,0.95]"], ["optimizer.betas", "+optimizer.betas=[0.9,0.95]"]),
        (["logger=default", "logger.wandb.nme=x"], ["logger.wandb.nme", "logger.wandb.name"]),
        (["logger=[csv,tensorbord]"], ["logger=tensorbord", "logger=tensorboard"]),
    ],
)
def test_a_misspelled_override_gets_a_suggestion(arguments, expected):
    (line,) = near_misses(arguments, CONF, "train")
    assert line == "{!r} is unknown; did you mean {!r}?".format(*expected)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("Experiment=demo", "'experiment'? 'E' in the command line is 'e' in the configuration: upper and lower case"),
        ("experiment=DEMO", "'experiment=demo'? 'D' in the command line is 'd' in the configuration: upper and lower"),
    ],
)
def test_a_difference_that_is_hard_to_see_is_described(argument, says):
    (line,) = near_misses([argument], CONF, "train")
    assert f"did you mean {says}" in line


@pytest.mark.parametrize("value", ["[1", "/videos/Übung", "my (videos)", "a,b=c", "runs/…/last.ckpt"])
def test_a_value_that_hydra_cannot_read_is_to_be_quoted(value):
    (line,) = near_misses([f"ckpt_path={value}"], CONF, "train")
    assert line == f"'ckpt_path={value}' cannot be parsed; quote the value, also for the shell: 'ckpt_path=\"{value}\"'"
    assert near_misses([f'ckpt_path="{value}"'], CONF, "train") == []


def test_a_lone_word_is_no_override():
    (line,) = near_misses(["data.root=meine", "videos"], CONF, "train")
    assert line.startswith("'videos' is not an override; write key=value, and quote a value with spaces")


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=demo", "merging.partition_factor=4", "seed=1,2", "-m"],
        ["experiment=demo", "+callbacks.mine._target_=a.B", "~logger.wandb", "hydra.run.dir=x"],
        ["experiment=demo", "merging=none"],
        ["--help"],
        ["--info", "experiment=demo"],
        ["--info", "config", "--resolve"],
        ["--multi", "seed=0,1"],
        ["-c=job", "--package=merging", "experiment=demo"],
        ["logger=[csv,tensorboard]", "~ablation"],
        ["hydra.mode=MULTIRUN", "seed=0,1"],
        ["experiment=demo", "-m", "seed=0,1"],
        ["experiment=demo", "--cfg", "job", "--package", "merging"],
        ["experiment=demo", "-c", "job"],
        ["experiment=folder", 'data.root="/videos of mine/Übung (1)"'],
        ["++seed=3", "trainer.devices=auto", "trainer.gradient_clip_val=null"],
        ["data/source=features", "data.source.cache=/tmp", "merging.saliency_weight=scale"],
        ["optimizer.lr=1", "data.scene.pan_speed=4.5", "trainer.max_epochs=-1", "train=false"],
        ["experiment=lvu_scene", "data/source=features", "data.source.cache_gb=0.5"],
        ["model.window_frames.0=3", "data.scene.object_speed=0.5", "merging.merge_count=64", "data.seed=${seed}"],
        ["-m", "optimizer.lr=interval(0.1,1)", "experiment=glob(lvu_*)", "seed=range(1,4)"],
        ["--config-path", "elsewhere", "--config-name", "config", "nobody.knows=1"],
        ["data=lvu", "merging=none", "experiment=needle", "callbacks.needles=null"],
    ],
)
def test_nothing_is_said_of_what_is_right(arguments):
    assert near_misses(arguments, CONF, "train") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["entirely_different_words=1"], "'entirely_different_words' is unknown; --cfg job shows all keys"),
        (["experiment=lvu_scene", "num_classes=6"], "'num_classes' is unknown; the number of classes is read from"),
        (["merging=none", "merging.gamma=3"], "'merging.gamma' is unknown; --cfg job"),
        (
            ["encoder.merge.count=4"],
            "'encoder.merge.count' is unknown, because encoder.merge is null; add encoder/merge=tome",
        ),
        (
            ["encoder/merge=tome", "encoder.merge.cout=4"],
            "'encoder.merge.cout' is unknown; did you mean 'encoder.merge.c",
        ),
        (["encoder/merge=tom"], "'encoder/merge=tom' is unknown; did you mean 'encoder/merge=tome'?"),
        (["merging=xyz"], "'merging=xyz' is unknown; expected one of boundary, center, learnable, "),
        (["demo"], "'demo' is not an override; write key=value, such as experiment=demo"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc: expected a whole number, such as 8"),
        (["-m", "seed=1,b"], "seed=b: expected a whole number, such as 0"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: expected a number, such as 0.001"),
        (["data.allow_missing=ture"], "data.allow_missing=ture: expected true or false, such as false"),
        (["train=no"], "train=no: expected true or false, such as true"),
        (["data.batch_size="], "data.batch_size=: expected a whole number, such as 16"),
        (["trainer.max_epochs=true"], "trainer.max_epochs=true: expected a whole number, such as 8"),
        (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5: expected a whole number, such as 8"),
        (["-m", "trainer.max_epochs=2,2.5"], "trainer.max_epochs=2.5: expected a whole number, such as 8"),
        (["optimizer.lr=false"], "optimizer.lr=false: expected a number, such as 0.001"),
        (['optimizer.lr="0.001"'], 'optimizer.lr="0.001": expected a number, such as 0.001'),
        (["logger=null"], "'logger=null' is not an option; expected one of csv, default, tensorboard"),
        (["logger=[]"], "'logger=[]' is not an option; expected one of csv"),
        (["logger={tb:{_target_:a.B}}"], "'logger={tb:{_target_:a.B}}' is not an option; expected one of csv"),
        (["logger=[csv,null]"], "'logger=[csv,null]' is not an option"),
        (["~logger"], "'~logger' leaves out a group that is needed; expected one of csv"),
        (["callbacks=null"], "'callbacks=null' is not an option"),
        (["published=foo"], "'published=foo' is unknown; expected one of "),
        (["seed=0,1"], "'seed=0,1' has several values; add -m to run each of them, or quote it as one"),
        (["--experiment=demo"], "'--experiment=demo' is not a flag; write 'experiment=demo', without hyphens"),
        (
            ["--optimizer.lr=0.1"],
            "'--optimizer.lr=0.1' is not a flag; write 'optimizer.lr=0.1', without hyphens (a W",
        ),
        (["-seed=3"], "'-seed=3' is not a flag; write 'seed=3', without hyphens"),
        (["-model.dropout=0"], "'-model.dropout=0' is not a flag; write 'model.dropout=0'"),
        (["--multirum"], "'--multirum' is not a flag; did you mean --multirun?"),
        (["--trainer"], "'--trainer' is not a flag; write trainer=value to set a key, or see --hydra-help"),
        (["--resolve=yes"], "'--resolve=yes' is not a flag"),
        (["-m", "--cfg", "job"], "--multirun and --cfg cannot be combined; give one of them"),
        ([""], "'' is not an override"),
        (["trainer.max_epochs='8'"], "trainer.max_epochs='8': expected a whole number, such as 8"),
    ],
)
def test_other_mistakes_are_told_too(arguments, expected):
    (line,) = near_misses(arguments, CONF, "train")
    assert line.startswith(expected)


def test_every_mistake_gets_its_line():
    assert len(near_misses(["experiment=demoo", "max_epochs=1", "seed=a", "data.root=x"], CONF, "train")) == 3


def test_a_command_with_mistakes_is_not_begun(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=demoo"])
    begun = []
    with pytest.raises(SystemExit, match="did you mean 'experiment=demo'"), check_overrides(CONF, "train"):
        begun.append(1)
    assert not begun


def test_overrides_may_stand_behind_flags(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=demo", "-m", "seed=0,1", "--config-dir", "a b"])
    with check_overrides(CONF, "train"):
        assert sys.argv == ["train.py", "-m", "--config-dir", "a b", "experiment=demo", "seed=0,1"]
