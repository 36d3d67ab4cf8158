"""A loaded model predicts videos as the test of train.py does, window by window, and explains errors."""

import copy
import json
import shutil
from functools import cache, partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import vtm
from vtm.data.dataset import VideoDataset, clip_generator, collate
from vtm.data.sampling import Windows
from vtm.data.source import Video, VideoFiles
from vtm.inference.model_file import ModelFileError, write_model
from vtm.inference.predictor import Predictor
from vtm.models import Stream
from vtm.video.decoding import VideoError

WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")


_MERGES = [("encoder/merge=tome", f"encoder.merge.count={count}") for count in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video):
    """A video of 9.5 s, one of 2.4 s, and one of a single frame."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "long.mp4", 9.5)
    make_video(folder / "short.mp4", 2.4)
    make_video(folder / "one frame.mp4", 1 / 8)
    return folder


@pytest.fixture(scope="module")
def model_of(tmp_path_factory, make_model):
    """Load the model of some overrides, once for all tests."""
    return cache(lambda *overrides: vtm.load(make_model(tmp_path_factory.mktemp("m") / "m.safetensors", *overrides)))


@pytest.fixture(scope="module")
def model(model_of):
    return model_of(*WINDOWS)


def expected(model: Predictor, path: Path) -> tuple[list[float], list[list[float]]]:
    """Score a video as the test of train.py does: one forward pass per clip of a data set, then their average."""
    video = Video(path.name, path, 0)
    motion = model.description["motion"]
    source = VideoFiles(root=path.parent, encoder=model.encoder, sampling=model.protocol.sampling, motion=motion)
    rows = []
    for clip in VideoDataset([video], model.protocol, source, train=False):
        batch = collate([clip])
        output = model.network(
            model.encoder(batch.inputs),
            motion=batch.motion,
            mask=batch.mask,
            generator=[clip_generator(clip.id)],
        )
        rows.append(output.logits[0].double().softmax(0) if model.labels else output.logits[0].double())
    return torch.stack(rows).mean(0).tolist(), [row.tolist() for row in rows]


@pytest.mark.parametrize("name", ["long.mp4", "short.mp4", "one frame.mp4"])
@pytest.mark.parametrize(
    "overrides",
    [
        WINDOWS,
        ("data/protocol=single",),
        (*WINDOWS, "merging=motion"),
        (*WINDOWS, "merging.sample_in_eval=true"),
        (*WINDOWS, "encoder/merge=tome", "encoder.merge.count=1"),
        (*WINDOWS, "merging=none", "model.time_embedding={_target_: vtm.models.SinusoidalTime}"),
    ],
    ids=["windows", "single", "motion", "sampling", "merging encoder", "none"],
)
def test_a_video_is_predicted_as_in_the_test_of_training(model_of, folder, overrides, name):
    model = model_of(*overrides)
    prediction = model.predict(folder / name)
    votes, rows = expected(model, folder / name)
    assert len(prediction.segments) == len(rows)
    for window, row in zip(prediction.segments, rows, strict=True):
        assert window.scores == pytest.approx(row, abs=1e-6)
    assert prediction.scores == pytest.approx(votes, abs=1e-6)
    assert prediction.label == ["dark", "light", "red"][votes.index(max(votes))]


def test_a_model_has_the_merging_of_its_encoder(model_of, folder):
    frames = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, zero, merged = (model_of(*WINDOWS, *overrides).encoder for overrides in ((), *_MERGES))
    assert zero.key == plain.key
    assert torch.equal(zero(frames), plain(frames))
    assert merged.key == plain.key.replace("-depth=1-", "-depth=1-merge_similar-constant1-")
    assert not torch.equal(merged(frames), plain(frames))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", [WINDOWS, ("data/protocol=single",)], ids=["windows", "single"])
def test_a_video_with_fewer_frames_than_a_clip_has_steps_is_short(model_of, folder, protocol, stream):
    model = model_of(*protocol)
    short = {name: model.predict(folder / name, stream=stream).short for name in ("long.mp4", "one frame.mp4")}
    assert short == {"long.mp4": False, "one frame.mp4": True}
    seconds = stream or protocol is WINDOWS  # else the frames of 2.4 s are enough
    assert model.predict(folder / "short.mp4", stream=stream).short == seconds


def test_windows_say_where_they_are(model, folder):
    segments = model.predict(folder / "long.mp4").segments
    assert [(window.start, window.end) for window in segments] == [(s, s + 4) for s in range(6)]
    (window,) = model.predict(folder / "short.mp4").segments
    assert (window.start, window.end) == (0, pytest.approx(2.4, abs=0.13))


def test_every_step_of_a_long_video_is_encoded_once(model, folder, monkeypatch):
    monkeypatch.setattr("vtm.inference.clips._FRAMES_AT_ONCE", 3)  # windows span several parts
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    before = model.predict(folder / "long.mp4")
    assert sum(seen) == 9
    assert max(seen) == 3
    monkeypatch.undo()
    assert model.predict(folder / "long.mp4").scores == pytest.approx(before.scores, abs=1e-6)


def test_a_stream_sees_the_whole_video_at_once(model, folder):
    video = Video("long", folder / "long.mp4", 0)
    source = VideoFiles(root=folder, encoder=model.encoder, sampling="1fps", motion=False)
    features = model.encoder(source.read(video, [float(t) for t in range(10)]).inputs[None])
    stream = Stream(model.network)
    stream.update(features)
    prediction = model.predict(folder / "long.mp4", stream=True)
    assert prediction.scores == pytest.approx(stream.logits()[0].softmax(0).tolist(), abs=1e-6)
    assert [(w.start, w.end) for w in prediction.segments] == [(0.0, prediction.seconds)]


def test_regression_predicts_a_value(tmp_path, make_model, folder):
    model = vtm.load(make_model(tmp_path / "model.safetensors", "task=regression", classes=None))
    prediction = model.predict(folder / "long.mp4")
    assert prediction.label is None
    assert prediction.score == pytest.approx(expected(model, folder / "long.mp4")[0][0], abs=1e-6)
    assert prediction.top() == [("value", prediction.score)]


def test_the_training_path_is_left_out(model):
    assert not [name for name, _ in model.network.named_parameters() if "auxiliary" in name]
    assert not model.training
    model.network.train()
    features = torch.randn(1, 4, *model.encoder.grid.shape, model.encoder.channels)
    assert model.network(features).aux_logits is None
    model.eval()


def test_a_trace_shows_what_was_merged(model, folder):
    view = model.trace(folder / "long.mp4", start=2.0)
    assert view.times == (2.0, 3.0, 4.0, 5.0)
    assert view.frames.shape == (4, 3, 32, 32)
    assert [block.window_frames for block in view.blocks] == [2, 4]
    assert view.blocks[0].group.shape == (4, model.encoder.grid.height, model.encoder.grid.width)
    assert dict(view.scores) == pytest.approx(
        dict(zip(model.labels, model.predict(folder / "long.mp4").segments[2].scores, strict=True)), abs=1e-6
    )
    short = model.trace(folder / "short.mp4")
    assert len(short.frames) == len(short.times) == len(short.blocks[0].group) == 3


def test_a_trace_needs_a_clip_to_be_there(tmp_path, make_model, model, folder):
    with pytest.raises(ValueError, match=r"long.mp4: expected a clip to start in \[0, 9.50\) s, got 20.0 s$"):
        model.trace(folder / "long.mp4", start=20.0)
    whole = vtm.load(make_model(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"sees the whole video as one clip; expected start 0 s, got 2\.0 s"):
        whole.trace(folder / "long.mp4", start=2.0)


def test_a_class_token_is_merged_but_not_drawn(tmp_path, make_model, folder):
    kept = ["encoder.cls_in_grid=true", "merging=motion"]
    model = vtm.load(make_model(tmp_path / "model.safetensors", *kept))
    assert model.encoder.grid == (2, 2, 1)
    view = model.trace(folder / "long.mp4")
    assert view.blocks[0].group.shape == (4, 2, 2)
    prediction = model.predict(folder / "long.mp4")
    assert sum(prediction.scores) == pytest.approx(1.0)


def test_files_that_are_no_videos_are_named(model, folder, tmp_path):
    for name, content in (("empty.mp4", b""), ("text.mp4", b"no video" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=name):
            model.predict(tmp_path / name)
    with pytest.raises((VideoError, FileNotFoundError), match=r"absent\.mp4"):
        model.predict(tmp_path / "absent.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((folder / "long.mp4").read_bytes()[:2000])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        model.predict(cut)


def test_a_model_of_features_takes_features(tmp_path, make_model, folder):
    model = vtm.load(make_model(tmp_path / "model.safetensors", "experiment=needle"))
    assert model(torch.randn(2, 8, 6, 6, 32)).sum(1).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match=r"was trained on features .* and cannot read"):
        model.predict(folder / "long.mp4")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_scores_that_are_not_finite_are_an_error(tmp_path, make_model, value):
    for task in ((), ("task=regression",)):
        classes = None if task else ("a", "b", "c")
        model = vtm.load(make_model(tmp_path / "m.safetensors", "merging=motion", *task, classes=classes))
        features, motion = torch.randn(2, 4, *model.encoder.grid.shape, model.encoder.channels), torch.rand(2, 4, 2, 2)
        mask = torch.ones(2, 4, dtype=torch.bool)
        mask[1, 3] = False
        features[1, 3] = torch.nan  # masked
        assert model(features, motion, mask).isfinite().all()
        features[0, 0] = value
        with pytest.raises(
            ValueError, match="expected finite scores, got NaN or infinity, because the features of the"
        ):
            model(features, motion, mask)
        model.network.head.weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"expected finite scores, .*, because the model has weights"):
            model(features[1:], motion[1:], mask[1:])


def test_a_trace_of_scores_that_are_not_finite_is_an_error(model_of, folder):
    model = copy.deepcopy(model_of(*WINDOWS))
    model.network.head.weight.data[0, 0] = torch.nan
    for call in (model.trace, model.predict, partial(model.predict, stream=True)):
        with pytest.raises(ValueError, match="expected finite scores"):
            call(folder / "long.mp4")


def test_another_encoder_is_refused(model):
    with pytest.raises(ModelFileError, match=r"trained on features of vit_large-pretrained, but its encoder is now"):
        Predictor({**model.description, "encoder_key": "vit_large-pretrained"})


def test_a_file_of_encoder_weights_may_move(tmp_path, make_model, folder):
    import timm

    backbone = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "vit.pth")
    path = make_model(tmp_path / "model.safetensors", f"encoder.checkpoint={tmp_path / 'vit.pth'}")
    before = vtm.load(path, encoder_checkpoint=tmp_path / "vit.pth").predict(folder / "long.mp4")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "vit.pth", tmp_path / "elsewhere" / "v.pth")
    with pytest.raises(ModelFileError, match=r"is missing; .* load\(…, encoder_checkpoint=…\)"):
        vtm.load(path, encoder_checkpoint=tmp_path / "vit.pth")
    moved = tmp_path / "elsewhere" / "v.pth"
    again = vtm.load(path, encoder_checkpoint=moved)
    assert again.predict(folder / "long.mp4") == before
    assert Predictor.from_pretrained(path.parent, encoder_checkpoint=moved).predict(folder / "long.mp4") == before
    torch.save({name: value + 1 for name, value in backbone.state_dict().items()}, moved)
    with pytest.raises(ModelFileError, match="use the same weights"):
        vtm.load(path, encoder_checkpoint=tmp_path / "elsewhere" / "v.pth")


@pytest.mark.parametrize(
    "encoder",
    [
        {"checkpoint": "vit.pth"},
        {"checkpoint": ""},
        *(
            {"model_name": name}
            for name in ("hf-hub:a/b", "HF-Hub:a/b", "hf_hub:a/b", " local-dir:.", "Local-Dir:.", "a/b")
        ),
    ],
)
def test_a_model_file_does_not_choose_where_weights_come_from(tmp_path, model, monkeypatch, encoder):
    """Not even if the file exists: it may be a file that an attacker has sent along."""
    monkeypatch.chdir(tmp_path)
    torch.save({}, "vit.pth")
    description = model.description | {"encoder": model.description["encoder"] | encoder}
    write_model(tmp_path / "model.safetensors", model.network.state_dict(), description)
    monkeypatch.setattr("vtm.inference.predictor.build", None)  # refused before anything is built
    for load in (vtm.load, Predictor.from_pretrained):
        with pytest.raises(ModelFileError, match="--encoder-checkpoint FILE of a command, or load"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_outputs": 4}, "expected 4 classes, one for each output, got 3"),
        ({"classes": None, "num_outputs": 4}, "does not describe a model that this version of vtm can build"),
        ({"model": {"_target_": "vtm.models.of_the_future.VTM"}}, "is not a class or function of"),
        (
            {"model": {"_target_": "vtm.models.VTM", "speed": 3}},
            r"does not describe a model .* model\.speed is unkn",
        ),
    ],
)
def test_a_file_that_describes_nothing_we_know_is_refused(tmp_path, model, change, reason):
    write_model(tmp_path / "model.safetensors", model.network.state_dict(), model.description | change)
    with pytest.raises(ModelFileError, match=reason):
        vtm.load(tmp_path)


def test_a_file_cannot_have_timm_fetch_anything(tmp_path, model):
    encoder = model.description["encoder"] | {"model_args": {"checkpoint_path": "/etc/passwd"}}
    write_model(tmp_path / "model.safetensors", model.network.state_dict(), model.description | {"encoder": encoder})
    with pytest.raises(ModelFileError, match="cannot tell timm where weights are, but sets 'checkpoint_path'"):
        vtm.load(tmp_path)


def test_a_model_in_half_precision_is_named_and_written(tmp_path, model):
    half = copy.deepcopy(model).bfloat16()
    assert half.identity != model.identity
    half.save_pretrained(tmp_path)
    assert vtm.load(tmp_path).network.head.weight.dtype == torch.float32


def test_a_model_is_shared_through_a_folder(model, folder, tmp_path):
    model.save_pretrained(tmp_path / "shared")
    again = Predictor.from_pretrained(tmp_path / "shared")
    assert again.predict(folder / "long.mp4") == model.predict(folder / "long.mp4")
    assert vtm.load(tmp_path / "shared").identity == model.identity
    config = json.loads((tmp_path / "shared" / "config.json").read_text(encoding="utf-8"))
    assert config["description"]["classes"] == ["dark", "light", "red"]


def test_the_card_is_that_of_the_model_and_takes_a_license(model, tmp_path):
    model.save_pretrained(tmp_path, model_card_kwargs={"license": "mit"})
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "vtm", "video-classification")
    assert {"token-merging", "long-form-video"} <= set(card.data.tags)
    assert "`dark`, `light`, `red`" in card.text


def test_pushing_uploads_the_file_and_its_card(model, monkeypatch):
    seen = {}

    class Repository:
        repo_id = "user/scene"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, **arguments: Repository())
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "upload_folder",
        lambda self, *, folder_path, **others: seen.update({path.name: path for path in Path(folder_path).iterdir()}),
    )
    model.push_to_hub("user/scene")
    assert seen.keys() == {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize("stream", [False, True])
def test_progress_within_a_video_is_told(model, folder, stream):
    told = []
    model.predict(folder / "long.mp4", stream=stream, seen=lambda done, total: told.append((done, total)))
    assert told == ([(9.0, 9.5)] if stream else [(7.0, 9.5), (9.0, 9.5)])


def test_the_protocol_is_that_of_the_training(model):
    assert model.protocol == Windows(num_frames=4, stride=1)
