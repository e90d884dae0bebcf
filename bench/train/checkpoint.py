"""Checkpoints of a training, from which a retry continues a lost attempt bit for bit.

A checkpoint is one safetensors file. It holds the trained tensors, those that the method stores beside them, the
optimiser's moments, the best state so far and the random states of all ranks. Its header holds counters, curves and the
seal as JSON. Nothing is pickled. The file's name holds the step and the hash of its bytes, so that a torn or damaged
file is recognised.

Under ZeRO 1 to 3 DeepSpeed writes what is trained and the moments to files of its own, one or two for each rank, which
are pickles. The sealed file is written after them and holds their hashes. They are opened only if these are right.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from bench.method import copy_state, trained_parameters
from bench.schema.digests import sha256_of
from bench.schema.trial import JsonDict
from bench.store.crash_points import reached
from bench.store.files import PARTIAL_SUFFIX, write_atomically

NAME = re.compile(r"step-(\d{8})-([0-9a-f]{64})\.safetensors")
HEADER_LENGTH_BYTES = 8  # how safetensors files begin
# Bytes of a checkpoint that rank 0 sends at a time, which is all of it that is ever on a device.
PIECE = 2**26
Tensors = dict[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """There is no folder for checkpoints, or an engine does not take its own back."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps."""

    step: int
    tensors: Tensors
    facts: JsonDict

    def part(self, name: str) -> Tensors:
        """The tensors whose names begin with ``name/``, without this beginning."""
        return {key.partition("/")[2]: value for key, value in self.tensors.items() if key.startswith(f"{name}/")}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one trial. Rank 0 reads and writes them, and sends the others what they need.

    Args:
        folder: An existing folder on storage that outlives the attempt and that all nodes share.
        every_steps: Steps from one checkpoint to the next.
        seal: Trial, code and versions that made a checkpoint. One with another seal is not continued.
    """

    folder: Path
    every_steps: int
    seal: JsonDict

    def sealed_for(self, order: Sequence[Sequence[int]]) -> Checkpoints:
        """The same checkpoints with the order of the training data, and the number of ranks it is for, in their seal.

        Each rank has a random state, and under ZeRO a piece of what is trained. What so many ranks have written is
        nothing that another number of them could continue to the bit.
        """
        sha256 = hashlib.sha256(json.dumps(order).encode()).hexdigest()
        return replace(self, seal={**self.seal, "order of the data": sha256, "number of ranks": dist.get_world_size()})

    def save(self, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint, whole or not at all, and remove earlier ones.

        If the disk is full, the trial goes on without this checkpoint, and the files beside it are removed.

        Returns:
            Whether it is written. If not, the checkpoint before it stays, with what lies beside that one.
        """
        header = {"facts": json.dumps({**checkpoint.facts, "step": checkpoint.step, "seal": self.seal})}
        data = safetensors.torch.save(checkpoint.tensors, header)
        path = self.folder / f"step-{checkpoint.step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        try:
            for torn in self.folder.glob(f".*{PARTIAL_SUFFIX}"):
                torn.unlink(missing_ok=True)  # left by an attempt that was killed while it wrote
            write_atomically(path, data)
            for step, earlier in self._numbered_files():
                if step < checkpoint.step:
                    earlier.unlink(missing_ok=True)
            self._remove_folders_but(checkpoint.facts)
        except OSError as error:
            print(f"no checkpoint after step {checkpoint.step}: {error}", flush=True)  # noqa: T201 - into the log
            best = (checkpoint.facts.get("best_files") or {}).get("folder")  # which the training goes on to need
            for name in {file.partition("/")[0] for file in checkpoint.facts.get("files", {})} - {best}:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            return False
        reached("rank.after_checkpoint")
        return True

    def _remove_folders_but(self, facts: JsonDict) -> None:
        """Remove what earlier checkpoints, or attempts that were killed before theirs was whole, have left."""
        kept = {name.partition("/")[0] for name in facts.get("files", {})}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def latest(self, device: torch.device) -> Checkpoint | None:
        """The last intact checkpoint with this seal, on every rank; None if there is none. A collective operation.

        Raises:
            CheckpointError: Rank 0 does not see the folder.
        """
        while True:
            path, data = self._read() if dist.get_rank() == 0 else (None, b"")
            data = _from_rank_0(data, device)
            if not data:
                return None
            facts = _facts(data)
            damaged = self._damaged(facts, device)
            if path is not None and damaged is None:
                print(f"training continues from {path}", flush=True)  # noqa: T201
            elif path is not None:
                path.replace(path.with_name(f"{path.name}.damaged"))
                print(f"{self.folder / str(damaged)} of {path} is damaged or missing; set aside", flush=True)  # noqa: T201
            if damaged is None:
                return Checkpoint(int(facts["step"]), safetensors.torch.load(data), facts)

    def _read(self) -> tuple[Path | None, bytes]:
        """The last checkpoint with this seal that is itself intact. What lies beside it is not looked at."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"resources.checkpoint_every_steps: {self.folder} is not there on {platform.node()}; checkpoints "
                "need a results folder on storage that all nodes share under the same path"
            )
        for _, path in sorted(self._numbered_files(), reverse=True):
            data = path.read_bytes()
            named = NAME.fullmatch(path.name)
            if named is None or hashlib.sha256(data).hexdigest() != named[2]:
                path.replace(path.with_name(f"{path.name}.damaged"))
                print(f"{path} is damaged; its name ends in .damaged now", flush=True)  # noqa: T201
            elif (made_by := _facts(data)["seal"]) != self.seal:
                other = sorted(key for key, value in self.seal.items() if made_by.get(key) != value)
                path.unlink(missing_ok=True)
                print(  # noqa: T201
                    f"{path} was made with another {', '.join(other)}; removed, training starts from zero", flush=True
                )
            else:
                return path, data
        return None, b""

    def _damaged(self, facts: JsonDict, device: torch.device) -> str | None:
        """The first file beside a checkpoint that is not what it was, or was not there. A collective operation."""
        expected: dict[str, str] = facts.get("files", {})
        if not expected:
            return None
        folders = {name.partition("/")[0] for name in expected}
        present = list(self._files_below(folders)) if dist.get_rank() == 0 else []
        names = sorted({*expected, *gathered_values(present, device)[0]})
        found = shared_hashes(self.folder, names, device)
        return next((name for name in names if expected.get(name) != found.get(name)), None)

    def _files_below(self, folders: set[str]) -> Iterator[str]:
        """The files in these folders, by their paths below that of the checkpoints."""
        for folder in folders:
            for path in (self.folder / folder).rglob("*"):
                if path.is_file():
                    yield path.relative_to(self.folder).as_posix()

    def _numbered_files(self) -> list[tuple[int, Path]]:
        names = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [(int(named[1]), path) for named, path in names if named is not None]


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    by_engine: bool,
) -> tuple[Tensors, JsonDict]:
    """Everything that the next step depends on. A collective operation: ranks send their random states.

    Args:
        model: Patched.
        optimizer: Of the trained tensors.
        scheduler: Of its learning rate.
        device: Of the model.
        by_engine: Whether DeepSpeed keeps the trained tensors and the moments, so that they are left out.

    Returns:
        Tensors on the CPU, and values of JSON.
    """
    tensors: Tensors = {}
    numbers: dict[str, JsonDict] = {}
    if not by_engine:
        tensors = {f"trained/{name}": copy_on_cpu(tensor) for name, tensor in _exact(model).items()}
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{index}/{key}"] = copy_on_cpu(value)
                elif isinstance(value, dict):  # bitsandbytes keeps what is quantised together
                    tensors |= {
                        f"optimizer/{index}/{key}/{part}": copy_on_cpu(tensor) for part, tensor in value.items()
                    }
                else:
                    numbers.setdefault(str(index), {})[key] = value
    for kind, state in _random_states(device).items():
        shares = [torch.empty_like(state, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, state.to(device))
        tensors |= {f"random/{rank}/{kind}": copy_on_cpu(share) for rank, share in enumerate(shares)}
    facts: JsonDict = {
        "optimizer": numbers,
        "groups": [
            {key: value for key, value in group.items() if isinstance(value, bool | int | float | str)}
            for group in optimizer.param_groups
        ],
        "schedule": scheduler.state_dict(),
    }
    return tensors, facts


def restore_training_state(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    by_engine: bool,
) -> None:
    """Have the next step be the one after the checkpoint; arguments as those of :func:`training_state`."""
    if not by_engine:
        _put_back_trained(checkpoint, model, optimizer)
    scheduler.load_state_dict(checkpoint.facts["schedule"])
    _set_random_states(checkpoint.part("random"), dist.get_rank(), device)


def _put_back_trained(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    exact = _exact(model)
    copy_state(exact, checkpoint.part("trained"))
    with torch.no_grad():
        for name, parameter in trained_parameters(model):
            parameter.copy_(exact[name])
    fresh = optimizer.state_dict()
    states: dict[int, JsonDict] = {int(index): dict(kept) for index, kept in checkpoint.facts["optimizer"].items()}
    for name, tensor in checkpoint.part("optimizer").items():
        index, key, *within = name.split("/")
        state = states.setdefault(int(index), {})
        if within:
            state.setdefault(key, {})[within[0]] = tensor
        else:
            state[key] = tensor
    groups = [
        {**group, **numbers} for group, numbers in zip(fresh["param_groups"], checkpoint.facts["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _exact(model: nn.Module) -> Tensors:
    """What is trained, as its fp32 masters where it has any."""
    return {name: getattr(parameter, "fp32_master", parameter) for name, parameter in trained_parameters(model)}


def _random_states(device: torch.device) -> Tensors:
    _, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        # Doubles hold 32-bit words exactly. NaN says that Python has no second normal number ready.
        "python": torch.tensor([*words, float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    return {**states, **({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})}


def _set_random_states(states: Mapping[str, torch.Tensor], rank: int, device: torch.device) -> None:
    torch.set_rng_state(states[f"{rank}/torch"])
    *words, gauss = states[f"{rank}/python"].tolist()
    version = random.getstate()[0]
    random.setstate((version, tuple(int(word) for word in words), None if math.isnan(gauss) else gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{rank}/cuda"], device)


def shared_hashes(folder: Path, names: Sequence[str], device: torch.device) -> dict[str, str]:
    """Hashes of files, of which each rank reads its share; those that are not there are left out. Collective.

    One rank alone may read for longer than the others wait for it in a collective operation.

    Args:
        folder: On storage that all ranks share.
        names: Paths of the files below it.
        device: The device on which ranks send each other tensors.
    """
    share = names[dist.get_rank() :: dist.get_world_size()]
    own = {name: sha256_of(folder / name) for name in share if (folder / name).is_file()}
    return {name: sha256 for hashes in gathered_values(own, device) for name, sha256 in hashes.items()}


def gathered_values(value: Any, device: torch.device) -> list[Any]:
    """Values of all ranks, in order of ranks. They travel as JSON. A collective operation."""
    data = bytearray(json.dumps(value).encode())
    size = torch.tensor([len(data)], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8, device=device)
    padded[: len(data)] = torch.frombuffer(data, dtype=torch.uint8)
    texts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(texts, padded)
    return [json.loads(text[: int(own)].cpu().numpy().tobytes()) for text, own in zip(texts, sizes, strict=True)]


def _from_rank_0(data: bytes, device: torch.device) -> bytes:
    """The bytes that rank 0 has, in the host's memory of every rank. A collective operation."""
    if dist.get_world_size() == 1:
        return data
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0)
    pieces: list[bytes] = []
    for start in range(0, int(size), PIECE):
        if dist.get_rank() == 0:
            piece = torch.frombuffer(bytearray(data[start : start + PIECE]), dtype=torch.uint8).to(device)
        else:
            piece = torch.empty(min(PIECE, int(size) - start), dtype=torch.uint8, device=device)
        dist.broadcast(piece, 0)
        if dist.get_rank() != 0:
            pieces.append(piece.cpu().numpy().tobytes())
    return data if dist.get_rank() == 0 else b"".join(pieces)


def _facts(data: bytes) -> JsonDict:
    length = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
    header = json.loads(data[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
    facts: JsonDict = json.loads(header["__metadata__"]["facts"])
    return facts


def copy_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that safetensors can write."""
    return tensor.detach().to("cpu", copy=True).contiguous()
