"""A folder with a small model, a task and a sweep file, for programs that run sweeps outside of pytest."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import CITIES, NAMES, save_tiny_model, write_task


def write_model_and_task(model: Path, task: Path) -> None:
    """Make both folders: a Llama, and a task jsonl of 28, 6 and 6 sources."""
    for made in (model, task):
        made.mkdir()
    save_tiny_model(model, "llama")
    write_task(task, [(name, city) for name in NAMES for city in CITIES])


def write_tiny_sweep(folder: Path, name: str, **parts: object) -> Path:
    """Make ``folder``/{model,task} and a sweep file with these further parts. Returns the file."""
    model, task = folder / "model", folder / "task"
    write_model_and_task(model, task)
    sweep = {
        "name": name,
        "model": str(model),
        "task": {"name": "jsonl", "path": str(task)},
        "decode": {"max_new_tokens": 4},
        **parts,
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep))
    return path
