"""A folder with a small model, a task and a sweep file, for programs that run sweeps outside of pytest."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import CITIES, NAMES, save_tiny_model, write_split


def write_tiny_sweep(folder: Path, name: str, **parts: object) -> Path:
    """Make ``folder``/{model,task} and a sweep file with these further parts. Returns the file."""
    for each in ("model", "task"):
        (folder / each).mkdir()
    save_tiny_model(folder / "model", "llama")
    rows = [(name, city) for name in NAMES for city in CITIES]
    for split, (start, end) in {"train": (0, 28), "dev": (28, 34), "test": (34, 40)}.items():
        write_split(folder / "task" / f"{split}.jsonl", rows[start:end])
    sweep = {
        "name": name,
        "model": str(folder / "model"),
        "task": {"name": "jsonl", "path": str(folder / "task")},
        "decode": {"max_new_tokens": 4},
        **parts,
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep))
    return path
