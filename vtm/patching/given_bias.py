"""A bias for the attention of models of transformers whose blocks pass no mask to it.

The block gives the bias, and the attention, which is told by its configuration to call `attend_with_bias`, takes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from vtm.patching.host import check_implementation

_NAME = "vtm_proportional"
_given = threading.local()  # .bias: attention that is running in this thread, and what to add to its logits


@contextmanager
def given_bias(attention: Any, bias: Tensor | None) -> Iterator[None]:
    """Give a bias, which broadcasts to (B, heads, N, N), to an attention that is called inside."""
    _given.bias = (attention, bias)
    try:
        yield
    finally:
        _given.bias = (None, None)


def attend_with_bias(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> Any:
    """Attend as the model's own implementation does, with the bias that the block has given.

    Raises:
        ValueError: if that implementation takes no bias.
    """
    attend = AttentionInterface().get_interface(check_implementation(module.own_config), module.own_eager)
    attention, bias = getattr(_given, "bias", (None, None))
    return attend(module, query, key, value, bias if attention is module else None, **kwargs)


AttentionInterface.register(_NAME, attend_with_bias)  # at import, so that a pickled model finds it


def let_take_bias(attention: Any, eager: Callable[..., Any]) -> None:
    """Let an attention take a bias.

    Its configuration is copied, because all blocks share it.

    Args:
        attention: attention with a configuration of transformers.
        eager: function that attends with a bias if the model's implementation is "eager".
    """
    attention.own_config, attention.own_eager = attention.config, eager
    attention.config = copy(attention.config)
    attention.config._attn_implementation = _NAME


def restore_attention(attention: Any) -> None:
    """Undo `let_take_bias`."""
    if hasattr(attention, "own_config"):
        attention.config = attention.own_config
        del attention.own_config, attention.own_eager
