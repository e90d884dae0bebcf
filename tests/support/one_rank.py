"""Trains lanes in the calling process, as a trial of one rank would, with a process group of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from bench.measure.phases import PhaseMeter
from bench.models.architecture import Architecture, architecture_of
from bench.rank.context import RankContext, join_process_group
from bench.schema.trial import Precision, ResourceSpec
from bench.train.checkpoint import Checkpoints
from bench.train.lane import Lane
from bench.train.loop import Training

CPU = torch.device("cpu")


def join_alone(folder: Path, device: torch.device = CPU) -> None:
    """Make the process group of one, which DeepSpeed insists on; once in the life of a process."""
    join_process_group(RankContext(0, 1, 0, torch.distributed.HashStore(), folder, "", 1), device)


def training_alone(
    lanes: Sequence[Lane],
    device: torch.device = CPU,
    pad_token_id: int = 0,
    architecture: Architecture | None = None,
    checkpoints: Checkpoints | None = None,
    compile: bool = False,
    zero_stage: Literal[0, 1, 2, 3] = 0,
    precision: Precision = "fp32",
) -> Training:
    """A training on one rank; without an architecture, of the models that the lanes train."""
    return Training(
        lanes=lanes,
        architecture=architecture or architecture_of(lanes[0].model.config),
        resources=ResourceSpec(compile=compile, zero_stage=zero_stage, precision=precision),
        rank=0,
        device=device,
        pad_token_id=pad_token_id,
        meter=PhaseMeter(device),
        checkpoints=checkpoints,
    )
