"""Every file in conf/ composes and instantiates without a download, a GPU or data."""

import inspect
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.compressors import Clip, dyto
from vtm.data.datasets.needle import NeedleSource
from vtm.data.source import VideoFiles
from vtm.encoders import Encoder
from vtm.features.store import FeatureStore
from vtm.merging import FeatureGrid
from vtm.models import VTM, SinusoidalTime
from vtm.patching import VideoTransformer

CONF = Path(__file__).parents[2] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [
    (path.relative_to(CONF).parent.as_posix(), path.stem)
    for path in sorted(CONF.rglob("*.yaml"))
    if path.parent != CONF
]
EXPERIMENTS = [name for group, name in OPTIONS if group == "experiment"]
READY = ["epic_videomae", "k400_motionformer", "k400_timesformer", "k400_videomae", "k400_vivit", "ssv2_videomae"]
OF_READY_MODELS = ("merge_mode", "merge_shape")
OFFLINE = "model.host.pretrained=false"
# composed by tests of their own, published figures with their experiment
COMPOSED_BELOW = {
    "experiment",
    "published",
    "encoder",
    "merging",
    "merging/weighting",
    "compressor",
    "questions",
    "trainer",
    "callbacks",
    "model/host",
    "model/merge",
}
OTHERS = [option for option in OPTIONS if option[0] not in COMPOSED_BELOW]


@cache  # a seventh of a second, and many tests ask for the same
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = "a/run"
    OmegaConf.set_readonly(config, True)
    return config


@cache  # many experiments have the same, which takes half a second
def encoder(config: str) -> Encoder:
    return instantiate(OmegaConf.create(config))


def network(config: DictConfig, channels: int) -> VTM:
    return instantiate(config.model, channels, 3)


@pytest.mark.parametrize(("group", "option"), OTHERS, ids=map("=".join, OTHERS))
def test_every_other_option_composes(group, option):
    experiment = "k400_videomae" if option in OF_READY_MODELS else "demo"
    OmegaConf.to_container(composed(f"experiment={experiment}", f"{group}={option}").merging, resolve=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_named_after_its_file_and_says_how_to_run_it(name):
    path = CONF / "experiment" / f"{name}.yaml"
    assert path.read_text(encoding="utf-8").splitlines()[1].startswith(f"# python train.py experiment={name}")
    assert OmegaConf.load(path).name == name


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in READY])
def test_every_experiment_instantiates(name):
    config = composed(f"experiment={name}")
    frozen = encoder(OmegaConf.to_yaml(config.encoder, resolve=True))
    data = instantiate(config.data, encoder=frozen)
    assert data.batch_size == 16
    if name == "needle":
        assert isinstance(data.source, NeedleSource)
    else:
        assert isinstance(data.source, VideoFiles)
        stored = instantiate(composed(f"experiment={name}", "data/source=features").data, encoder=frozen).source
        assert isinstance(stored, FeatureStore)
        assert stored.folder == f"{config.data.root}/features/{frozen.key}-{data.protocol.sampling}"
    task = instantiate(config.task, 1 if config.task._target_.endswith("Regression") else 4)
    assert task.metric() is not None
    model = network(config, channels=64)
    frames = data.protocol.num_frames
    assert model.plan(frames, 7, 7)[0].merge_count > 0
    optimizer = instantiate(config.optimizer)(model.parameters())
    instantiate(config.scheduler)(optimizer, total_steps=100, total_epochs=config.trainer.max_epochs)


@pytest.mark.parametrize("name", READY)
def test_every_experiment_with_a_ready_model_instantiates(name):
    config = composed(f"experiment={name}", OFFLINE, "model/merge=merge_similar")
    encoder = instantiate(config.encoder)
    data = instantiate(config.data, encoder=encoder)
    assert (data.batch_size, type(data.source)) == (16, VideoFiles)
    with torch.device("meta"):
        model = whole(config)
    frames = {"vivit": 32, "timesformer": 8}.get(name.partition("_")[2], 16)
    assert data.protocol.num_frames == frames
    tokens = model.token_counts(frames, *encoder.grid.shape)
    assert tokens == PAPER[name.partition("_")[2]]
    optimizer = instantiate(config.optimizer)(model.parameters())
    instantiate(config.scheduler)(optimizer, total_steps=100, total_epochs=config.trainer.max_epochs)
    with pytest.raises(InstantiationException, match="encoder=pixels hands frames through"):
        instantiate(composed(f"experiment={name}", OFFLINE, "data/source=features").data, encoder=encoder)


def whole(config: DictConfig) -> VideoTransformer:
    """Make the whole transformer of a configuration with random weights."""
    pytest.importorskip("transformers")
    return instantiate(config.model, 3, 3, FeatureGrid(config.encoder.image_size, config.encoder.image_size))


PAPER = {
    "videomae": [1568, 1418, 1268, 1118, 968, 818, 668, 518, 368, 218, 109, 55, 28],
    "vivit": [3137, 2837, 2537, 2237, 1937, 1637, 1337, 1037, 737, 437, 219, 110, 56],
} | {
    name: [1 + 8 * tokens for tokens in (196, 178, 160, 142, 124, 106, 88, 70, 52, 34, 17, 9, 5)]
    for name in ("timesformer", "motionformer")
}  # the paper's counts, tokens of a clip before each block and at the end


@pytest.mark.parametrize("host", [name for group, name in OPTIONS if group == "model/host"])
@pytest.mark.parametrize("merge", [name for group, name in OPTIONS if group == "model/merge"])
def test_every_ready_model_can_merge_in_every_way(host, merge):
    config = composed("experiment=k400_videomae", f"model/host={host}", f"model/merge={merge}", OFFLINE)
    assert (config.model.merge is None) == (merge == "none")
    if merge != "none" and host != "timm":
        reduce = instantiate(config.model.merge).options["reduce"]
        assert reduce.func.__name__ == merge
        assert reduce.keywords == ({"threshold": config.host_defaults.threshold} if merge == "merge_hybrid" else {})
    if merge in ("none", "merge_similar"):
        with torch.device("meta"):
            model = whole(config)
        frames, size = config.data.protocol.num_frames, config.encoder.image_size
        tokens = model.token_counts(frames, size, size)
        assert (tokens[-1] < tokens[0]) == (merge != "none")
        assert model.plan(frames, size, size) == []


@pytest.mark.parametrize("host", ["videomae", "vivit", "timesformer", "motionformer"])
def test_the_ablations_of_merging_fit_every_ready_model_of_the_paper(host):
    chosen = ("experiment=k400_videomae", f"model/host={host}", OFFLINE)
    params = composed(*chosen, "ablation=merge_mode").hydra.sweeper.params
    assert set(params["model/merge"].split(",")) == {n for g, n in OPTIONS if g == "model/merge"} - {"none"}
    counts = [int(count) for count in params["model.merge.count"].split(",")]
    assert composed(*chosen).host_defaults.count in counts
    assert counts == sorted(set(counts))
    config = composed(*chosen, "ablation=merge_shape")
    (key, shapes) = next(iter(config.hydra.sweeper.params.items()))
    assert (key, config.model.merge.ratio) == ("model.merge.shape", 0.6)
    for shape in shapes.split(","):
        schedule = instantiate(config.model.merge, shape=shape).schedule(PATCHES[host], 12, 768, protected=0)
        assert len(schedule) == 12


PATCHES = {"videomae": 1568, "vivit": 3137, "timesformer": 196, "motionformer": 196}


@pytest.mark.parametrize("source", ["videos", "features"])
def test_the_source_of_motion_reaches_the_source_of_the_data(source):
    for override, expected in ([], "codec"), (["data.motion_source=difference"], "difference"):
        config = composed("experiment=lvu_scene", f"data/source={source}", *override)
        assert instantiate(config.data, encoder=instantiate(config.encoder)).source.motion_source == expected
    config = composed("experiment=lvu_scene", "data.motion_source=flow")
    with pytest.raises(InstantiationException, match=r"expected data.motion_source=codec or difference, got flow"):
        instantiate(config.data, encoder=instantiate(config.encoder))


def test_needle_clips_are_refused_from_elsewhere():
    config = composed("experiment=needle", "data/source=features")
    with pytest.raises(InstantiationException, match="leave out data/source"):
        instantiate(config.data, encoder=instantiate(config.encoder))


SHAPES = {
    "swin3d_b": (32, (7, 7), 1024),
    "pixels": (1, (224, 224), 3),
    "vis4mer": (1, (1, 197), 1024),
    "vis4mer_swin": (32, (7, 7), 1024),
    "vit_l16": (1, (14, 14), 1024),
    "vit_tiny_random": (1, (6, 6), 192),
}


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "encoder" and name != "precomputed"])
def test_every_encoder_knows_its_shapes_without_its_weights(name):
    encoder = instantiate(composed("experiment=demo", f"encoder={name}").encoder)
    assert (encoder.frames.frames_per_step, encoder.grid.shape, encoder.channels) == SHAPES[name]


@pytest.mark.parametrize("name", ["vit_l16", "vis4mer", "vit_tiny_random"])
def test_tokens_can_be_merged_inside_image_encoders(name):
    plain = composed("experiment=demo", f"encoder={name}").encoder
    assert plain.merge is None
    config = composed("experiment=demo", f"encoder={name}", "encoder/merge=tome", "encoder.merge.count=6")
    assert "-merge_similar-constant6-" in encoder(OmegaConf.to_yaml(config.encoder, resolve=True)).key
    config = composed("experiment=demo", f"encoder={name}", "encoder/merge=tome", "encoder.merge.count=0")
    assert instantiate(config.encoder).key == instantiate(plain).key


def test_tokens_cannot_be_merged_inside_a_hierarchical_encoder():
    config = composed("experiment=demo", "encoder=swin3d_b", "encoder/merge=tome")
    with pytest.raises(InstantiationException, match=r"does not support swin3d_b\.kinetics400; set encoder/merge"):
        instantiate(config.encoder)


def test_vis4mer_s_frames_are_squashed_and_not_normalized():
    for name, plain in (("vis4mer", "vit_l16"), ("vis4mer_swin", "swin3d_b")):
        theirs, ours = (composed("experiment=demo", f"encoder={option}").encoder for option in (name, plain))
        assert dict(theirs) == dict(ours) | {"squash": True, "normalize": False} | (
            {"cls_in_grid": True} if name == "vis4mer" else {}
        )


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "merging"])
def test_every_merging_runs_in_training_and_evaluation(name):
    model = network(composed("experiment=demo", f"merging={name}"), channels=64)
    features, motion = torch.randn(1, 20, 2, 2, 64), torch.rand(1, 20, 2, 2)
    for training in (True, False):
        output = model.train(training)(features, motion=motion)
        assert output.logits.isfinite().all()
        assert (output.aux_logits is not None) == (training and name.startswith("learnable"))


@pytest.mark.parametrize("override", ["merging=motion", "merging/weighting=motion"])
def test_merging_by_motion_has_motion_read(override):
    assert composed("experiment=lvu_scene", override).data.source.motion is True
    assert composed("experiment=lvu_scene", override, "data/source=features").data.source.motion is True
    assert composed("experiment=lvu_scene").data.source.motion is False


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("extract", name) for name in EXPERIMENTS), ("check_data", "demo"), ("check_data", "needle")],  # which is train
)
def test_every_experiment_composes_for_extraction_and_the_check(command, name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, overrides=[f"experiment={name}"])
    assert config.name == name
    source = "NeedleSource" if name == "needle" else "VideoFiles"
    assert config.data.source._target_.endswith("FeatureStore" if command == "extract" else source)


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "merging/weighting"])
def test_every_weighting_runs(name):
    model = network(composed("experiment=demo", f"merging/weighting={name}"), channels=64)
    assert model(torch.randn(1, 20, 2, 2, 64), motion=torch.rand(1, 20, 2, 2)).logits.isfinite().all()


def compressor(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(f"compressor/{name}", overrides=list(overrides)).compressor


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "compressor"])
def test_every_compressor_keeps_to_its_budget_and_has_all_options_of_its_function(name):
    config = compressor(name)
    compress = instantiate(config)
    options = set(inspect.signature(compress.func).parameters) - {"clip"}
    assert options == set(config) - {"_target_", "_partial_"}
    tokens = torch.randn(30, 3, 4, 32)
    compressed = compress(Clip(tokens, encoder=torch.randn(30, 3, 4, 6), frames=torch.randn(30, 6)))
    assert len(compressed.tokens) <= (int(6.39 * 12) if "budget" in config else 360)


def test_the_preset_of_dyto_has_the_defaults_of_the_function():
    config = compressor("dyto")
    defaults = {name: parameter.default for name, parameter in inspect.signature(dyto).parameters.items()}
    assert {name: config[name] for name in config if name in defaults and name != "budget"} == {
        name: value for name, value in defaults.items() if value is not inspect.Parameter.empty
    }


def test_the_released_dyto_differs_where_its_code_does():
    ours, released = compressor("dyto"), compressor("dyto_released")
    changed = {name: released[name] for name in ours if ours[name] != released[name]}
    assert changed == {
        "few_pick": "first",
        "descriptor": "cls",
        "partition": "halves",
        "metric": "head_mean",
        "reduce": "max",
        "order": "score",
    }


def composed_for_qa(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("qa", overrides=list(overrides))


QUESTIONS = [name for group, name in OPTIONS if group == "questions" and name != "base"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_list_of_questions_instantiates_with_its_published_figures(name, tmp_path):
    config = composed_for_qa(f"questions={name}", "llm=a/folder")
    assert config.questions.root == f"data/{name}"
    assert config.published == OmegaConf.load(CONF / "published" / f"{name}.yaml")
    with pytest.raises(FileNotFoundError, match=r"annotations.* is missing"):
        instantiate(config.questions, root=tmp_path).read()


def test_the_help_of_qa_names_all_options():
    text = OmegaConf.load(CONF / "hydra" / "qa.yaml").help.template
    assert f"questions: {', '.join(QUESTIONS)}\n" in text
    assert f"compressor: {', '.join(name for group, name in OPTIONS if group == 'compressor')}\n" in text


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "compressor"])
def test_every_compressor_composes_for_qa(name):
    assert composed_for_qa(f"compressor={name}").compressor == compressor(name)


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "trainer"])
def test_every_trainer_asks_for_what_its_name_says(name, tmp_path):
    config = composed("experiment=demo", f"trainer={name}", f"run_dir={tmp_path}")
    assert config.trainer.use_distributed_sampler is False
    if name in ("cpu", "auto", "ddp_cpu"):
        trainer = instantiate(config.trainer, logger=False)
        assert trainer.max_epochs == config.trainer.max_epochs


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "callbacks"])
def test_every_callback_instantiates(name, tmp_path):
    config = composed("experiment=demo", f"callbacks={name}", f"run_dir={tmp_path}")
    assert all(instantiate(callback) for callback in config.callbacks.values())


@pytest.mark.parametrize(
    "experiment", ["lvu_scene", *(pytest.param(name, marks=pytest.mark.slow) for name in ("needle", "demo", "coin"))]
)
@pytest.mark.parametrize(
    "name", [name for group, name in OPTIONS if group == "ablation" and name not in OF_READY_MODELS]
)
def test_every_ablation_sweeps_over_values_that_fit_every_experiment(name, experiment):
    config = composed(f"experiment={experiment}", f"ablation={name}")
    assert str(config.hydra.mode) == "RunMode.MULTIRUN"
    frames = config.data.protocol.num_frames
    for key, values in config.hydra.sweeper.params.items():
        settings = [
            f"{key}={value}"
            for value in OverridesParser.create().parse_override(f"{key}={values}").sweep_string_iterator()
        ]
        assert len(settings) >= 3
        for setting in settings:
            swept = composed(f"experiment={experiment}", setting)
            plans = network(swept, channels=64).plan(frames, 6, 6)
            assert len(plans) == len(swept.model.window_frames)


def test_the_ablations_of_the_paper_fit_its_clips():
    config = composed("experiment=lvu_scene")
    for lengths, factor in product(([10, 30, 60], [6, 30, 60], [4, 20, 60]), (2, 6, 10)):
        changes = {"model": {"window_frames": lengths}, "merging": {"partition_factor": factor}}
        plans = network(OmegaConf.merge(config, changes), channels=64).plan(60, 14, 14)
        assert [plan.window_frames for plan in plans] == lengths
        assert {-(-plan.num_tokens // plan.num_targets) for plan in plans} == {factor}


def test_the_network_can_be_told_the_time():
    config = composed("experiment=demo", "model.time_embedding={_target_:vtm.models.SinusoidalTime}")
    assert isinstance(network(config, channels=64).time_embedding, SinusoidalTime)


def test_precision_can_be_overridden():
    assert composed("experiment=demo", "trainer.precision=16-mixed").trainer.precision == "16-mixed"


def test_an_unknown_key_is_refused():
    with pytest.raises(ConfigCompositionException, match=r"merging\.partition_facto"):
        composed("experiment=demo", "merging.partition_facto=4")
