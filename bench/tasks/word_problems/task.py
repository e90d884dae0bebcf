"""Sums in words with their solutions, written for this project and shipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.task import AnswerConfig, Example, TaskConfig
from bench.tasks.shipped import ShippedTask

LAST_NUMBER = AnswerConfig(pattern="last_number")


class WordProblems(ShippedTask):
    """Sums in words, with a solution of one to three steps and the answer in the last line.

    Scored by the share of answers that are right. A part of the test split tells stories that never occur in training;
    it is tagged ``unseen``.
    """

    class Config(TaskConfig):
        """Settings of the task word_problems."""

        answer: AnswerConfig | None = Field(LAST_NUMBER, description=TaskConfig.model_fields["answer"].description)
        template: str = Field(
            "Question: {source}\nAnswer:", description=TaskConfig.model_fields["template"].description
        )

    citation: ClassVar[str] = "shipped with Tuneoff; built by bench/tools/build_word_problems.py"
    folder = Path(__file__).parent / "data"

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example(row["id"], (), row["question"], (row["solution"],), tuple(row["tags"]))
