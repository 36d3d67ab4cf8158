"""Saved models of all families are loaded; what is missing is one sentence each."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, build
from vtm.video_llm.loading import load_llm


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save("llava_onevision", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def save(family: str, folder: Path) -> Path:
    tiny = build(family)
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_for_evaluation(tmp_path, family):
    llm = load_llm(str(save(family, tmp_path)))
    tiny = build(family)
    assert llm.name == str(tmp_path)
    assert type(llm.model) is type(tiny.model)
    assert not llm.model.training
    assert type(llm.processor) is type(tiny.processor)
    assert llm.processor.chat_template == tiny.processor.chat_template
    weights = llm.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tiny.model.state_dict().items())


def test_dtype_device_and_attention_are_as_asked_for(saved):
    llm = load_llm(str(saved), dtype="bfloat16", device_map="cpu", attention="eager")
    assert llm.model.dtype == torch.bfloat16
    assert llm.model.device.type == "cpu"
    assert llm.model.config.get_text_config()._attn_implementation == "eager"


def test_qwen_models_cap_the_pixels_of_frames_like_their_own_code(tmp_path):
    save("qwen2_vl", tmp_path)
    assert load_llm(str(tmp_path)).processor.video_processor.cap_pixels_per_frame is True
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    config["video_processor"]["cap_pixels_per_frame"] = False
    path.write_text(json.dumps(config))
    assert load_llm(str(tmp_path)).processor.video_processor.cap_pixels_per_frame is False


def test_what_is_missing_is_one_sentence(copy):
    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match) as error:
            load_llm(str(copy))
        assert "\n" not in str(error.value)

    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused(r"has no \.safetensors files, and others are not loaded since they can run code")
    (copy / "model.safetensors").write_bytes(weights[:1000])
    refused("the model cannot be loaded")
    (copy / "model.safetensors").write_bytes(weights)
    processor = (copy / "processor_config.json").read_text()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).rename(copy / f"{name}.gone")
    refused("the processor cannot be loaded|expected a processor")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / f"{name}.gone").rename(copy / name)
    (copy / "processor_config.json").unlink()
    refused("the processor cannot be loaded|expected a processor of videos and text")
    (copy / "processor_config.json").write_text(processor)
    assert load_llm(str(copy))
    (copy / "config.json").unlink()
    refused(r"has no config\.json; give the folder that save_pretrained has written")


def test_missing_weights_are_not_replaced_by_random_ones(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "self_attn.q_proj" in name)
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of the model are missing, such as .*q_proj"):
        load_llm(str(copy))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llama", "expected a model of one of the families llava_onevision, .*, got llama$"),
        ("internvl_chat", "got internvl_chat; take the version whose name ends in -hf"),
    ],
)
def test_other_families_are_named(copy, family, message):
    config = json.loads((copy / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"model_type": family, "auto_map": code}))
    (copy / "evil.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(ValueError, match=message):
        load_llm(str(copy))


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^\./gone: no such folder; give a folder, or a name such as owner/model$"):
        load_llm("./gone")
    with pytest.raises(ValueError, match="owner/model: no such folder, and the hub cannot be reached"):
        load_llm("owner/model")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_llm("model.safetensors")


def test_options_that_do_not_exist(saved):
    with pytest.raises(ValueError, match="expected a dtype of auto, float32, bfloat16, float16, got 'float8'"):
        load_llm(str(saved), dtype="float8")
    with pytest.raises(ValueError, match="the model cannot be loaded"):
        load_llm(str(saved), attention="magic")
    if importlib.util.find_spec("accelerate") is None:
        with pytest.raises(ValueError, match="device_map 'auto' needs accelerate"):
            load_llm(str(saved), device_map="auto")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "owner/model: no such folder, and no such model on the hub; check the name"),
        ("GatedRepoError", "owner/model: the hub gives this model only to those who have accepted its license"),
        ("HfHubHTTPError", "owner/model: no such folder, and the hub cannot be reached"),
    ],
)
def test_answers_of_the_hub_are_explained(monkeypatch, error, message):
    from huggingface_hub import HfApi, errors

    def refuse(*_: object, **options: object) -> None:
        assert options["timeout"]
        kind = getattr(errors, error)
        raise kind.__new__(kind)  # without the response that its __init__ takes

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ValueError, match=message):
        load_llm("owner/model")
