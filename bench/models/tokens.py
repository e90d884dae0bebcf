"""Turns examples into tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bench.models import base
from bench.models.architecture import Architecture, Pair, plain_ids, vocabulary_size
from bench.models.whole_texts import WholeTexts
from bench.schema.trial import ModelSpec
from bench.task import Example, TaskConfig


@dataclass
class Tokenization:
    """Turns examples into tokens, and counts those that had to be cut."""

    tokenizer: Any
    config: TaskConfig
    architecture: Architecture
    beginning_token: bool = True  # whether a source begins with one where the tokenizer adds it
    rows: int | None = None  # of the model's embedding; None: not known, and not checked
    truncated_sources: int = field(default=0, init=False)
    truncated_targets: int = field(default=0, init=False)

    @property
    def template(self) -> str:
        """The template with this tokenizer's beginning token, or with its end token if it has none, as in GPT-2."""
        if "{bos}" not in self.config.template:
            return self.config.template
        return self.config.template.replace("{bos}", self.tokenizer.bos_token or self.tokenizer.eos_token)

    @cached_property
    def texts(self) -> WholeTexts:
        """Tokens of whole texts."""
        return WholeTexts(self.tokenizer, self.architecture, self.beginning_token)

    def source(self, example: Example) -> list[int]:
        """The tokens that the model reads for an example."""
        return self.source_ids(example.source)

    def source_ids(self, source: str) -> list[int]:
        """The tokens that the model reads. A source that is too long is cut inside the template, which is never cut."""
        return self._read(source)[1]

    def target(self, source: str, reference: str) -> list[int]:
        """The tokens of the reference after its source, and the end token."""
        return self._target(*self._read(source), reference)

    def behind_source(self, source: str, reference: str) -> tuple[list[int], list[int]]:
        """The tokens that the model reads, and those of the reference after it, not cut and without special tokens."""
        text, ids = self._read(source)
        return ids, self.texts.target(text, ids, reference)

    def pairs(self, examples: Iterable[Example], references: int | None = None) -> list[Pair]:
        """One pair for each of the first ``references`` references (None: all) of each example."""
        return [
            Pair(source_ids, self._target(text, source_ids, reference))
            for example in examples
            for text, source_ids in (self._read(example.source),)
            for reference in example.references[:references]
        ]

    def _read(self, source: str) -> tuple[str, list[int]]:
        """The text that the model reads, and its tokens."""
        before, _, after = self.template.partition("{source}")
        text, limit = before + source, self.config.max_source_tokens
        ids = self.texts.source(text + after)
        # The whole has more tokens than its part, so that few sources are tokenised twice.
        if len(ids) > limit and len(plain_ids(self.tokenizer, text)) > limit:
            self.truncated_sources += 1
            text = self.texts.cut(text, len(before), limit)
            ids = self.texts.source(text + after)
        return text + after, self._known(ids)

    def _target(self, source: str, source_ids: list[int], reference: str) -> list[int]:
        ids = self.texts.target(source, source_ids, reference)
        if len(ids) > self.config.max_target_tokens:
            self.truncated_targets += 1
            ids = ids[: self.config.max_target_tokens]
        return self.architecture.whole_target(self._known(ids), self.texts.around_targets, self.tokenizer.eos_token_id)

    def _known(self, ids: list[int]) -> list[int]:
        """The same tokens.

        Raises:
            ModelError: The embedding has no row for one of them.
        """
        if self.rows is not None and ids and (token := max(ids)) >= self.rows:
            raise base.ModelError(
                f"the tokenizer makes {self.tokenizer.convert_ids_to_tokens(token)!r} (id {token}) of the data, and "
                f"the embedding has {self.rows:,} rows; take the tokenizer that belongs to the weights, or resize the "
                "embedding (resize_token_embeddings) and save the model again"
            )
        return ids


def tokenization(model: ModelSpec, config: TaskConfig) -> Tokenization:
    """The tokenisation of a trial's model and task.

    Raises:
        ModelError: Tokenizer or configuration cannot be loaded.
    """
    rows = vocabulary_size(base.load_config(model))
    return Tokenization(base.load_tokenizer(model), config, base.architecture(model), model.beginning_token, rows)
