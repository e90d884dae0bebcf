"""What DeepSpeed's engine writes of itself under ZeRO 1 to 3, and takes up again.

Its files are pickles. They are written by our ranks into the folder of a trial's checkpoints, and opened after their
hashes were found to be those of the sealed file beside them, see :mod:`bench.train.checkpoint`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.train.checkpoint import CheckpointError


def folder_of(step: int) -> str:
    """Name of the folder, below that of the checkpoints, in which the engine's files after a step lie."""
    return f"engine-{step:08d}"


def save_engine(engine: Any, folder: Path, step: int) -> bool:
    """Write what is trained, its masters and moments: each rank its part. A collective operation.

    Returns:
        Whether all ranks could write theirs. If not, for example on a full disk, nothing of this step is left, and the
        log of the rank says why.
    """
    with _errors_of(engine) as errors:
        engine.save_checkpoint(str(folder), tag=folder_of(step), save_latest=False, exclude_frozen_parameters=True)
    for error in errors[:1]:
        print(f"no checkpoint after step {step}: {error}", flush=True)  # noqa: T201 - into the log
    lacking = torch.tensor([len(errors)], device=engine.device)
    dist.all_reduce(lacking)
    if int(lacking) and dist.get_rank() == 0:
        shutil.rmtree(folder / folder_of(step), ignore_errors=True)
    return not int(lacking)


@contextmanager
def _errors_of(engine: Any) -> Iterator[list[Exception]]:
    """Inside the block errors of writing are collected, because ranks that go on would wait for one that is gone.

    The names of DeepSpeed here are not public. A test notices if they disappear.
    """
    writer = engine.checkpoint_engine
    write, copy_scripts = writer.save, engine._copy_recovery_script
    errors: list[Exception] = []

    def save(*arguments: Any, **named: Any) -> None:
        try:
            write(*arguments, **named)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a file that ends too early
            errors.append(error)

    writer.save = save
    engine._copy_recovery_script = lambda _: None  # it is for people; nobody is to run what lies here
    try:
        yield errors
    finally:
        writer.save, engine._copy_recovery_script = write, copy_scripts


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
