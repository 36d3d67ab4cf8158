"""Samplers that order the clips by seed and epoch and divide them among ranks."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[int]):
    """Sampler that shuffles by seed and epoch and assigns the same number of different items to each rank.

    The few items that do not divide evenly are dropped, different ones in each epoch.

    Args:
        size: number of items.
        seed: seed of the order in every epoch.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: if there are fewer items than processes.
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
        """Set the epoch that determines the order; the trainer calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of items of this rank."""
        return self.size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Iterate over the items of this rank in the order of the epoch."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return iter(order[self.rank : len(self) * self.world_size : self.world_size].tolist())


class EvalSampler(Sampler[int]):
    """Sampler that assigns the items r, r + world_size, … to rank r, so that every item is evaluated exactly once.

    Args:
        size: number of items.
        rank: rank of this process.
        world_size: number of processes.
    """

    def __init__(self, size: int, *, rank: int, world_size: int) -> None:
        self.items = range(rank, size, world_size)

    def __len__(self) -> int:
        """Return the number of items of this rank."""
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the items of this rank in order."""
        return iter(self.items)
