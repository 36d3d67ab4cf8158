"""Write the checkpoints of a run so that a kill leaves the old or the new one complete, and read no damaged ones."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from vtm.system.atomic import remove_unfinished, write_atomically
from vtm.training.checkpoint import check_intact


class AtomicCheckpointIO(TorchCheckpointIO):
    """A reader and writer of checkpoints, which replaces files in one step.

    Lightning writes to a temporary folder and, if that is on another file system, copies over the old file; a process
    that is killed inside the copy leaves a broken checkpoint. Here the new file is written beside the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, and remove what killed processes have left beside it."""
        if "://" in str(path):  # an address, such as that of an object store
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        remove_unfinished(Path(path))
        write_atomically(Path(path), content.getvalue())

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            ValueError: if a byte of it has changed since it was written.
        """
        if "://" not in str(path):
            check_intact(path, name=str(path))
        content: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return content
