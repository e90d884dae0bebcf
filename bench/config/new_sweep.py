"""A sweep file to begin with, made from a data file: what each key is for stands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.schema.strict_yaml import parse_yaml
from bench.schema.validation import ConfigError
from bench.store.files import created
from bench.task import SPLITS, TaskError
from bench.tasks.file_forms import PACKED_ENDINGS
from bench.tasks.rows import read_csv, read_json_lines

# What people call the column of texts that are to be written, and the one that is read.
REFERENCES = (
    "references",
    "reference",
    "target",
    "output",
    "answer",
    "response",
    "summary",
    "highlights",
    "completion",
)
SOURCES = ("source", "input", "prompt", "question", "document", "article", "instruction", "mr", "text")
# Columns that are read together, in the order of the file: alone, some would be empty, or no question.
READ_TOGETHER = (("instruction", "input"), ("instruction", "context"), ("question", "context"))
# What may be either. Where there is nothing else to write, the last of them is written: text, then label, is a text and
# its class.
EITHER = ("text", "label")
# Columns that say which row it is, not what it is about.
IDS = ("id", "idx", "index", "uid", "guid")

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}

SWEEP = """# Compare ways of fine-tuning on {data}. Every key with its default: docs/use/sweep.md, or `tuneoff schema`.
#   tuneoff plan {file}     what it will cost; starts nothing
#   tuneoff run {file}      the same command goes on after a stop, and runs only what is new
name: {name}                # results go to results/{folder}/
model: {model}              # the embedded model (smollm2-135m), a local folder, or a hub id
task:
  name: {task}
  path: {path}
  # What the model reads, and what it shall write. The columns are {columns}.
  source: {source}
  references: {references}
train:                      # shared by all methods ...
  steps: 100                # optimiser steps, or epochs: ...
  batch_size: 8
  warmup_steps: 10
  evaluate_every_steps: 25  # the state with the best dev loss is kept
decode: {{beams: 1, max_new_tokens: 64}}
resources: {{precision: fp32}}   # ranks, zero_stage, gpus_per_rank, fuse, ...
seeds: [0, 1, 2]            # every method once for each; with fewer than three nothing is concluded
methods:
  - none                    # the untouched base model
  - name: full
    train: {{learning_rate: 1.0e-4}}     # ... but for what a method overrides
  - name: lora
    config: {{rank: 8, alpha: 16}}       # the method's own settings: tuneoff methods lora
    train: {{learning_rate: 5.0e-4}}
  - name: prefix_tuning
    config: {{num_prompt_tokens: 10}}
    train: {{learning_rate: 1.0e-2}}
# Learning rates above are guesses. To give every method the same search on the dev split, replace seeds by:
# stages:
#   tune: {{trials: 6, sampler: quasi_random}}
#   final: {{seeds: [0, 1, 2, 3, 4]}}
"""


@dataclass(frozen=True)
class Columns:
    """The columns of a data file, and what they seem to be for."""

    names: tuple[str, ...]
    source: str  # a column, or a template
    references: str


def write_sweep(data: Path, model: str, file: Path) -> Columns:
    """Write a sweep for a data file, or for a folder with a file for each split.

    Raises:
        ConfigError: The data cannot be read, or the file is there already.
    """
    task, sample = _format(data)
    try:
        columns = guess(_columns(task, sample))
    except TaskError as error:
        raise ConfigError(str(error)) from error
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", data.name.split(".")[0]).strip("-._")[:100] or "sweep"
    text = SWEEP.format(
        data=data.name,
        file=file,
        folder=name,
        name=_said(name),
        model=_said(model),
        task=task,
        path=json.dumps(str(data)),
        columns=", ".join(columns.names),
        source=json.dumps(columns.source, ensure_ascii=False),
        references=json.dumps(columns.references, ensure_ascii=False),
    )
    try:
        with created(file) as written:
            written.write(text.encode())
    except FileExistsError as error:
        raise ConfigError(f"{file} is there already; name another file with --output") from error
    return columns


def _said(text: str) -> str:
    """A text in YAML, in quotes where it would be read as something else: 0000, 2024, null."""
    is_plain = not re.search(r"[^A-Za-z0-9._/-]", text) and parse_yaml(text) == text
    return text if is_plain else json.dumps(text)


def guess(names: tuple[str, ...]) -> Columns:
    """Which column is written and what is read, by the names; failing that the last is written, from all others.

    Ids are read or written only where there is nothing else.

    Raises:
        ConfigError: There is only one column.
    """
    if len(names) < 2:
        raise ConfigError(f"one column ({', '.join(names) or 'none'}); a task needs one to read and one to write")
    by_word = {name.lower(): name for name in names}
    last_resort = [name for name in names if name.lower() in EITHER] or _without_ids(names) or names
    references = next((by_word[word] for word in REFERENCES if word in by_word), last_resort[-1])
    return Columns(names, _source(names, references), references)


def _source(names: Sequence[str], references: str) -> str:
    """A column that is read, or a template of several."""
    others = [name for name in names if name != references]
    by_word = {name.lower(): name for name in others}
    for words in READ_TOGETHER:
        if all(word in by_word for word in words):
            return " | ".join(f"{{{name}}}" for name in others if name in [by_word[word] for word in words])
    if (known := next((by_word[word] for word in SOURCES if word in by_word), None)) is not None:
        return known
    read = _without_ids(others) or others
    return read[0] if len(read) == 1 else " | ".join(f"{name} : {{{name}}}" for name in read)


def _without_ids(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower() not in IDS]


def _format(data: Path) -> tuple[str, Path]:
    """The task that reads it, and one of its files.

    Raises:
        ConfigError: There is nothing that a task reads.
    """
    files = [data] if data.is_file() else [data / f"{SPLITS[0]}{ending}" for ending in FORMATS]
    for file in files:
        plain = file.name
        for packed in PACKED_ENDINGS:
            plain = plain.removesuffix(packed)
        if file.is_file() and (task := FORMATS.get(Path(plain).suffix.lower())) is not None:
            return task, file
    known = ", ".join(FORMATS)
    what = "its name ends with none of" if data.is_file() else "no such file, and no folder with train and one of"
    raise ConfigError(f"{data}: {what} {known}")


def _columns(task: str, file: Path) -> tuple[str, ...]:
    if task == "parquet":
        from pyarrow import ArrowException, parquet

        try:
            return tuple(parquet.read_schema(file).names)
        except (ArrowException, OSError) as error:
            raise TaskError(f"{file}: cannot be read as Parquet: {error}") from error
    rows = read_csv(str(file), (), delimiter=None) if task == "csv" else read_json_lines(str(file))
    for _, row in rows:
        return tuple(row)
    raise TaskError(f"{file}: no rows")
