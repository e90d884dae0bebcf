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

from bench.schema.digests import sha256_of
from bench.train.checkpoint import CheckpointError, gathered_values


def folder_of(step: int) -> str:
    """Name of the folder, below that of the checkpoints, in which the engine's files after a step lie."""
    return f"engine-{step:08d}"


def save_engine(engine: Any, folder: Path, step: int) -> dict[str, str] | None:
    """Write what is trained, its masters and moments: each rank its part. A collective operation.

    Each rank hashes what it has written, because one that read the files of all others would keep them waiting for
    longer than a collective operation lasts.

    Returns:
        Hashes of the files of all ranks, by their paths below the folder. None if a rank could not write its part, for
        example on a full disk: then nothing of this step is left, and the log of the rank says why.
    """
    hashes: dict[str, str] = {}
    with _writing(engine) as (written, errors):
        engine.save_checkpoint(str(folder), tag=folder_of(step), save_latest=False, exclude_frozen_parameters=True)
    try:
        hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
    except OSError as error:
        errors.append(error)
    for first in errors[:1]:
        print(f"no checkpoint after step {step}: {first}", flush=True)  # noqa: T201 - into the log
    shares = gathered_values(None if errors else hashes, engine.device)
    if None in shares:
        if dist.get_rank() == 0:
            shutil.rmtree(folder / folder_of(step), ignore_errors=True)
        return None
    return {name: sha256 for share in shares for name, sha256 in share.items()}


@contextmanager
def _writing(engine: Any) -> Iterator[tuple[list[Path], list[Exception]]]:
    """Inside the block files of this rank, and errors of writing them, are collected.

    Ranks that go on would wait for one that an error has ended. The names of DeepSpeed here are not public. A test
    notices if they disappear.
    """
    writer = engine.checkpoint_engine
    write, copy_scripts = writer.save, engine._copy_recovery_script
    written: list[Path] = []
    errors: list[Exception] = []

    def save(state_dict: Any, path: str, **named: Any) -> None:
        try:
            write(state_dict, path, **named)
            written.append(Path(path))
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a file that ends too early
            errors.append(error)

    writer.save = save
    engine._copy_recovery_script = lambda _: None  # it is for people; nobody is to run what lies here
    try:
        yield written, errors
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
