"""Compressed visual tokens for the video LLMs of transformers: encode, compress, and shorten the model's inputs.

Notation: B rows of a batch, L ids of a row, t frames of h × w tokens, d width of the language model.
"""

from vtm.video_llm.compress import Compression, Compressor, compress, compress_videos
from vtm.video_llm.families import FAMILIES

__all__ = ["FAMILIES", "Compression", "Compressor", "compress", "compress_videos"]
