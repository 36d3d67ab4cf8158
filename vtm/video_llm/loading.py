"""Load a video LLM and its processor from a folder or from the Hugging Face hub, without running code from there."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vtm.system.names import explain_path
from vtm.video_llm.families import FAMILIES

DTYPES = ("auto", "float32", "bfloat16", "float16")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SECONDS = 5.0  # that the hub may take to answer


@dataclass(frozen=True)
class VideoLLM:
    """A video LLM in evaluation mode, with its processor.

    Attributes:
        name: folder or name on the hub.
        model: model of a supported family.
        processor: processor with a tokenizer.
    """

    name: str
    model: Any
    processor: Any


def load_llm(
    name: str, *, dtype: str = "auto", device_map: str | None = None, attention: str | None = None
) -> VideoLLM:
    """Load a model of a supported family, without running code that comes with it.

    Args:
        name: folder with a model that `save_pretrained` has written, or the name of one on the hub.
        dtype: one of `DTYPES`; "auto" for the one in which the weights are stored.
        device_map: "auto" to spread the model over all GPUs, or a device such as "cuda:1" or "cpu"; None for a GPU if
            there is one.
        attention: implementation of attention, such as "sdpa", "eager" or "flash_attention_2"; None for the default of
            transformers.

    Raises:
        ValueError: if there is no such model, its family is not supported, or a part of it cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("video LLMs need transformers, which is not installed: pip install 'vtm[hf]'")
    if device_map is not None and not _is_device(device_map) and importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            f"device_map {device_map!r} needs accelerate, which is not installed: pip install accelerate, or name a "
            "device such as cuda:0"
        )
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": _find(name)}
    _check_family(name, options)
    with _naming(name, "processor"):
        processor = AutoProcessor.from_pretrained(name, **options)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "video_processor"):
        raise ValueError(
            f"{name}: expected a processor of videos and text, got {type(processor).__name__}; save the processor of "
            "the model beside it with save_pretrained"
        )
    if getattr(processor.video_processor, "cap_pixels_per_frame", False) is None:  # of Qwen models
        processor.video_processor.cap_pixels_per_frame = True  # as in their own code; transformers warns, and will too
    device = None if device_map is not None and not _is_device(device_map) else torch.device(device_map or _best())
    if attention is not None:
        options["attn_implementation"] = attention
    if device is None:
        options["device_map"] = device_map
    with _naming(name, "model"):
        model, report = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name}: {len(missing)} weights of the model are missing, such as {missing[0]}; download or save it again"
        )
    if device is not None:
        with _naming(name, "model"):
            model.to(device)
    return VideoLLM(name, model.eval(), processor)


def _find(name: str) -> bool:
    """Return whether only local files are to be used: those of a folder, or of the cache if the hub cannot be reached.

    Raises:
        ValueError: if there is neither a folder with a model, nor a model of this name on the hub or in the cache.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name}: has no config.json; give the folder that save_pretrained has written")
        if not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{name}: has no .safetensors files, and others are not loaded since they can run code; save the model "
                "again with save_pretrained"
            )
        return True
    if folder.exists():
        raise ValueError(f"{name}: is a file; give the folder with config.json and .safetensors files")
    if _HUB_NAME.fullmatch(name) is None or name.startswith("."):
        raise ValueError(f"{name}: no such folder{explain_path(folder)}; give a folder, or a name such as owner/model")
    return _is_only_cached(name)


def _is_only_cached(name: str) -> bool:
    """Ask the hub once, since transformers would try for minutes, and return True if it cannot be reached.

    Raises:
        ValueError: if there is no such model, or it can neither be reached nor is it in the cache.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_SECONDS)
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: the hub gives this model only to those who have accepted its license; accept it on its page, and "
            "log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{name}: no such folder, and no such model on the hub; check the name") from error
    except Exception as error:  # the hub raises those of the HTTP library that it happens to use
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            raise ValueError(
                f"{name}: no such folder, and the hub cannot be reached ({_first_line(error)}); give the folder of a "
                "model, or download it where there is a network: hf download"
            ) from error
        return True
    return False


def _check_family(name: str, options: dict[str, Any]) -> None:
    """Raise a ValueError for a model of another family, before its weights are fetched."""
    from transformers import PreTrainedConfig

    with _naming(name, "config.json"):
        config, _ = PreTrainedConfig.get_config_dict(name, **options)
    family = config.get("model_type")
    if family not in FAMILIES:
        hint = "; take the version whose name ends in -hf" if family == "internvl_chat" else ""
        raise ValueError(f"{name}: expected a model of one of the families {', '.join(FAMILIES)}, got {family}{hint}")


@contextmanager
def _naming(name: str, part: str) -> Iterator[None]:
    """Turn errors of transformers into one sentence that names the model and its part."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{name}: the GPU has too little memory for the model; try dtype bfloat16, or device_map auto to spread it "
            "over several GPUs"
        ) from error
    except Exception as error:
        raise ValueError(f"{name}: the {part} cannot be loaded ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    """Return the first sentence of a message, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines), type(error).__name__)
    return text if len(text) <= 200 else text[:199] + "…"


def _is_device(device_map: str) -> bool:
    return re.fullmatch(r"(cpu|mps|(cuda|xpu)(:\d+)?)", device_map) is not None


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
