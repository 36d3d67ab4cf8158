"""The stand-in for an encoder says what the features are, and takes no frames."""

import pytest
import torch

from vtm.data.source import Encoding
from vtm.encoders import Precomputed


def test_precomputed_features_take_no_frames():
    encoder = Precomputed("needle", grid=[3, 5], channels=16)
    assert (encoder.key, encoder.grid, encoder.channels) == ("needle-3x5x16", (3, 5), 16)
    with pytest.raises(ValueError, match="stands for features, but got frames"):
        encoder(torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))


def test_there_is_nothing_to_encode_or_to_read_back():
    with pytest.raises(ValueError, match="needle-3x5x16 is what the data are already"):
        Encoding.of(Precomputed("needle", grid=[3, 5], channels=16))
