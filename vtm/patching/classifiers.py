"""Classifiers of images in transformers that average their tokens, for `pool="size"`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from vtm.patching.host import Averaging
from vtm.patching.pooling import TakeState, check_mean, pass_sizes


def classify(model: Any, features: Tensor, outputs: Any, labels: Tensor | None, **kwargs: Any) -> Any:
    """Classify pooled features, and return what the classifiers of images in transformers return.

    Args:
        model: classifier.
        features: (B, channels of its last layer).
        outputs: what its tower returned.
        labels: (B,), or None for no loss.
        kwargs: what else its loss function is given.
    """
    logits = model.classifier(features)
    return ImageClassifierOutput(
        loss=None if labels is None else model.loss_function(labels, logits, model.config, **kwargs),
        logits=logits,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def take_off_before(norm: nn.Module, width: int) -> None:
    """Let the layer after the last block take the state off tokens with `width` channels, and pass their sizes on."""
    norm.register_forward_pre_hook(TakeState(width))
    norm.register_forward_hook(pass_sizes)


class _Given(nn.Module):
    """A tower that returns given tokens."""

    tokens: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return them."""
        return BaseModelOutput(last_hidden_state=self.tokens)


def averaging(model: Any, weighing: Any, tower: str, **options: Any) -> Averaging:
    """Return how a classifier averages its tokens.

    Args:
        model: class of the classifier.
        weighing: subclass that weighs the tokens by their sizes, of the same name, because `save_pretrained` writes the
            name into the configuration.
        tower: name of the part of the classifier that returns the tokens.
        options: configuration of a tiny classifier, on which the two are compared.
    """

    def check(patched: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            tiny = model(model.config_class(**options)).eval()
        given = _Given()
        setattr(tiny, tower, given)

        def logits(kind: Any, tokens: Tensor) -> Any:
            given.tokens = tokens
            return kind.forward(tiny, None).logits

        check_mean(model.__name__, TINY["hidden_size"], partial(logits, weighing), partial(logits, model))

    return Averaging(model, weighing, lambda patched: None, check)


TINY = {"hidden_size": 12, "num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 12}
