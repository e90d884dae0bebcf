"""What DeepSpeed's engine writes of itself under ZeRO 1 to 3, and takes up again.

Its files are pickles. They are written by our ranks into the folder of a trial's checkpoints, and opened after their
hashes were found to be those of the sealed file beside them, see :mod:`bench.train.checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from bench.train.checkpoint import CheckpointError


def folder_of(step: int) -> str:
    """Name of the folder, below that of the checkpoints, in which the engine's files after a step lie."""
    return f"engine-{step:08d}"


def save_engine(engine: Any, folder: Path, step: int) -> None:
    """Write what is trained, its masters and moments: each rank its part. A collective operation."""
    engine.save_checkpoint(str(folder), tag=folder_of(step), save_latest=False, exclude_frozen_parameters=True)
    if dist.get_rank() == 0:
        for script in folder.glob("zero_to_*.py"):  # DeepSpeed's, for people; nobody is to run what lies here
            script.unlink()
    dist.barrier()


def load_engine(engine: Any, folder: Path, step: int) -> None:
    """Have the engine be as it was after a step. A collective operation.

    Raises:
        CheckpointError: It does not take up the files, or is at another step then.
    """
    # Frozen parameters are not among the names, which a strict load would miss.
    path, _ = engine.load_checkpoint(str(folder), tag=folder_of(step), load_module_strict=False)
    if path is None or engine.global_steps != step:
        raise CheckpointError(
            f"{folder / folder_of(step)}: DeepSpeed does not take up its checkpoint (it is at step "
            f"{engine.global_steps}, and was at {step}); remove the folder to train from the start"
        )
