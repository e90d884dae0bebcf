"""A cache on disk of tokenised splits: one process of a node tokenises a split, and the others map it into memory.

An entry is a folder, named by a hash of everything that its tokens depend on. It gets its name only when it is
complete. A damaged entry is made again. If nothing can be stored, every process tokenises by itself, and reports that
in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.measure.provenance import code_sha256, installed_version
from bench.models.base import cache_path
from bench.models.split_data import SplitData, tokenised
from bench.models.tokens import Tokenization
from bench.schema.digests import sha256_of, sha256_of_json
from bench.schema.trial import JsonDict, TaskSpec
from bench.store.files import new_folder
from bench.task import Split, Task

# The variable with another folder, or "off".
VARIABLE = "TUNEOFF_TOKEN_CACHE"
# The limit for all entries together. Those that were used longest ago are removed first; the newest always stays.
MOST_BYTES = 10 * 2**30
# Unfinished entries of processes that died, and locks of entries that are gone, are removed after so long.
LEFTOVER_SECONDS = 24 * 3600.0
# A process that has waited so long for another one to tokenise does it itself.
LOCK_SECONDS = 3600.0

TABLES = ("pairs", "examples")
SUMMARY_FILE = "told.json"


def cache_folder() -> Path | None:
    """The folder of the entries; None if the cache is off."""
    override = os.environ.get(VARIABLE)
    if override == "off":
        return None
    return Path(override) if override else cache_path() / "tokens"


def read_split(spec: TaskSpec, task: Task, split: Split, tokens: Tokenization, say: Callable[[str], None]) -> SplitData:
    """A split in tokens, from the cache. If it is not there, it is tokenised and stored.

    Args:
        spec: Specification of the task.
        task: The task.
        split: The split.
        tokens: Turns texts into tokens.
        say: Called with a line that says why nothing is stored, if so.

    Raises:
        TaskError: The data cannot be read, or have changed since the sweep was started.
    """
    folder = cache_folder()
    if folder is None:
        return tokenised(spec, task, split, tokens)
    key = _key(spec, task, split, tokens)
    if key is None:
        say(f"tokens of {spec.name} are not kept: data without a hash, or a tokenizer without tokenizer.json")
        return tokenised(spec, task, split, tokens)
    digest = sha256_of_json(key)
    entry = folder / f"{split}-{digest[:32]}"
    made: SplitData | None = None
    try:
        if (stored := _opened(entry)) is not None:
            return stored
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(entry), timeout=LOCK_SECONDS):
            if (stored := _opened(entry)) is not None:
                return stored
            _remove(entry)
            made = tokenised(spec, task, split, tokens)
            _store(entry, made, key)
            _make_room(folder, entry)
            return _opened(entry) or made
    except OSError as error:  # a full or read-only disk, or one without locks
        say(
            f"tokens of {spec.name} are not kept in {folder}: {error}; every rank makes its own ({VARIABLE} is "
            "where else to keep them)"
        )
        return made or tokenised(spec, task, split, tokens)


def _key(spec: TaskSpec, task: Task, split: Split, tokens: Tokenization) -> JsonDict | None:
    """Everything that the tokens depend on; None if it is unknown."""
    data = spec.data_sha256 or task.checksums([split])
    tokenizer = tokens.tokenizer_sha256
    if not data or tokenizer is None:
        return None
    config = dict(spec.config)
    if spec.data_sha256:
        config.pop("path", None)
    left = {"tokenizer", "config"}  # in the key by their content
    how = [part.name for part in fields(tokens) if part.init and part.name not in left]
    return {
        "split": split,
        "data": data,
        "task": {"target": spec.target, "source_sha256": spec.source_sha256, "config": config},
        "how": {name: repr(getattr(tokens, name)) for name in how},
        "tokenizer": tokenizer,
        # Whatever of our code reads and tokenises is in this hash: no number that somebody has to remember to raise.
        "code": code_sha256(),
        "versions": {name: installed_version(name) for name in ("tokenizers", "transformers", "datasets", "pyarrow")},
    }


def _store(entry: Path, data: SplitData, key: JsonDict) -> None:
    """Write an entry, completely or not at all."""
    with new_folder(entry) as partial:
        for name, batch in zip(TABLES, (data.pairs_batch, data.examples_batch), strict=True):
            _write_table(partial / f"{name}.arrow", batch)
        files = {f"{name}.arrow": sha256_of(partial / f"{name}.arrow") for name in TABLES}
        content = {"files": files, "told": data.summary, "key": key}
        (partial / SUMMARY_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.chmod(0o755)  # others may read what a folder keeps for all


def _opened(entry: Path) -> SplitData | None:
    """An entry, mapped into memory; None if there is none, or if it is damaged."""
    try:
        content = json.loads((entry / SUMMARY_FILE).read_text(encoding="utf-8"))
        if any(sha256_of(entry / name) != sha256 for name, sha256 in content["files"].items()):
            return None
        pairs, examples = (_mapped_table(entry / f"{name}.arrow") for name in TABLES)
        summary = content["told"]
    except (OSError, ValueError, KeyError, TypeError):  # an error of Arrow is a ValueError or an OSError
        return None
    with contextlib.suppress(OSError):  # a cache that others keep for us
        os.utime(entry / SUMMARY_FILE)
    return SplitData(pairs, examples, summary)


def _write_table(path: Path, batch: Any) -> None:
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _mapped_table(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).get_batch(0)


def _make_room(folder: Path, newest: Path) -> None:
    """Remove the entries that were used longest ago until the rest fits, and files of processes that died."""
    now = time.time()
    used: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # others remove too
            if path.name.startswith("."):
                of = folder / path.name.removeprefix(".").removesuffix(".lock")
                if now - path.stat().st_mtime > LEFTOVER_SECONDS and not of.is_dir():
                    _remove(path)
            elif path.is_dir():
                size = sum(file.stat().st_size for file in path.iterdir())
                used.append(((path / SUMMARY_FILE).stat().st_mtime, size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= MOST_BYTES:
            return
        if path != newest:
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    """Remove a file or an entry. A process that has mapped it can still read it."""
    if path.is_dir():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        path.rename(aside / path.name)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")
