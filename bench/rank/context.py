"""What a rank knows of its trial: its number, its device, whom it reports to, and what its failures mean."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # torch.distributed has it too, without telling type checkers

from bench.measure.provenance import cpu_name
from bench.rank.environment import SEAT_VARIABLE
from bench.schema.record import Failed, Reason
from bench.schema.trial import JsonDict, TrialSpec
from bench.train.lane import Diverged

# A rank that waits longer than this for another one in a collective operation gives up.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# How often a rank looks whether another one has done something that may take hours.
WAIT_SECONDS = 0.1


@dataclass(frozen=True)
class RankContext:
    """The number of a rank among the ranks of its trial, and whom it reports to."""

    rank: int
    ranks: int
    local_rank: int
    store: Any  # a torch.distributed.Store that all ranks share
    outbox: Path  # the driver collects the files in this folder
    driver_code_sha256: str
    threads: int
    progress: Callable[[JsonDict], None] = field(default=lambda event: None)
    checkpoints: Path | None = None  # the folder for checkpoints of this trial; None if it makes none


def tell_phase(contexts: Sequence[RankContext], phase: str) -> None:
    """Tell the driver which phase of each of these trials has begun."""
    for context in contexts:
        context.progress({"phase": phase})


def tell_downloaded(contexts: Sequence[RankContext], here: int, of_all: int | None) -> None:
    """Tell the driver how many bytes of the base model are on this machine, and how many there will be."""
    for context in contexts:
        context.progress({"downloaded_bytes": here, "download_bytes": of_all})


def member_context(context: RankContext, number: int) -> RankContext:
    """The context of a later member of a launch, with a folder of its own."""
    folder = context.outbox / f"member-{number}"
    folder.mkdir()
    return dataclasses.replace(
        context, outbox=folder, progress=lambda event: context.progress({**event, "member": number})
    )


def in_shards(spec: TrialSpec) -> bool:
    """Whether no rank of a trial holds the base model, but a slice of each of its weights.

    A quantised one is packed as a whole by each rank.
    """
    return spec.resources.zero_stage == 3 and spec.resources.ranks > 1 and spec.model.stored_in is None


def select_device(spec: TrialSpec, context: RankContext) -> torch.device:
    """The device of this rank. It sees the GPUs that the launcher lets it use."""
    wanted = spec.resources.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("resources.device: cuda was asked for, and this rank sees no GPU")
    if wanted == "auto" and not torch.cuda.is_available() and (given := os.environ.get(SEAT_VARIABLE)):
        raise OSError(
            errno.ENODEV,
            f"this rank was given GPU {given} of {platform.node()} and cannot use it: torch {torch.__version__} sees "
            "no GPU there. `tuneoff doctor` on that node says why; resources.device: cpu trains without GPUs",
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", context.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Name of the hardware, for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def join_process_group(context: RankContext, device: torch.device) -> None:
    """Join the other ranks through the store of the launcher, so that no port has to be guessed."""
    os.environ["LOCAL_RANK"] = str(context.local_rank)  # DeepSpeed needs this variable and no other
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops

    # On a CPU, DeepSpeed would compile a shared-memory all-reduce at start-up, which takes a minute and waits for a
    # lock without limit. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("process_group", context.store),
        rank=context.rank,
        world_size=context.ranks,
        timeout=COLLECTIVE_TIMEOUT,
    )


def share_json(context: RankContext, key: str, value: JsonDict) -> list[JsonDict]:
    """Exchange a value with all ranks through the store, as JSON. Returns the values in order of ranks."""
    keys = [f"{key}/{rank}" for rank in range(context.ranks)]
    context.store.set(keys[context.rank], json.dumps(value))
    wait_for(context, *keys)
    return [json.loads(context.store.get(key)) for key in keys]


def wait_for(context: RankContext, *keys: str) -> None:
    """Wait until ranks have set keys in the store, however long that takes.

    The launcher ends ranks that wait for one that has failed or died.
    """
    while not context.store.check(list(keys)):
        time.sleep(WAIT_SECONDS)


def wait_for_all(context: RankContext, where: str) -> None:
    """Wait until all ranks have come here, for longer than a collective operation would."""
    context.store.set(f"{where}/{context.rank}", "")
    wait_for(context, *(f"{where}/{rank}" for rank in range(context.ranks)))


def failure(error: Exception, phase: str | None, rank: int) -> Failed:
    """An exception as an outcome."""
    return Failed(
        reason=failure_reason(error),
        phase=phase,
        rank=rank,
        message=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )


# How gloo and NCCL say that another rank is gone. That rank, or its host, knows why.
BROKEN_CONNECTION = ("gloo/transport", "ncclRemoteError")


# Errors of the system that mean a fault of storage or network, and not of the trial.
MACHINE_ERRORS = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
}


def failure_reason(error: BaseException) -> Reason:
    """The reason of a failure: out of memory, divergence or the loss of another rank; else a plain error.

    An error that was raised from another one, to say what to do, has the reason of that one.
    """
    if isinstance(error, Diverged):
        return "diverged"
    broken = isinstance(error, RuntimeError) and any(sign in str(error) for sign in BROKEN_CONNECTION)
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError) or broken:
        return "worker_lost"
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        return "worker_lost"
    cpu_allocation_failed = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or cpu_allocation_failed:
        return "out_of_memory"
    return "error" if error.__cause__ is None else failure_reason(error.__cause__)
