"""The files of an adapter's tensors: one, or several with an index if one would be large, as in transformers.

``adapter.safetensors``; or ``adapter-00001-of-00003.safetensors``, ... and ``adapter.safetensors.index.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from bench.schema.digests import sha256_of

TENSORS_FILE = "adapter.safetensors"
INDEX_FILE = f"{TENSORS_FILE}.index.json"
LARGEST_FILE_BYTES = 2**30
BYTES = torch.finfo(torch.float32).bits // 8
# The format of safetensors: bytes that hold the length of the header, and the alignment of the data.
LENGTH_BYTES, ALIGNMENT = 8, 8


class AdapterError(ValueError):
    """A folder holds no adapter that can be used here. The message says what to do."""


def tensors_files(folder: Path) -> list[Path]:
    """The files with the tensors of an adapter, in order of names; none if the folder has none.

    Raises:
        AdapterError: The index cannot be read, or names files that are missing.
    """
    if (folder / TENSORS_FILE).is_file():
        return [folder / TENSORS_FILE]
    if not (index := folder / INDEX_FILE).is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{index}: damaged, or no index of tensors: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise AdapterError(f"{index}: it names {name}, and {folder} has no such file")
    return [folder / name for name in names]


def tensors_sha256(files: Sequence[Path]) -> str:
    """Hash of the tensors of an adapter: the hash of their file, or a hash over the hashes of all files."""
    hashes = [sha256_of(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def tensors_bytes(files: Sequence[Path]) -> int:
    """Size on disk of the tensors of an adapter."""
    return sum(path.stat().st_size for path in files)


def read_tensors(files: Sequence[Path], shapes_only: bool = False) -> dict[str, torch.Tensor]:
    """The tensors in these files. With ``shapes_only`` they have no data.

    Raises:
        AdapterError: A file is damaged.
    """
    return {name: tensor for path in files for name, tensor in _tensors_of(path, shapes_only)}


def _tensors_of(path: Path, shapes_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if shapes_only:
                    yield name, torch.empty(file.get_slice(name).get_shape(), device="meta")
                else:
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path}: damaged, or no file of safetensors: {error}") from error


class StreamedState(Mapping[str, torch.Tensor]):
    """A state that is never in memory as a whole: rank 0 has it in files, in fp32, and sends it to other ranks.

    Writing and reading are collective operations: every rank asks for the same tensors in the same order.

    Args:
        folder: The folder of the files, which only rank 0 uses.
        shapes: Shapes of the tensors, in the order in which they are written.
        device: The device on which ranks send each other tensors.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, torch.Size], device: torch.device) -> None:
        self.folder, self.shapes, self._device = folder, dict(shapes), device
        self._is_first = dist.get_rank() == 0
        parts = list(_parts(self.shapes))
        names = [TENSORS_FILE] if len(parts) == 1 else [_part_name(number, len(parts)) for number in range(len(parts))]
        self._file_of = {name: folder / file for file, part in zip(names, parts, strict=True) for name in part}

    @property
    def files(self) -> list[str]:
        """Its files on rank 0, in order of names, by their paths below the folder that its own folder lies in."""
        return sorted(f"{self.folder.name}/{path.name}" for path in set(self._file_of.values()))

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        shape = self.shapes[name]
        if self._is_first:
            with safe_open(self._file_of[name], framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name).to(self._device)
        else:
            tensor = torch.empty(shape, device=self._device)
        dist.broadcast(tensor, 0)
        return tensor

    def write(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Write all tensors, in the order of the shapes."""
        if self._is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
        file: IO[bytes] | None = None
        last = None
        for name, tensor in tensors:
            if not self._is_first:
                continue
            if last != self._file_of[name]:
                if file is not None:
                    file.close()
                last = self._file_of[name]
                file = self._begun(last)
            if file is not None:
                file.write(tensor.detach().to("cpu", torch.float32).contiguous().view(-1).numpy().data)
        if file is not None:
            file.close()

    def put_into(self, folder: Path) -> None:
        """Let the files of rank 0 be in another folder too, with an index if there are several."""
        files = sorted(set(self._file_of.values()))
        for path in files:
            try:
                os.link(path, folder / path.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, folder / path.name)
        if len(files) > 1:
            index: dict[str, Any] = {
                "metadata": {"total_size": sum(BYTES * shape.numel() for shape in self.shapes.values())},
                "weight_map": {name: path.name for name, path in self._file_of.items()},
            }
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Remove the files, which nothing names any longer."""
        if self._is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begun(self, path: Path) -> IO[bytes]:
        """A new file with the header of safetensors for its tensors."""
        header: dict[str, Any] = {}
        end = 0
        for name, shape in self.shapes.items():
            if self._file_of[name] == path:
                start, end = end, end + BYTES * shape.numel()
                header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        file = path.open("wb")
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        return file


def _parts(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """The names in each file. A file has a limited size, unless a single tensor is larger."""
    part: list[str] = []
    size = 0
    for name, shape in shapes.items():
        own = BYTES * math.prod(shape)
        if part and size + own > LARGEST_FILE_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    yield part


def _part_name(number: int, parts: int) -> str:
    return f"adapter-{number + 1:05d}-of-{parts:05d}.safetensors"
