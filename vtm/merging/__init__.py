"""Token merging in pure torch: partition, matching, merging (VTM paper, sections 3 and 4).

Notation: B batch, N tokens, M targets, R merged sources, C channels, D width of the keys, T × H × W the token grid.
"""

from vtm.merging.layer import Merged, NoMerger, SaliencyEstimator, TokenMerger
from vtm.merging.matching import match_bipartite
from vtm.merging.merge import compose, merge, unmerge
from vtm.merging.partition import (
    boundary_partition,
    center_partition,
    motion_partition,
    saliency_partition,
    uniform_partition,
)
from vtm.merging.tokens import ClipMerge, FeatureGrid, Grid, Grouping, Tokens
from vtm.merging.weights import motion_weights, saliency_weights, size_weights

__all__ = [
    "ClipMerge",
    "FeatureGrid",
    "Grid",
    "Grouping",
    "Merged",
    "NoMerger",
    "SaliencyEstimator",
    "TokenMerger",
    "Tokens",
    "boundary_partition",
    "center_partition",
    "compose",
    "match_bipartite",
    "merge",
    "motion_partition",
    "motion_weights",
    "saliency_partition",
    "saliency_weights",
    "size_weights",
    "uniform_partition",
    "unmerge",
]
