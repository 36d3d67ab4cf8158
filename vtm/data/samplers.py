"""The order of the clips, which depends on seed and epoch alone, and how processes divide them."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[int]):
    """Shuffle by seed and epoch and give each rank the same number of items, all different.

    The few items that do not divide evenly are left out, other ones in every epoch.

    Args:
        size: The number of items.
        seed: Fixes the orders of all epochs.
        rank: This process.
        world_size: The number of processes.
    """

    def __init__(self, size: int, *, seed: int, rank: int, world_size: int) -> None:
        if size < world_size:
            raise ValueError(f"expected at least one training video per device, got {size} for {world_size} devices")
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; the trainer calls it at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the items of this rank."""
        return self.size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Go through the items of this rank."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return iter(order[self.rank : len(self) * self.world_size : self.world_size].tolist())


class EvalSampler(Sampler[int]):
    """Give rank r the items r, r + world_size, …, so that all ranks together see every item exactly once.

    Args:
        size: The number of items.
        rank: This process.
        world_size: The number of processes.
    """

    def __init__(self, size: int, *, rank: int, world_size: int) -> None:
        self.items = range(rank, size, world_size)

    def __len__(self) -> int:
        """Count the items of this rank."""
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        """Go through the items of this rank in order."""
        return iter(self.items)
