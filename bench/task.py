"""The base class of tasks: everything that a data set must provide."""

from __future__ import annotations

import difflib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from bench.schema.digests import sha256_of
from bench.schema.strict_numbers import StrictNumbers

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# The tokenizers of sacrebleu. spm is its older name for flores101.
TokenizerName = Literal[
    "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "spm", "spBLEU-1K", "none"
]


class TaskError(ValueError):
    """The data cannot be read or break the rules of the task. The message names file and line."""


@dataclass(frozen=True)
class Example:
    """One source with all its references."""

    id: str
    facts: tuple[tuple[str, ...], ...]
    source: str
    references: tuple[str, ...]
    tags: tuple[str, ...] = ()
    """From coarse to fine, e.g. ``("unseen", "Artist", "2 triples")``. The first two divide the data into strata."""


ANSWER_PATTERNS = ("last_number", "boxed", "choice")


@dataclass(frozen=True)
class Answer:
    """How the answer of a text is found, and how answers are compared. References are read in the same way."""

    pattern: str
    """One of :data:`ANSWER_PATTERNS`, or a regular expression, of whose last match the group counts, or the whole."""
    normalise: Literal["number", "text"]


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

    @property
    def own_script(self) -> bool:
        """Whether an official script cuts words, so that ``tokenize`` has no effect."""
        return self.bleu != "sacrebleu" or self.ter != "sacrebleu" or self.preparation != "none"


class AnswerConfig(StrictNumbers):
    """Answers inside texts. The score ``accuracy`` is the percentage of right answers."""

    pattern: str = Field(
        description="where a text has its answer: last_number, boxed (TeX's \\boxed), choice (a letter from A to J), "
        "or a regular expression with at most one group, of which the last match counts"
    )
    normalise: Literal["number", "text"] | None = Field(
        None,
        description="how answers are compared: as numbers (1,000 is 1000.0, 1/2 is 0.5) or as texts, without case, "
        "space and punctuation around them; None: numbers for last_number, else texts",
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


class TaskConfig(StrictNumbers):
    """Settings that every task has."""

    train_examples: PositiveInt | None = Field(None, description="training pairs (source, one reference); None is all")
    dev_examples: PositiveInt | None = Field(None, description="unique dev sources; None is all")
    test_examples: PositiveInt | None = Field(None, description="unique test sources; None is all")
    subset_seed: int = Field(
        0, description="draws the subsets, the same for every method and seed, in proportion to the first two tags"
    )
    train_seed: int | None = Field(
        None, description="draws the training subset alone, for several small training sets; None is subset_seed"
    )
    loss_references: PositiveInt | None = Field(
        1, description="references of a source that dev and test loss are taken on; None is all"
    )
    metrics: tuple[str, ...] = Field(
        (), description="metrics beside the official ones, e.g. bertscore, of which package and weights must be there"
    )
    tokenize: TokenizerName | None = Field(
        None,
        description="how scores cut words, by sacrebleu's names: 13a, intl, zh, ja-mecab, ko-mecab, char, flores200, "
        "...; None is the task's own, which is 13a where no task says otherwise",
    )
    answer: AnswerConfig | None = Field(
        None,
        description="where texts have their answers, e.g. {pattern: last_number}: gives the score accuracy, ahead of "
        "the scores of texts",
    )
    template: str = Field(
        "Data: {source}\nText:",
        description="what the model reads before it writes; {bos} is the tokenizer's beginning token",
    )
    max_source_tokens: PositiveInt = Field(384, description="longer sources are cut at the end, and counted")
    max_target_tokens: PositiveInt = Field(128, description="longer references are cut at the end, and counted")

    @field_validator("template")
    @classmethod
    def _has_source(cls, template: str) -> str:
        if "{source}" not in template:
            raise ValueError("a template has the place {source}")
        return template


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
    stop: tuple[str, ...] = ()
    """Strings that end a prediction and do not belong to it, unless a sweep sets ``decode.stop``. Without any, texts
    may have several lines and end at the end tokens of the model. Data-to-text ends at a line break."""

    def __init__(self, config: Any) -> None:
        """A task with its settings.

        Raises:
            TaskError: ``tokenize`` is set, and the official script of this task cuts words itself.
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
        """Name and sha256 of each file of these splits, for the record; none for remote data."""
        files = {Path(location) for split, location in self.data_files().items() if split in splits}
        return {path.name: sha256_of(path) for path in sorted(files) if path.is_file()}


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
