"""Fewer visual tokens for a video LLM: pure functions on the features of one clip.

Notation: t frames of h × w tokens, d and c widths of the tokens and of the encoder features, M tokens that are left.
"""

from vtm.compressors.bipartite import budget_rounds
from vtm.compressors.clip import Clip, Compressed
from vtm.compressors.clustering import tw_finch
from vtm.compressors.dyntok import Calibration, calibrate, dyntok
from vtm.compressors.dyto import dyto
from vtm.compressors.frames import select_frames
from vtm.compressors.peers import keep_all, pool, random_frames, random_tokens, tome, uniform_frames
from vtm.compressors.similarity import neighbor_similarity

__all__ = [
    "Calibration",
    "Clip",
    "Compressed",
    "budget_rounds",
    "calibrate",
    "dyntok",
    "dyto",
    "keep_all",
    "neighbor_similarity",
    "pool",
    "random_frames",
    "random_tokens",
    "select_frames",
    "tome",
    "tw_finch",
    "uniform_frames",
]
