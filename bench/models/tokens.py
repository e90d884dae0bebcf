"""Turns examples into tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from bench.models import base
from bench.models.architecture import Architecture, Pair, plain_ids, vocabulary_size
from bench.models.chat import ChatTemplate, Frame, exchanges
from bench.models.text_ends import end_token_ids
from bench.models.tokenizer_hash import tokenizer_sha256
from bench.models.whole_texts import WholeTexts
from bench.schema.trial import ModelSpec
from bench.task import CHAT, Example, TaskConfig, Turn


class Prompt(NamedTuple):
    """What the model reads for an example."""

    text: str
    ids: list[int]
    frame: Frame | None  # of a conversation


@dataclass
class Tokenization:
    """Turns examples into tokens, and counts those that had to be cut."""

    tokenizer: Any
    config: TaskConfig
    architecture: Architecture
    beginning_token: bool = True  # whether a source begins with one where the tokenizer adds it
    rows: int | None = None  # of the model's embedding; None: not known, and not checked
    ends: tuple[int, ...] = ()  # tokens that end a text, beside the tokenizer's own
    truncated_sources: int = field(default=0, init=False)
    truncated_targets: int = field(default=0, init=False)
    left_out_turns: int = field(default=0, init=False)  # of the conversations among the truncated sources

    @property
    def template(self) -> str:
        """The template with this tokenizer's beginning token, or with its end token if it has none, as in GPT-2."""
        if "{bos}" not in self.config.template:
            return self.config.template
        return self.config.template.replace("{bos}", self.tokenizer.bos_token or self.tokenizer.eos_token)

    @cached_property
    def tokenizer_sha256(self) -> str | None:
        """Hash of the tokenizer's content, taken once for all splits; None if it cannot be hashed."""
        return tokenizer_sha256(self.tokenizer)

    @cached_property
    def texts(self) -> WholeTexts:
        """Tokens of whole texts."""
        return WholeTexts(self.tokenizer, self.architecture, self.beginning_token)

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template with the task's settings."""
        config = self.config
        return ChatTemplate(self.tokenizer, config.chat_options, config.system_prompt, config.system_in)

    def source(self, example: Example) -> list[int]:
        """What the model reads for an example. What is too long is cut inside the template, never the template itself.

        Raises:
            ModelError: The chat template cannot render it.
        """
        return self._read(example).ids

    def behind_source(self, example: Example, reference: str) -> tuple[list[int], list[int]]:
        """What the model reads, and the reference behind it without special tokens; the reference is not cut."""
        prompt = self._read(example)
        return prompt.ids, self._behind(prompt, reference, example.choices)

    def pairs(self, examples: Iterable[Example], references: int | None = None) -> list[Pair]:
        """One pair for each of the first ``references`` references (None: all) of each example."""
        return [
            Pair(prompt.ids, self._target(prompt, reference, example.choices))
            for example in examples
            for prompt in (self._read(example),)
            for reference in example.references[:references]
        ]

    def candidates(self, example: Example) -> list[Pair]:
        """What the model reads, with each of the choices behind it."""
        prompt = self._read(example)
        return [Pair(prompt.ids, self._target(prompt, choice, example.choices)) for choice in example.choices]

    def without_source(self, choices: Sequence[str]) -> list[Pair]:
        """The template without a source, with each of these choices behind it."""
        pairs = replace(self).candidates(Example("", (), "", (), choices=tuple(choices)))
        first = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        return [Pair(pair.source_ids or [first], pair.target_ids) for pair in pairs]

    def same_choices(self, choices: Sequence[str]) -> tuple[str, str] | None:
        """Two choices of the same tokens, which nothing can tell apart; None where there are none."""
        known: dict[tuple[int, ...], str] = {}
        for choice, ids in zip(choices, self._choice_ids(tuple(choices)), strict=True):
            if (earlier := known.setdefault(tuple(ids), choice)) != choice:
                return earlier, choice
        return None

    def _read(self, example: Example) -> Prompt:
        if self.config.template == CHAT:
            return self._read_turns(example.turns or [("user", example.source)])
        before, _, after = self.template.partition("{source}")
        text, limit = before + example.source, self.config.max_source_tokens
        ids = self.texts.source(text + after)
        # The whole has more tokens than its part, so that few sources are tokenised twice.
        if len(ids) > limit and len(plain_ids(self.tokenizer, text)) > limit:
            self.truncated_sources += 1
            text = self.texts.cut(text, len(before), limit)
            ids = self.texts.source(text + after)
        return Prompt(text + after, self._known(ids), None)

    def _read_turns(self, turns: Sequence[Turn]) -> Prompt:
        """A conversation; of one that is too long, turns behind the first exchange are left out, the oldest first.

        Then the first exchange goes, and what the user said last is cut at its end. The system's words stay, wherever
        the settings put them.
        """
        prompt, limit = self._rendered(turns), self.config.max_source_tokens
        if len(prompt.ids) <= limit:
            return prompt
        self.truncated_sources += 1
        system = [turn for turn in turns if turn[0] == "system"]
        parts = exchanges([turn for turn in turns if turn[0] != "system"])
        while len(prompt.ids) > limit and len(parts) > 1:
            self.left_out_turns += len(parts.pop(1 if len(parts) > 2 else 0))
            prompt = self._rendered([*system, *(turn for part in parts for turn in part)])
        if len(prompt.ids) <= limit:
            return prompt
        *others, (role, said) = [*system, *itertools.chain.from_iterable(parts)]
        room = limit - len(self._rendered([*others, (role, "")]).ids)
        while room > 0:
            cut = self.texts.cut(said, 0, room)
            prompt = self._rendered([*others, (role, cut)])
            if len(prompt.ids) <= limit:
                return prompt
            room -= len(prompt.ids) - limit
        raise base.ModelError(
            f"task.max_source_tokens: {limit} leave no room for what a user says beside the chat template and what "
            f"comes with it; raise it above {len(prompt.ids)}"
        )

    def _rendered(self, turns: Sequence[Turn]) -> Prompt:
        frame = self.chat.frame(self.chat.with_system(turns))
        return Prompt(frame.read, self._known(self.texts.source(frame.read, rendered=True)), frame)

    def _behind(self, prompt: Prompt, reference: str, choices: Sequence[str]) -> list[int]:
        """A reference behind what is read. Of a choice, white space around it does not count."""
        if prompt.frame is None:
            return self.texts.target(prompt.text, prompt.ids, reference.strip() if choices else reference)
        words = self.chat.words(prompt.frame, reference)
        return self.texts.target(prompt.text, prompt.ids, words, prompt.frame.between, rendered=True)

    def _target(self, prompt: Prompt, reference: str, choices: tuple[str, ...]) -> list[int]:
        """Of a choice its tokens alone, unless another choice begins with them; of other references the end too."""
        ids = self._known(self._behind(prompt, reference, choices))
        around = self.texts.around_targets
        if choices and not self._begin_each_other(choices):
            return self.architecture.open_target(ids, around)
        if len(ids) > self.config.max_target_tokens and not choices:
            self.truncated_targets += 1
            ids = ids[: self.config.max_target_tokens]
        return self.architecture.whole_target(ids, around, self._end(prompt))

    def _end(self, prompt: Prompt) -> int:
        """What ends a target: of a turn, the first end token that the chat template puts behind one."""
        own: int = self.tokenizer.eos_token_id
        if prompt.frame is None or not self.architecture.target_continues_source:
            return own
        closing = plain_ids(self.tokenizer, prompt.frame.closing)
        return next((token for token in closing if token == own or token in self.ends), own)

    def _begin_each_other(self, choices: tuple[str, ...]) -> bool:
        """Whether the tokens of one choice begin those of another, so that only its end tells it from that one."""
        if choices not in self._open:
            ids = sorted(self._choice_ids(choices))
            self._open[choices] = any(later[: len(one)] == one for one, later in itertools.pairwise(ids))
        return self._open[choices]

    def _choice_ids(self, choices: tuple[str, ...]) -> list[list[int]]:
        """Each choice in the tokens that are scored, behind the template without a source."""
        return [self._behind(self._without_source, choice, choices) for choice in choices]

    @cached_property
    def _without_source(self) -> Prompt:
        """The template without a source, which a copy reads, so that it is in no count and no check of rows."""
        return replace(self, rows=None)._read(Example("", (), "", ()))

    @cached_property
    def _open(self) -> dict[tuple[str, ...], bool]:
        """What was found out of choices that come with many examples."""
        return {}

    def _known(self, ids: list[int]) -> list[int]:
        """The same tokens.

        Raises:
            ModelError: The embedding has no row for one of them.
        """
        if self.rows is not None and ids and (token := max(ids)) >= self.rows:
            raise base.ModelError(
                f"tokens fit the embedding: the tokenizer makes "
                f"{self.tokenizer.convert_ids_to_tokens(token)!r} (id {token}) of the data, and "
                f"the embedding has {self.rows:,} rows; take the tokenizer that belongs to the weights, or resize the "
                "embedding (resize_token_embeddings) and save the model again"
            )
        return ids


def tokenization(model: ModelSpec, config: TaskConfig) -> Tokenization:
    """The tokenisation of a trial's model and task.

    Raises:
        ModelError: Tokenizer or configuration cannot be loaded.
    """
    model_config, tokenizer = base.load_config(model), base.load_tokenizer(model)
    ends = end_token_ids(tokenizer, model_config, base.load_generation_config(model)) if config.template == CHAT else ()
    rows = vocabulary_size(model_config)
    kind = base.architecture(model)
    return Tokenization(tokenizer, config, kind, model.beginning_token, rows, tuple(sorted(ends)))
