"""MetaMathQA for training and GSM8K for the rest, as the benchmark in the repository of Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from bench.schema.home import with_home
from bench.task import AnswerConfig, Example, Split, Task, TaskConfig, TaskError, existing_file
from bench.tasks.rows import read_json_lines

METAMATH = "MetaMathQA-395K.json"
FILES: dict[Split, str] = {"train": METAMATH, "dev": "train.jsonl", "test": "test.jsonl"}
# Of question and solution together; longer ones are left out of training.
MOST_CHARACTERS = 1300
TOO_LONG = "pairs of more than 1,300 characters"
# What comes behind one of these, up to the end of the line; the last one counts.
ANSWER = AnswerConfig(
    pattern=r"(?:The (?:final )?answer is:? |#### )([^\n]*)",
    normalise="number",
)


def _described(setting: str) -> str | None:
    """What a setting of every task means, where its default is another one."""
    return TaskConfig.model_fields[setting].description


class MetaMath(Task):
    """MetaMathQA to GSM8K: sums in words with solutions of several lines, scored by the share of right answers.

    Trains on MetaMathQA; 50 questions of GSM8K's training set are the dev split, its test set is the test split.
    """

    class Config(TaskConfig):
        """Settings of the task metamath."""

        path: str = Field(
            description="folder with MetaMathQA-395K.json (meta-math/MetaMathQA on the hub), and train.jsonl and "
            "test.jsonl of GSM8K (openai/grade-school-math on GitHub)"
        )
        dev_size: PositiveInt = Field(50, description="questions of GSM8K's training set that are the dev split")
        answer: AnswerConfig | None = Field(ANSWER, description=_described("answer"))
        template: str = Field(
            "Question: {source} Think step by step.\nAnswer:",
            description=_described("template"),
        )
        max_source_tokens: PositiveInt = Field(768, description=_described("max_source_tokens"))
        max_target_tokens: PositiveInt = Field(768, description=_described("max_target_tokens"))

    config: Config
    licence: ClassVar[str] = "MIT (both)"
    citation: ClassVar[str] = "Yu et al. 2024, arXiv:2309.12284; Cobbe et al. 2021, arXiv:2110.14168"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._too_long = 0

    def data_files(self) -> Mapping[Split, str]:
        root = with_home(self.config.path)
        what = {"train": "MetaMathQA", "dev": "GSM8K's training set", "test": "GSM8K's test set"}
        return {split: existing_file(root / name, what[split]) for split, name in FILES.items()}

    def load(self, split: Split) -> list[Example]:
        rows = list(self._rows(split))
        if split == "train":
            kept = [(name, ask, answer) for name, ask, answer in rows if len(f"{ask} {answer}") <= MOST_CHARACTERS]
            self._too_long, rows = len(rows) - len(kept), kept
        if split == "dev":
            # As data.py of the benchmark draws them, with numpy's older generator.
            places = np.arange(len(rows))
            np.random.RandomState(0).shuffle(places)
            rows = [rows[place] for place in places[: self.config.dev_size]]
        return [Example(name, (), ask, (answer,)) for name, ask, answer in rows]

    def skipped(self, split: Split) -> Mapping[str, int]:
        return {TOO_LONG: self._too_long} if split == "train" and self._too_long else {}

    def _rows(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """Id, question and solution of each row."""
        columns = ("query", "response") if split == "train" else ("question", "answer")
        location = self.data_files()[split]
        for number, (line, row) in enumerate(read_json_lines(location), start=1):
            question, answer = (_text(row, column, f"{location}: line {line}") for column in columns)
            yield f"{split}-{number}", question, answer


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if not isinstance(row.get(column), str) or not row[column].strip():
        raise TaskError(f"{where}: {column!r} must hold a text, got {row.get(column)!r:.80}")
    return str(row[column])
