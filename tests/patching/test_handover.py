"""A model that does something to the tokens between its blocks is refused: it would change their sizes and places."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm

from tests.patching.models import make_host
from vtm.patching import patch
from vtm.patching.motionformer import Motionformer

VIT = timm.models.vision_transformer.VisionTransformer


def between_blocks(change: Callable[[nn.Module, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a `forward_features` that changes the tokens after each block."""

    def forward_features(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = change(self, block(x))
        return self.norm(x)

    return forward_features


def make(kind: type[nn.Module] = VIT, **options: Any) -> Any:
    return kind(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5, **options).eval()


CHANGES = {
    "scale": lambda model, x: 1.5 * x,
    "dropout": lambda model, x: dropout(x, 0.3, model.training),
    "norm": lambda model, x: layer_norm(x, x.shape[-1:]),
    "mean": lambda model, x: x + x.mean(1, keepdim=True),
    "order": lambda model, x: x.flip(1),
    "fewer": lambda model, x: x[:, :-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_subclass_that_changes_the_tokens_between_blocks_is_refused(change: str) -> None:
    model = make(type("Own", (VIT,), {"forward_features": between_blocks(CHANGES[change])}))
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match=r"forward of .*Own is not one that vtm can patch: it changes the tokens be"):
        patch(model, [2, 2, 2])
    assert [dict(vars(module)) for module in model.modules()] == before
    patch(model, [0, 0, 0])  # without state, there is nothing to change


def test_a_library_whose_model_changes_the_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VIT, "forward_features", between_blocks(CHANGES["scale"]))
    with pytest.raises(RuntimeError, match=r"changes the tokens between blocks 0 and 1"):
        patch(make(), [2, 2, 2])


def test_a_subclass_that_runs_the_blocks_in_its_own_way_is_refused() -> None:
    class Skipping(VIT):
        def forward_features(self, x: Tensor, **options: Any) -> Tensor:
            return self.norm(self.blocks[2](self.blocks[0](self._pos_embed(self.patch_embed(x)))))

    with pytest.raises(RuntimeError, match="it runs block 2 after 1 others"):
        patch(make(Skipping), [2, 2, 2])


def test_a_subclass_that_only_reads_the_tokens_is_patched() -> None:
    def read(model: nn.Module, x: Tensor) -> Tensor:
        x.mean()
        return x

    model = make(type("Reading", (VIT,), {"forward_features": between_blocks(read)}))
    patch(model, [2, 2, 2])
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("options", [{"dynamic_img_size": True}, {"in_chans": 4}, {"global_pool": "avg"}])
def test_models_with_other_inputs_are_patched(options: dict[str, Any]) -> None:
    patch(make(**options), [2, 2, 2])


def test_hooks_of_the_blocks_are_not_called_and_stay() -> None:
    model, calls = make(), []
    model.blocks[1].register_forward_hook(lambda *given: calls.append(1))
    patch(model, [2, 2, 2])
    assert not calls
    model(torch.randn(1, 3, 32, 32))
    assert calls


@pytest.mark.parametrize(
    ("name", "encoder", "layers", "groups"),
    [
        ("VideoMAEModel", "VideoMAEEncoder", "layer", "clip"),
        ("TimesformerModel", "TimesformerEncoder", "layer", "frame"),
        ("CLIPVisionModel", "CLIPEncoder", "layers", "clip"),
        ("SiglipVisionModel", "SiglipEncoder", "layers", "clip"),
        ("Dinov2Model", "Dinov2Encoder", "layer", "clip"),
        ("Siglip2VisionModel", "Siglip2Encoder", "layers", "clip"),
        ("VJEPA2Model", "VJEPA2Encoder", "layer", "clip"),
    ],
)
def test_a_model_of_transformers_that_changes_the_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, encoder: str, layers: str, groups: Any
) -> None:
    model = make_host(name, num_frames=4)()
    (kind,) = {type(module) for module in model.modules() if type(module).__name__ == encoder}

    def forward(self: Any, x: Tensor | None = None, inputs_embeds: Tensor | None = None, **pixels: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        x = inputs_embeds if x is None else x
        x = self.embeddings(pixels["pixel_values_videos"]) if x is None else x
        for layer in getattr(self, layers):
            x = layer(x, None) if layers == "layers" else layer(x)
            x = 1.5 * (x[0] if isinstance(x, tuple) else x)
        return BaseModelOutput(last_hidden_state=x)

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(RuntimeError, match=r"changes the tokens between blocks 0 and 1"):
        patch(model, [2, 2, 2], groups=groups)


def test_a_motionformer_that_changes_the_tokens_is_refused() -> None:
    class Scaling(Motionformer):
        def forward(self, x: Tensor) -> Any:
            tokens = self.patch_embed_3d["proj"](x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
            for block in self.blocks:
                tokens = 1.5 * block(tokens)
            return self.norm(tokens)

    model = Scaling(num_frames=4, image_size=32, width=24, depth=3, num_heads=3, num_classes=5)
    with pytest.raises(RuntimeError, match="changes the tokens between blocks 0 and 1"):
        patch(model, [1, 1, 1], groups="frame")
