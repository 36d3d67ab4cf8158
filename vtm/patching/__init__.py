"""Training-free token merging inside ready transformers (Pollard and Wray 2025; Bolya et al. 2023)."""

from vtm.patching.block import State
from vtm.patching.dense import DenseMerge
from vtm.patching.patch import patch, recording, split_hidden_states, unpatch
from vtm.patching.reduction import drop_random, drop_similar, merge_hybrid, merge_random, merge_similar
from vtm.patching.schedules import constant, decreasing, equal_compute, increasing
from vtm.patching.trace import Trace
from vtm.patching.video_merge import VideoMerge
from vtm.patching.video_transformer import VideoTransformer

__all__ = [
    "DenseMerge",
    "State",
    "Trace",
    "VideoMerge",
    "VideoTransformer",
    "constant",
    "decreasing",
    "drop_random",
    "drop_similar",
    "equal_compute",
    "increasing",
    "merge_hybrid",
    "merge_random",
    "merge_similar",
    "patch",
    "recording",
    "split_hidden_states",
    "unpatch",
]
