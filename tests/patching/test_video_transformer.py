"""Whole video transformers keep to the contract of a head and compute what the ready model computes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.patching.models import VJEPA2
from vtm.merging import FeatureGrid
from vtm.patching import (
    VideoMerge,
    VideoTransformer,
    drop_random,
    drop_similar,
    equal_compute,
    merge_hybrid,
    merge_random,
    merge_similar,
    recording,
)
from vtm.patching.motionformer import Motionformer
from vtm.patching.schedules import token_counts
from vtm.patching.video_hosts import motionformer_host, timm_host, transformers_host

CLASSES = ["an apple", "Bread", "cake", "date", "eggs"]
TINY = {
    "num_frames": 4, "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 3, "intermediate_size": 48,
}  # fmt: skip
VIVIT = {key: value for key, value in TINY.items() if key != "patch_size"} | {"tubelet_size": [2, 8, 8]}
VJEPA = VJEPA2 | {"frames_per_clip": 4, "patch_size": 8, "num_hidden_layers": 3}
MOTIONFORMER = {"num_frames": 4, "image_size": 32, "width": 24, "depth": 3, "num_heads": 3}
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
HOSTS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[int], str]] = {
    "videomae": (
        partial(transformers_host, architecture="VideoMAEForVideoClassification"),
        TINY,
        [32, 29, 26, 23],
        "clip",
    ),
    "vivit": (partial(transformers_host, architecture="VivitForVideoClassification"), VIVIT, [33, 30, 27, 24], "clip"),
    "timesformer": (
        partial(transformers_host, architecture="TimesformerForVideoClassification"),
        TINY,
        [65, 53, 41, 29],
        "frame",
    ),
    "vjepa2": (
        partial(transformers_host, architecture="VJEPA2ForVideoClassification"),
        VJEPA,
        [32, 29, 26, 23],
        "clip",
    ),
    "motionformer": (motionformer_host, MOTIONFORMER, [9, 5, 3, 3], "frame"),
    "timm": (timm_host, TIMM, [68, 56, 44, 32], "clip"),
}
GRID = FeatureGrid(32, 32)


def head(name: str, *, classes: int = 5, merge: VideoMerge | None = None, **options: Any) -> VideoTransformer:
    """Make a tiny host with random weights that differ from zero."""
    if name != "motionformer":
        pytest.importorskip("timm" if name == "timm" else "transformers")
    make, config, _, _ = HOSTS[name]
    torch.manual_seed(0)
    host = partial(make, name="vit_tiny_patch16_224" if name == "timm" else name, pretrained=False, config=config)
    made = VideoTransformer(3, classes, GRID, host=host, merge=merge, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


def merging(name: str, count: int = 3, **options: Any) -> VideoMerge:
    defaults: dict[str, Any] = {"ratio": None, "shape": "constant", "proportional": name not in ("videomae", "vjepa2")}
    return VideoMerge(
        **defaults | {"count": count, "groups": HOSTS[name][3], "keys": "mean", "reduce": merge_similar} | options
    )


@pytest.fixture
def clips() -> Tensor:
    """Clips (B, T, S, S, 3) of normalized frames."""
    return torch.randn(2, 4, 32, 32, 3, generator=torch.Generator().manual_seed(1))


def own_forward(name: str, model: VideoTransformer, clips: Tensor) -> Tensor:
    """The logits of the host with its last layer back in place, as its users call it."""
    host: Any = model.host
    video = clips.permute(0, 1, 4, 2, 3).contiguous()
    last = "classifier" if hasattr(host, "classifier") else "head"
    setattr(host, last, model.head)
    if name == "motionformer":
        return host(video.transpose(1, 2))
    if name == "timm":
        return host(video.flatten(0, 1)).unflatten(0, (2, 4)).mean(1)
    return host(video).logits


@pytest.mark.parametrize("name", HOSTS)
def test_without_merging_it_is_the_host_s_own_forward_to_the_bit(name: str, clips: Tensor) -> None:
    plain, idle = head(name), head(name, merge=merging(name, count=0))
    with torch.no_grad():
        logits = plain(clips).logits
        assert torch.equal(idle(clips).logits, logits)
        assert logits.shape == (2, 5)
        assert logits.std(0).max() > 1e-3
        assert torch.equal(own_forward(name, plain, clips), logits)


@pytest.mark.parametrize("name", HOSTS)
def test_it_keeps_the_contract_of_a_head(name: str, clips: Tensor) -> None:
    model = head(name, merge=merging(name))
    output = model(clips)
    assert (output.aux_logits, output.blocks) == (None, ())
    assert model.plan(4, 32, 32) == []
    assert not model.needs_motion
    with recording(model) as trace:
        model(clips)
    if name != "timesformer":  # recorded without CLS
        steps = 4 if name == "timm" else 1
        recorded = [sizes.shape[1] * steps for _, sizes in sorted(trace.sizes.items())]
        expected = HOSTS[name][2]
        whole = expected[1:] if name != "motionformer" else [5, 3]
        assert recorded == whole
    assert model.token_counts(4, 32, 32) == HOSTS[name][2]
    state = model.state_dict()
    assert {"head.weight", "head.bias"} <= set(state)
    assert not any("classifier" in key or key.startswith("host.head") for key in state)
    loaded = head(name, merge=merging(name))
    loaded.load_state_dict(state)
    assert torch.equal(loaded.for_inference()(clips).logits, output.logits)


@pytest.mark.parametrize("name", HOSTS)
def test_all_that_is_trained_is_used(name: str, clips: Tensor) -> None:
    model = head(name, merge=merging(name)).train()
    model.freeze_unused(4, 32, 32)
    model(clips).logits.square().sum().backward()
    unused = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", HOSTS)
def test_layers_can_be_frozen(name: str, clips: Tensor) -> None:
    model = head(name, frozen_layers=2).train()
    model.freeze_unused(4, 32, 32)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    blocks = {key.split(".")[index + 1] for key in trained for index in range(key.count(".")) if _is_list(key, index)}
    assert blocks == {"2"}
    assert {"head.weight", "head.bias"} <= trained
    assert not any("embed" in key or "cls" in key for key in trained)
    with pytest.raises(ValueError, match=r"model\.frozen_layers from 0 to the 3 blocks, got 4"):
        head(name, frozen_layers=4)


def _is_list(key: str, index: int) -> bool:
    return key.split(".")[index] in ("layer", "layers", "blocks") and "pooler" not in key


REDUCTIONS = [merge_similar, drop_similar, merge_random, drop_random, partial(merge_hybrid, threshold=0.8)]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_clips_do_not_depend_on_their_batch(reduce: Any, clips: Tensor) -> None:
    model = head("videomae", merge=merging("videomae", reduce=reduce))
    assert model.samples_in_eval == (reduce in (merge_random, drop_random))

    def run(part: Tensor, *seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model(part, generator=generators).logits

    torch.manual_seed(7)
    both = run(clips, 1, 2)
    before = torch.get_rng_state()
    torch.testing.assert_close(torch.cat([run(clips[:1], 1), run(clips[1:], 2)]), both)
    assert torch.equal(torch.get_rng_state(), before)
    if model.samples_in_eval:
        assert not torch.equal(run(clips, 3, 4), both)


def test_a_share_of_the_multiply_adds_replaces_the_count() -> None:
    model = head("videomae", merge=merging("videomae", ratio=0.8, shape="increasing"))
    schedule = equal_compute(32, 3, 24, ratio=0.8, shape="increasing")
    assert model.token_counts(4, 32, 32) == token_counts(schedule, 32)
    assert schedule != [3, 3, 3]


def test_padding_other_shapes_and_other_features_are_refused(clips: Tensor) -> None:
    model = head("videomae")
    with pytest.raises(ValueError, match=r"whole clips without padding.*data/protocol=dense"):
        model(clips, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"4 frames of 32 × 32 pixels, got 3 of 32 × 32; change data\.protocol"):
        model(clips[:, :3])
    with pytest.raises(TypeError, match="floating point"):
        model(clips.to(torch.uint8))
    with pytest.raises(ValueError, match=r"not features of 192 channels; set encoder=pixels"):
        VideoTransformer(192, 5, GRID, host=partial(motionformer_host, name=None, pretrained=False, config={}))
    with pytest.raises(ValueError, match=r"model\.host\.config\.hiden_size is unknown"):
        transformers_host(
            5,
            architecture="VideoMAEForVideoClassification",
            name="",
            pretrained=False,
            config={"hiden_size": 8},
        )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a trained classifier, as a user has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    config = transformers.VideoMAEConfig(**TINY, id2label=names, label2id={name: i for i, name in names.items()})
    folder = tmp_path_factory.mktemp("hosts") / "videomae"
    model = transformers.VideoMAEForVideoClassification(config)
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return str(folder)


def trained(folder: str, classes: int, **options: Any) -> VideoTransformer:
    make = partial(HOSTS["videomae"][0], name=folder, pretrained=True, config={})
    return VideoTransformer(3, classes, GRID, host=make, **options).eval()


def test_a_trained_classifier_is_matched_with_the_classes_by_name(saved: str, clips: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    own = transformers.VideoMAEForVideoClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        expected = own(clips.permute(0, 1, 4, 2, 3).contiguous()).logits
        model = trained(saved, 5)
        assert model.match_classes(CLASSES)
        assert torch.equal(model(clips).logits, expected)
        model = trained(saved, 5)
        assert model.match_classes(["Cake", "[an] apple", "bread", "eggs", "date"])
        torch.testing.assert_close(model(clips).logits, expected[:, [2, 0, 1, 4, 3]])
        model = trained(saved, 2)
        with pytest.warns(UserWarning, match=r"the 2 classes of the data are compared only with one another"):
            assert model.match_classes(["eggs", "cake"])
        torch.testing.assert_close(model(clips).logits, expected[:, [4, 2]])


def test_a_classifier_of_other_classes_is_replaced_or_refused(saved: str) -> None:
    with pytest.raises(ValueError, match=r"the data have 'fish' where it has 'eggs'; .*model\.new_classifier=true"):
        trained(saved, 5).match_classes([*CLASSES[:4], "fish"])
    model = trained(saved, 5, new_classifier=True)
    assert not model.match_classes([*CLASSES[:4], "fish"])
    model = trained(saved, 3)
    with pytest.warns(UserWarning, match=r"is new, with 3 classes.*has 5 and lacks 'x', 'y', 'z'"):
        assert not model.match_classes(["x", "y", "z"])
    assert model.head.out_features == 3
    assert not trained(saved, 1).match_classes(None)


def test_settings_build_the_host_without_its_checkpoint(saved: str, clips: Tensor) -> None:
    model = trained(saved, 5)
    config = model.settings["host"]["config"]
    assert TINY.items() <= config.items()
    assert not {"id2label", "architectures"} & set(config)
    make = partial(HOSTS["videomae"][0], name="", pretrained=False, config=config)
    again = VideoTransformer(3, 5, GRID, host=make).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(clips).logits, model(clips).logits)


def test_a_checkpoint_of_another_model_is_refused(saved: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"another model than a TimesformerForVideoClassification|cannot be loaded"):
        transformers_host(5, architecture="TimesformerForVideoClassification", name=saved, pretrained=True, config={})
    with pytest.raises(RuntimeError, match=r"cannot be found on this machine.*model\.host\.pretrained=false"):
        trained(str(tmp_path / "nothing"), 5)
    with pytest.raises(ValueError, match=r"is not a file; give a checkpoint of facebookresearch/Motionformer"):
        motionformer_host(5, name="nothing.pyth", pretrained=True, config={})


def test_a_motionformer_is_loaded_from_its_checkpoint(tmp_path: Any) -> None:
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"num_frames": 4, "image_size": 32, "width": 64, "depth": 2, "num_heads": 1}
    model = Motionformer(num_classes=5, **tiny)
    torch.save({"model_state": model.state_dict()}, tmp_path / "model.pyth")
    head, config = (
        (host := motionformer_host(5, name=str(tmp_path / "model.pyth"), pretrained=True, config={})).head,
        {},
    )
    assert torch.equal(head.weight, model.get_submodule("head").weight)
    config = host.facts.config
    assert config == {**tiny, "values": "trajectory"}
    made = VideoTransformer(3, 5, GRID, host=lambda outputs: host)
    with pytest.warns(UserWarning, match=r"does not name its 5 classes, so they are taken in the order of the data"):
        assert made.match_classes(CLASSES)
    assert torch.equal(made.head.weight, model.get_submodule("head").weight)
