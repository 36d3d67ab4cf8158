"""Tests of the weights of tokens in averages, against the loops of tests/reference.py."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests import reference
from vtm.merging import Tokens, motion_weights, saliency_weights, size_weights

Weigh = Callable[[Tokens], Tensor]


@pytest.mark.parametrize(
    ("weigh", "loops"),
    [
        (size_weights, reference.size_weights_loops),
        (motion_weights, reference.motion_weights_loops),
        (partial(saliency_weights, beta=3.0), partial(reference.saliency_weights_loops, beta=3.0)),
    ],
)
def test_weights_equal_the_loops(weigh: Weigh, loops: Callable[[reference.LoopTokens], Tensor]) -> None:
    tokens = reference.random_tokens(2, 12, seed=0)
    weights, expected = weigh(Tokens(*tokens)), loops(tokens)
    assert weights.shape == (2, 12)
    assert (weights >= 0).all()
    # Only ratios matter, so each clip is compared up to a common factor.
    torch.testing.assert_close(weights / weights[:, :1], expected / expected[:, :1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("weigh", "name"), [(motion_weights, "motion"), (partial(saliency_weights, beta=3.0), "saliency")]
)
def test_missing_scores_are_an_error_that_names_them(weigh: Weigh, name: str) -> None:
    tokens = reference.random_tokens(2, 12, seed=0)._replace(motion=None, saliency=None)
    with pytest.raises(ValueError, match=rf"needs tokens\.{name} \(B, N\), got None"):
        weigh(Tokens(*tokens))


def test_salient_tokens_dominate_up_to_the_largest_beta_and_larger_ones_are_refused() -> None:
    tokens = Tokens.from_grid(torch.zeros(1, 1, 1, 3, 1))
    tokens = Tokens(tokens.x, tokens.size, tokens.position, saliency=torch.tensor([[-0.5, -0.9, -1.0]]))
    weights = saliency_weights(tokens, beta=40.0)
    assert (weights > 0).all()
    assert weights[0, 1] / weights[0, 0] == pytest.approx(math.exp(-16), rel=1e-4)
    with pytest.raises(ValueError, match=r"beta in \[-40, 40\]"):
        saliency_weights(tokens, beta=41.0)
