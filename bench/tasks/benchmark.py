"""Base class of published benchmarks: files from a folder or their public source, and known counts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.schema.digests import sha256_of
from bench.schema.home import with_home
from bench.task import SPLITS, Example, Split, Task, TaskConfig, TaskError
from bench.tasks.rows import is_remote, local_copy
from bench.tasks.values import Facts

# One source in so many stays in the dev split when the dev split also serves as the train split.
DEV_SHARE = 5

Linearisation = Literal["plain", "li_liang", "hu"]

# The templates of the two papers; {bos} is the tokenizer's beginning token. Sources: language_modeling.py of
# XiangLi1999/PrefixTuning (LineByLineData2TextTextDataset), gpt2_encode.py of microsoft/LoRA. Li & Liang end the target
# with " " and the end token, here it ends with the end token alone.
TEMPLATES: dict[str, str] = {"li_liang": " {source} {bos}", "hu": "{source}{bos}"}


@dataclass(frozen=True)
class PublishedFile:
    """One split's file: its possible names in a folder, of which the first that exists is read, and its public URL."""

    names: tuple[str, ...]
    url: str | None = None
    sha256: str | None = None
    """Of the file at the URL; None if it is unknown, so that only the counts are checked."""


@dataclass(frozen=True)
class PublishedCounts:
    """The published counts of a split; None if a number is not published."""

    entries: int | None
    references: int
    tags: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One entry of a file, before its facts become a source text."""

    facts: Facts
    references: tuple[str, ...]
    id: str = ""
    tags: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    """References that are left out, by reason."""


class PublishedConfig(TaskConfig):
    """Settings that the published benchmarks share."""

    path: str | None = Field(
        None, description="folder with the files; null: they are downloaded from their public source"
    )
    linearisation: Linearisation = Field(
        "plain",
        description="how facts become text, and the template around it: plain words, li_liang as in Li & Liang 2021, "
        "hu as in Hu et al. 2021 (LoRA)",
    )
    train_split: Literal["train", "dev"] = Field(
        "train",
        description="dev: four fifths of the dev sources stand in for a train split that is not there, the last fifth "
        "remains the dev split",
    )
    check_counts: bool = Field(True, description="whether a split that differs from the published counts is an error")

    @model_validator(mode="before")
    @classmethod
    def _template_of_linearisation(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("linearisation") not in TEMPLATES:
            return data
        return {"template": TEMPLATES[data["linearisation"]], **data}


class PublishedTask(Task):
    """A benchmark with known files and counts. Subclasses read files and turn facts into text."""

    config: PublishedConfig
    stop = ("\n",)

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__(config)
        self._skipped: dict[Split, Mapping[str, int]] = {}

    @abstractmethod
    def files(self) -> Mapping[Split, PublishedFile]:
        """The files of the form in the settings."""

    @abstractmethod
    def published(self) -> Mapping[Split, PublishedCounts]:
        """The published counts of that form."""

    @abstractmethod
    def read(self, location: str, sha256: str | None, split: Split) -> Iterable[Entry]:
        """Entries of one file, in order, including those that have no reference left.

        Raises:
            TaskError: The file is malformed. The message names file and line.
        """

    @abstractmethod
    def word(self, facts: Facts) -> str:
        """The source text for these facts."""

    def examples(self, entries: Iterable[Entry], split: Split) -> list[Example]:
        """One example for each entry that has a reference. Equal entries stay separate, as in the official scripts."""
        return [
            Example(entry.id or f"{split}-{n}", entry.facts, self.word(entry.facts), entry.references, entry.tags)
            for n, entry in enumerate(entries)
            if entry.references
        ]

    def data_files(self) -> Mapping[Split, str]:
        """Path or URL of each split that exists."""
        locations: dict[Split, str] = {}
        for split in SPLITS:
            file = self.files()[self._split_read_for(split)]
            location = self._find(file)
            if location is not None:
                locations[split] = location
        return locations

    def load(self, split: Split) -> list[Example]:
        source_split = self._split_read_for(split)
        file = self.files()[source_split]
        location = self._find(file)
        if location is None:
            raise TaskError(self._missing(split, file))
        entries = list(self.read(location, file.sha256 if is_remote(location) else None, source_split))
        skipped = sum((Counter(entry.skipped) for entry in entries), Counter[str]())
        if bare := sum(not entry.references for entry in entries):
            skipped["entries left without a reference"] = bare
        self._skipped[split] = dict(skipped)
        examples = self.examples(entries, source_split)
        if not examples:
            raise TaskError(f"{location}: no examples")
        if self.config.check_counts:
            self._check_counts(location, source_split, entries, examples)
        if self.config.train_split == "dev" and split != "test":
            examples = [example for example in examples if _stays_in_dev(example.source) == (split == "dev")]
        return examples

    def skipped(self, split: Split) -> Mapping[str, int]:
        return self._skipped.get(split, {})

    def data_sha256(self) -> str | None:
        """Hash over the hashes of the files, which are known for most public ones; None if one is unknown."""
        digest = hashlib.sha256()
        for split, location in self.data_files().items():
            expected = self.files()[self._split_read_for(split)].sha256
            if is_remote(location) and expected is None:
                return None
            digest.update(bytes.fromhex(expected if is_remote(location) and expected else _hash(location)))
        return digest.hexdigest()

    def checksums(self, splits: Sequence[Split]) -> dict[str, str]:
        """Name and sha256 of each file or folder of these splits, including downloaded ones."""
        locations = {location for split, location in self.data_files().items() if split in splits}
        return {location.rpartition("/")[2]: _hash(location) for location in sorted(locations)}

    def _split_read_for(self, split: Split) -> Split:
        return "dev" if split == "train" and self.config.train_split == "dev" else split

    def _find(self, file: PublishedFile) -> str | None:
        if self.config.path is None:
            return file.url
        folder = with_home(self.config.path)
        return next((str(folder / name) for name in file.names if (folder / name).exists()), None)

    def _missing(self, split: Split, file: PublishedFile) -> str:
        if self.config.path is None:
            return f"task.path: the {split} split has no public address; set task.path to a folder with {file.names[0]}"
        hint = "; train_split: dev trains on a part of the dev split instead" if split == "train" else ""
        names = " or ".join(file.names)
        return f"task.path: the {split} split is not there: no file {names} in {self.config.path!r}{hint}"

    def _check_counts(self, location: str, split: Split, entries: Iterable[Entry], examples: Iterable[Example]) -> None:
        expected = self.published()[split]
        references = sum(len(entry.references) + sum(entry.skipped.values()) for entry in entries)
        tags = Counter(tag for example in examples for tag in example.tags)
        checks = [("references", references, expected.references)]
        if expected.entries is not None:
            checks.append(("sources", self.count_sources(entries), expected.entries))
        checks += [(f"sources tagged {tag}", tags[tag], number) for tag, number in expected.tags.items()]
        wrong = [f"{count:,} {what}, published {number:,}" for what, count, number in checks if count != number]
        if wrong:
            raise TaskError(
                f"{location}: {'; '.join(wrong)}. Where the difference is meant, set task.check_counts: false"
            )

    def count_sources(self, entries: Iterable[Entry]) -> int:
        """The number of sources as the publication counts them: all entries."""
        return len(list(entries))


class GroupedTask(PublishedTask):
    """A benchmark whose files hold a line for each reference: a source is all lines with the same text."""

    licence: ClassVar[str]

    def examples(self, entries: Iterable[Entry], split: Split) -> list[Example]:
        grouped: dict[str, tuple[Facts, list[str]]] = {}
        for entry in entries:
            grouped.setdefault(self.word(entry.facts), (entry.facts, []))[1].extend(entry.references)
        return [
            Example(f"{split}-{number}", facts, source, tuple(references))
            for number, (source, (facts, references)) in enumerate(grouped.items())
            if references
        ]

    def count_sources(self, entries: Iterable[Entry]) -> int:
        """The number of sources as the publication counts them: different meaning representations."""
        return len({entry.facts for entry in entries})


def _stays_in_dev(source: str) -> bool:
    """Whether a source stays in dev. Its text decides, so that equal sources stay together and no seed is needed."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) % DEV_SHARE == 0


def _hash(location: str) -> str:
    """Hash of a file, or of all files of a folder with their names."""
    path = local_copy(location)
    if not path.is_dir():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.xml")):
        digest.update(f"{file.relative_to(path)} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
