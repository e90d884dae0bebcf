"""The WebNLG challenge 2017 (Gardent et al. 2017): sets of DBpedia triples and texts about them."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from bench.task import Scoring, Split, TaskError, linearise
from bench.tasks.benchmark import Entry, PublishedConfig, PublishedCounts, PublishedFile, PublishedTask
from bench.tasks.benchmark_xml import numbered_triples, read_entries
from bench.tasks.rows import decoded, local_copy, read_json_array, read_json_lines, read_text
from bench.tasks.values import Facts
from bench.tasks.wording import entity_words, relation_words

PUBLIC = (
    "https://raw.githubusercontent.com/microsoft/LoRA/3732c24dba0559fe4393bfc8f295b83947a2c5e0/examples/NLG/data/"
    "webnlg_challenge_2017"
)

Form = Literal["jsonl", "json", "xml"]
FORMS: tuple[Form, ...] = ("jsonl", "json", "xml")
ARCHIVE = "webnlg_challenge_2017_xml.tar.gz"

COUNTS: dict[Split, PublishedCounts] = {
    "train": PublishedCounts(6940, 18102),
    "dev": PublishedCounts(872, 2268),
    "test": PublishedCounts(1862, 4928, {"seen": 971, "unseen": 891}),
}

# The categories that occur in the training data; the test split has five more.
SEEN = {"Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam"}
SEEN |= {"University", "WrittenWork"}


class WebNLG(PublishedTask):
    """WebNLG 2017: one to seven DBpedia triples into a text; half of the test split is in categories not trained on.

    An entry is an example, as in the official scripts. Texts with the comment ``good`` are kept, as by Li & Liang 2021
    and Hu et al. 2021; the others are counted. Tags: ``seen`` or ``unseen``, the category, the number of triples.
    """

    class Config(PublishedConfig):
        """Settings of the task webnlg."""

        form: Form | None = Field(
            None,
            description="which files to read: jsonl, json, or xml (folder or tar.gz); null: the first that is there",
        )
        fold_predictions: bool = Field(
            False,
            description="whether predictions are folded to ASCII, as references are, before they are scored: the "
            "challenge's script does so, Ribeiro et al. 2021 do not; about half a point of BLEU",
        )

    config: Config

    licence: ClassVar[str] = "CC BY-NC-SA 4.0"
    licence_note: ClassVar[str] = "non-commercial use only"
    citation: ClassVar[str] = "Gardent et al. 2017, The WebNLG challenge: generating text from RDF data, INLG"
    # multi-bleu.perl -lc, METEOR and tercom, as the challenge ran them; chrF++, which its edition of 2020 has, is
    # sacrebleu's.
    scoring = Scoring(
        metrics=("bleu", "meteor", "ter", "chrf", "rouge_l", "entity_coverage"),
        lowercase=True,
        preparation="webnlg",
        max_references=3,
        bleu="multi-bleu",
        ter="tercom",
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.fold_predictions:
            self.scoring = replace(self.scoring, preparation="webnlg_folded")

    def files(self) -> Mapping[Split, PublishedFile]:
        forms = FORMS if self.config.form is None else (self.config.form,)
        splits: tuple[Split, ...] = ("train", "dev", "test")
        return {
            split: PublishedFile(
                tuple(name for form in forms for name in _names(split)[form]),
                f"{PUBLIC}/{split}.json" if "json" in forms else None,
            )
            for split in splits
        }

    def published(self) -> Mapping[Split, PublishedCounts]:
        return COUNTS

    def read(self, location: str, sha256: str | None, split: Split) -> Iterator[Entry]:
        if location.endswith(".jsonl"):
            for number, row in read_json_lines(location, sha256):
                yield _json_line(row, f"{location}: line {number}")
        elif location.endswith(".json"):
            yield from _challenge_json(read_text(location, sha256), location, split)
        else:
            for name, text in _xml_files(location, split):
                stem = Path(name).stem
                for entry in read_entries(text, f"{location}: {name}" if name else location):
                    entry_id = f"test/{entry.id}" if split == "test" else f"{split}/{stem}/{entry.id}"
                    yield _entry(entry_id, entry.category, tuple(entry.triples), entry.texts)

    def word(self, facts: Facts) -> str:
        if self.config.linearisation == "plain":
            return linearise(
                [(entity_words(one), relation_words(relation), entity_words(two)) for one, relation, two in facts]
            )
        if self.config.linearisation == "hu":
            return linearise(facts)
        return " | " + linearise(facts)  # Li & Liang put a separator, with both its spaces, in front of every triple


def _names(split: Split) -> dict[Form, tuple[str, ...]]:
    return {
        "jsonl": (f"webnlg17_{split}.jsonl",),
        "json": (f"{split}.json",),
        "xml": (ARCHIVE, f"webnlg_challenge_2017/{split}", split),
    }


def _entry(entry_id: str, category: str, facts: Facts, texts: Iterable[tuple[str, str]]) -> Entry:
    skipped = Counter(
        "empty references" if not text else f"references marked {comment}"
        for comment, text in texts
        if not text or comment != "good"
    )
    kept = tuple(text for comment, text in texts if text and comment == "good")
    seen = "seen" if category in SEEN else "unseen"
    return Entry(facts, kept, entry_id, (seen, category, numbered_triples(len(facts))), skipped)


def _xml_files(location: str, split: Split) -> Iterator[tuple[str, str]]:
    """Name and text of each XML file of a split, in a folder or an archive, sorted by name."""
    path = local_copy(location)

    def is_data(name: str) -> bool:
        return name.endswith(".xml") and (split != "test" or name.endswith("testdata_with_lex.xml"))

    if path.is_dir():
        for file in sorted(file for file in path.rglob("*.xml") if is_data(file.name)):
            yield str(file.relative_to(path)), decoded(file.read_bytes(), str(file))
        return
    try:
        with tarfile.open(path) as archive:
            members = [file for file in archive.getmembers() if f"/{split}/" in file.name and is_data(file.name)]
            for member in sorted(members, key=lambda member: member.name):
                content = archive.extractfile(member)
                if content is not None:
                    yield member.name, decoded(content.read(), f"{location}: {member.name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise TaskError(f"{location}: cannot be read as an archive: {error}") from error


def _json_line(row: dict[str, Any], where: str) -> Entry:
    for key, kind in (("id", str), ("category", str), ("triples", list), ("lex", list)):
        if not isinstance(row.get(key), kind):
            raise TaskError(f"{where}: {key!r} must be a {kind.__name__}, got {row.get(key)!r}")
    if not row["triples"]:
        raise TaskError(f"{where}: 'triples' is empty")
    for triple in row["triples"]:
        if not isinstance(triple, list) or len(triple) != 3 or not all(isinstance(part, str) for part in triple):
            raise TaskError(f"{where}: expected a triple of three texts, got {triple!r}")
    for text in row["lex"]:
        if not isinstance(text, dict) or not isinstance(text.get("text"), str):
            raise TaskError(f"{where}: expected an object with 'text' and 'comment' in 'lex', got {text!r}")
    texts = [(str(text.get("comment", "")), text["text"].strip()) for text in row["lex"]]
    return _entry(row["id"], row["category"], tuple(tuple(triple) for triple in row["triples"]), texts)


def _challenge_json(content: str, where: str, split: Split) -> Iterator[Entry]:
    """Entries of the JSON that the challenge's converter writes: ``{"entries": [{"1": {...}}, {"2": {...}}]}``."""
    start = re.match(r'\s*\{\s*"entries"\s*:\s*(?=\[)', content)
    if start is None:
        raise TaskError(f"{where}: line 1: expected an object with 'entries', got {content[:40]!r}")
    for line, wrapped in read_json_array(content, where, start.end()):
        try:
            ((number, entry),) = wrapped.items()
            facts = _challenge_facts(entry)
            texts = [(text["comment"], text["lex"].strip()) for text in entry["lexicalisations"]]
            entry_id = f"{split}/Id{number}" if split == "test" else f"{split}/{number}"
            yield _entry(entry_id, entry["category"], facts, texts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TaskError(f"{where}: line {line}: not an entry of the challenge: {error!r}") from error


def _challenge_facts(entry: dict[str, Any]) -> Facts:
    facts = tuple((triple["subject"], triple["property"], triple["object"]) for triple in entry["modifiedtripleset"])
    if not facts or not all(
        isinstance(part, str) for part in (entry["category"], *(p for fact in facts for p in fact))
    ):
        raise ValueError("expected a category and at least one triple, all texts")
    return facts
