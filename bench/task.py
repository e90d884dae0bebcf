"""The base class of tasks: everything that a data set must provide."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from bench.schema.digests import sha256_of
from bench.schema.strict_numbers import StrictNumbers

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# The template that is the tokenizer's own.
CHAT = "chat"

# The tokenizers of sacrebleu. spm is its older name for flores101.
TokenizerName = Literal[
    "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "spm", "spBLEU-1K", "none"
]


class TaskError(ValueError):
    """The data cannot be read or break the rules of the task. The message names file and line."""


Turn = tuple[str, str]
"""Who speaks, ``system``, ``user`` or ``assistant``, and what is said."""


@dataclass(frozen=True)
class Example:
    """One source with all its references."""

    id: str
    facts: tuple[tuple[str, ...], ...]
    source: str
    references: tuple[str, ...]
    tags: tuple[str, ...] = ()
    """From coarse to fine, e.g. ``("unseen", "Artist", "2 triples")``. The first two divide the data into strata."""
    choices: tuple[str, ...] = ()
    """Labels of this source, of which one is chosen. Those that are the same for all are a setting of the task."""
    turns: tuple[Turn, ...] = ()
    """The conversation that the source stands for, up to the turn that is wanted; empty: it is a user's turn."""


ANSWER_PATTERNS = ("last_number", "boxed", "choice")


@dataclass(frozen=True)
class Answer:
    """How the answer of a text is found, and how answers are compared. References are read in the same way."""

    pattern: str
    """One of :data:`ANSWER_PATTERNS`, or a regular expression, of whose last match the group counts, or the whole."""
    normalise: Literal["number", "text"]


@dataclass(frozen=True)
class Choices:
    """What predictions are chosen from, and how: part of what a score means."""

    labels: tuple[str, ...]
    """The same for every source; none where each source has its own."""
    likelihood: Literal["whole", "token"]
    prior: str | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Scoring:
    """The official metrics of a task, and the settings of its official script."""

    metrics: tuple[str, ...] = ("bleu", "chrf", "ter", "rouge_l")
    """Names in ``bench.metrics.METRICS``, in the order in which results are shown."""
    lowercase: bool = False
    """Whether BLEU and NIST ignore case."""
    preparation: Literal["none", "webnlg", "webnlg_folded", "dart"] = "none"
    """The preparation of predictions and references before they are scored."""
    max_references: int | None = None
    """The number of references of a source that the official script uses; None is all."""
    single_reference: tuple[str, ...] = ()
    """Metrics for which the official script uses only the first reference."""
    tokenize: TokenizerName = "13a"
    """The tokenizer of sacrebleu's BLEU. With another one than 13a, ROUGE-L, TER, lengths and repetitions also use its
    words, and chrF leaves words out if the tokenizer is for scripts without spaces."""
    bleu: Literal["sacrebleu", "mteval", "multi-bleu"] = "sacrebleu"
    """The script that BLEU equals: sacrebleu's own, with ``tokenize``; pymteval of E2E; multi-bleu.perl, on words that
    preparation has split, with an empty text for each reference that a source has less than ``max_references``."""
    ter: Literal["sacrebleu", "tercom"] = "sacrebleu"
    """The program that TER equals: sacrebleu, or tercom 7.25 as the scripts of WebNLG and DART call it."""
    rouge_l: Literal["f1", "coco"] = "f1"
    """f1: of the package rouge-score; coco: recall weighs more (beta 1.2), with words of the captioning scripts."""
    answer: Answer | None = None
    """How accuracy finds answers; None: there is no accuracy."""
    choices: Choices | None = None
    """What predictions were chosen from; None: they are texts that were written."""

    @property
    def own_script(self) -> bool:
        """Whether an official script cuts words, so that ``tokenize`` has no effect."""
        return self.bleu != "sacrebleu" or self.ter != "sacrebleu" or self.preparation != "none"

    @property
    def cuts_words(self) -> bool:
        """Whether scores depend on how ``tokenize`` cuts words: neither an official script's, nor those of labels."""
        return self.choices is None and not self.own_script


class AnswerConfig(StrictNumbers):
    """Answers inside texts. The score ``accuracy`` is the percentage of right answers."""

    pattern: str = Field(
        description="where a text has its answer: last_number, boxed (TeX's \\boxed), choice (a letter from A to J), "
        "or a regular expression with at most one group, of which the last match counts"
    )
    normalise: Literal["number", "text"] | None = Field(
        None,
        description="how answers are compared: as numbers (1,000 is 1000.0, 1/2 is 0.5) or as texts, without case, "
        "space and punctuation around them; null: numbers for last_number, else texts",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        if pattern in ANSWER_PATTERNS:
            return pattern
        if re.fullmatch(r"\w+", pattern) and (close := difflib.get_close_matches(pattern, ANSWER_PATTERNS, n=1)):
            raise ValueError(f"there is no pattern {pattern!r}; did you mean {close[0]!r}?")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if groups > 1:
            raise ValueError(
                f"{pattern!r} has {groups} groups; leave one, which is the answer, and write the others (?:...)"
            )
        return pattern


def _also_in_short(schema: dict[str, Any]) -> None:
    """Choices may be a list of labels, or the name of a column."""
    labels = {"type": "array", "items": {"type": ["string", "boolean", "integer"]}}
    schema["anyOf"] = [*schema["anyOf"], labels, {"type": "string"}]


class ChoicesConfig(StrictNumbers):
    """Labels, of which the likeliest is the prediction."""

    labels: tuple[str, ...] = Field((), description="the labels, the same for every source")
    column: str | tuple[str, ...] | None = Field(
        None, description="in place of labels: the column with a list of each source's own, or columns with one each"
    )
    likelihood: Literal["whole", "token"] = Field(
        "whole",
        description="how likely a label is: the product over its tokens (whole), or their geometric mean (token), "
        "which does not favour short labels",
    )
    prior: Literal["none", "uniform", "training"] | dict[str, PositiveFloat] = Field(
        "none",
        description="how likely labels are before the source is read. none: as the model has it; else the model's own, "
        "its likelihoods behind the template without a source, is divided out, and this one takes its place: uniform, "
        "the shares of the training data (training), or {label: share}",
    )
    reference: Literal["text", "place", "letter"] = Field(
        "text",
        description="what references say: a label itself, its place from 0 on, or its letter from A on (or number from "
        "1 on)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChoicesConfig:
        if bool(self.labels) == (self.column is not None):
            raise ValueError("say either labels or column")
        if self.labels:
            require_choices(self.labels)
        elif self.prior not in ("none", "uniform"):
            raise ValueError(
                f"prior: {self.prior!r} needs labels that are the same for every source; set uniform or none"
            )
        if isinstance(self.prior, dict) and set(self.prior) != set(self.labels):
            raise ValueError(f"prior: it has shares of {sorted(self.prior)}, and the labels are {sorted(self.labels)}")
        return self


def require_choices(labels: Sequence[str]) -> None:
    """Check that there is something to choose from.

    Raises:
        ValueError: There are fewer than two labels, an empty one, or one twice.
    """
    plain = [" ".join(label.split()) for label in labels]
    if len(plain) < 2 or not all(plain) or len(set(plain)) < len(plain):
        raise ValueError(f"choices are two or more different texts, got {list(labels)!r}")


class TaskConfig(StrictNumbers):
    """Settings that every task has."""

    train_examples: PositiveInt | None = Field(None, description="training pairs (source, one reference); null: all")
    dev_examples: PositiveInt | None = Field(None, description="dev sources; null: all")
    test_examples: PositiveInt | None = Field(None, description="test sources; null: all")
    subset_seed: int = Field(0, description="draws the subsets, which are the same for every method and seed")
    train_seed: int | None = Field(
        None, description="draws the training subset alone, for several small training sets; null: subset_seed"
    )
    loss_references: PositiveInt | None = Field(
        1, description="references of each source in dev and test loss; null: all"
    )
    metrics: tuple[str, ...] = Field(
        (), description="metrics beside the official ones, e.g. bertscore, whose package and weights must be there"
    )
    tokenize: TokenizerName | None = Field(
        None,
        description="how scores cut words, by sacrebleu's names; null: as the task says, usually 13a",
    )
    answer: AnswerConfig | None = Field(
        None,
        description="where texts have their answers, e.g. {pattern: last_number}, for the score accuracy",
    )
    choices: ChoicesConfig | None = Field(
        None,
        description="the prediction is the likeliest of these labels: [negative, positive], the name of a column with "
        "each source's own list, or {labels or column, likelihood, prior, reference}",
        json_schema_extra=_also_in_short,
    )
    template: str = Field(
        "Data: {source}\nText:",
        description="what the model reads before it writes; {bos} is the tokenizer's beginning token. chat: the "
        "tokenizer's chat template, with the source as a turn of the user",
    )
    system_prompt: str | None = Field(
        None,
        description="with template: chat, the system turn of conversations that have none; null: none, or the chat "
        "template's own",
    )
    system_in: Literal["system", "user"] = Field(
        "system",
        description="with template: chat, where the system prompt stands: system, in a turn of its own; user, in the "
        "first turn of the user, for chat templates without system turns",
    )
    chat_options: dict[str, Any] = Field(
        default={}, description="with template: chat, further variables of the chat template: {enable_thinking: false}"
    )
    max_source_tokens: PositiveInt = Field(384, description="longer sources are cut at the end, and counted")
    max_target_tokens: PositiveInt = Field(128, description="longer references are cut at the end, and counted")

    @field_validator("choices", mode="before")
    @classmethod
    def _in_full(cls, value: Any) -> Any:
        """A list stands for labels, a text for a column; what YAML takes for numbers or truth values are texts."""
        if isinstance(value, str):
            return {"column": value}
        found = {"labels": value} if isinstance(value, list | tuple) else value
        if isinstance(found, dict) and isinstance(found.get("labels"), list | tuple):
            texts = [str(one).lower() if isinstance(one, bool | int) else one for one in found["labels"]]
            return {**found, "labels": texts}
        return found

    @field_validator("template")
    @classmethod
    def _has_source(cls, template: str) -> str:
        if template != CHAT and "{source}" not in template:
            raise ValueError("a template has the place {source}, or is the word chat")
        if template.count("{source}") > 1:
            raise ValueError("a template has the place {source} once; a second one would stay as it is written")
        return template

    @model_validator(mode="after")
    def _chat_settings_have_effect(self) -> TaskConfig:
        for name in ("system_prompt", "system_in", "chat_options"):
            if self.template != CHAT and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without template: chat; leave it out")
        return self


class Task(ABC):
    """A data set with its linearisation, references and official metric settings.

    The first line of the docstring is the description that ``tuneoff tasks`` prints.
    """

    class Config(TaskConfig):
        """No settings but the common ones."""

    licence: ClassVar[str] = ""
    licence_note: ClassVar[str] = ""
    """The restriction of use by the licence, if there is one."""
    citation: ClassVar[str] = ""
    scoring: Scoring = Scoring()
    has_columns: ClassVar[bool] = False
    """Whether its data have columns that a setting may name."""
    data_columns: frozenset[str] = frozenset()
    """The columns of the data that were loaded, as far as they are known. None of them is a place of a template."""
    stop: tuple[str, ...] = ()
    """Strings that end a prediction and do not belong to it, unless a sweep sets ``decode.stop``. Without any, texts
    may have several lines and end at the end tokens of the model. Data-to-text ends at a line break."""

    def __init__(self, config: Any) -> None:
        """A task with its settings.

        Raises:
            TaskError: A setting has no effect: ``tokenize``, where an official script cuts words itself; ``answer``
                beside ``choices``; a column, where data have none.
        """
        self.config = config
        if config.tokenize is not None:
            if self.scoring.own_script:
                raise TaskError(
                    f"task.tokenize: {config.tokenize!r} has no effect: {type(self).__name__} is scored as its "
                    "official script does, which cuts words itself; leave it out"
                )
            self.scoring = replace(self.scoring, tokenize=config.tokenize)
        if config.answer is not None:
            answer: AnswerConfig = config.answer
            normalise = answer.normalise or ("number" if answer.pattern == "last_number" else "text")
            metrics = tuple(dict.fromkeys(("accuracy", *self.scoring.metrics)))
            self.scoring = replace(self.scoring, metrics=metrics, answer=Answer(answer.pattern, normalise))
        if config.choices is not None:
            self._chooses(config.choices)

    def _chooses(self, given: ChoicesConfig) -> None:
        for unused in ("answer", "tokenize"):
            if getattr(self.config, unused) is not None:
                raise TaskError(
                    f"task.{unused} has no effect with task.choices, whose predictions are labels; leave it out"
                )
        if given.column is not None and not self.has_columns:
            raise TaskError(
                f"task.choices.column: {given.column!r}: the data of {type(self).__name__} have no columns; give labels"
            )
        prior = tuple(given.prior.items()) if isinstance(given.prior, dict) else given.prior
        metrics = ("accuracy", "macro_f1", "matthews") if given.labels else ("accuracy",)
        self.scoring = Scoring(metrics=metrics, choices=Choices(given.labels, given.likelihood, prior))
        self.stop = ()

    @classmethod
    def pinned(cls, config: Any) -> Any:
        """The settings with moving names, e.g. a branch, replaced by what they mean now. Called before any trial.

        Raises:
            TaskError: The meaning of a name cannot be found out.
        """
        return config

    @abstractmethod
    def data_files(self) -> Mapping[Split, str]:
        """Path or URL of each split that exists.

        Raises:
            TaskError: A required file is missing.
        """

    @abstractmethod
    def load(self, split: Split) -> list[Example]:
        """All examples of a split, references grouped by source.

        Raises:
            TaskError: The data are malformed. The message names file and line.
        """

    def skipped(self, split: Split) -> Mapping[str, int]:
        """The number of references and entries that the last call of :meth:`load` for a split left out, by reason."""
        return {}

    def data_sha256(self) -> str | None:
        """Hash of the data files, which replaces their paths in a trial's identity; None if they are remote."""
        files = self.data_files()
        if any("://" in location for location in files.values()):
            return None
        digest = hashlib.sha256()
        for location in files.values():
            digest.update(bytes.fromhex(sha256_of(Path(location))))
        return digest.hexdigest()

    def checksums(self, splits: Sequence[Split]) -> dict[str, str]:
        """Name and sha256 of each file of these splits, for the record; none for remote data.

        Files of one name, such as ``train/0000.parquet`` and ``test/0000.parquet``, are called by their paths below the
        folder that all files share.
        """
        files = {split: Path(location) for split, location in self.data_files().items()}
        names = _names_apart([path for path in files.values() if path.is_file()])
        own = {path for split, path in files.items() if split in splits and path in names}
        return {names[path]: sha256_of(path) for path in sorted(own)}


def _names_apart(paths: Iterable[Path]) -> dict[Path, str]:
    """The name of each file; where others have it too, its path below the folder that they all share."""
    absolute = {path: path.absolute() for path in paths}
    counts = Counter(path.name for path in absolute.values())
    shared = Path(os.path.commonpath([path.parent for path in absolute.values()])) if absolute else Path()
    return {
        path: path.name if counts[path.name] == 1 else whole.relative_to(shared).as_posix()
        for path, whole in absolute.items()
    }


def linearise(facts: Sequence[Sequence[str]]) -> str:
    """``subject : relation : object | ...``, the form of Li & Liang 2021 and Hu et al. 2021."""
    return " | ".join(" : ".join(fact) for fact in facts)


def existing_file(path: Path, what: str) -> str:
    """The path as text.

    Raises:
        TaskError: There is no such file.
    """
    if not path.is_file():
        raise TaskError(f"task.path: {what} is not there: no file {str(path)!r}")
    return str(path)
