"""Tests of the placeholder for an encoder of precomputed features."""

import pytest
import torch

from vtm.encoders import Precomputed


def test_precomputed_features_take_no_frames():
    encoder = Precomputed("needle", grid=[3, 5], channels=16)
    assert (encoder.key, encoder.grid.shape, encoder.channels) == ("needle-3x5x16", (3, 5), 16)
    assert encoder.frames is None
    with pytest.raises(ValueError, match=r"expects precomputed features, got frames \(1, 4, 3, 8, 8\)"):
        encoder(torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))
