"""DART v1.1.1 (Nan et al. 2021): sentences from triples of tables, of WebNLG and of E2E."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bench.task import Scoring, Split, TaskError, linearise
from bench.tasks.benchmark import Entry, PublishedConfig, PublishedCounts, PublishedFile, PublishedTask
from bench.tasks.benchmark_xml import numbered_triples, read_entries
from bench.tasks.rows import read_json_array, read_text
from bench.tasks.values import Facts
from bench.tasks.wording import entity_words, relation_words

PUBLIC = "https://raw.githubusercontent.com/Yale-LILY/dart/34b3c872da4811523e334f1631e54ca8105dffab/data/v1.1.1"


def _file(split: str, extension: str, sha256: str | None = None) -> PublishedFile:
    name = f"dart-v1.1.1-full-{split}"
    return PublishedFile((f"{name}.json", f"{name}.xml"), f"{PUBLIC}/{name}.{extension}", sha256)


FILES: dict[Split, PublishedFile] = {
    "train": _file("train", "json"),
    "dev": _file("dev", "json", "56606eac12baa7f0ddb81c61890f9f1a95bace4df8f8989852786358fe5d2b88"),
    "test": _file("test", "xml", "4f6994d633030278798c114555549a13202780fe0d78ee2e7ac7dcce45a8e233"),
}
COUNTS: dict[Split, PublishedCounts] = {
    "train": PublishedCounts(30526, 62659),
    "dev": PublishedCounts(2768, 6980),
    "test": PublishedCounts(5097, 12552),
}


class Dart(PublishedTask):
    """DART: one to seven triples of open domains into a sentence; a large part of the data is from WebNLG and E2E.

    An entry is an example, as in the official scripts: 938 sets of triples occur more than once in the test split. One
    of its 12,552 texts is empty; it is left out and counted. Tags: the origin of the texts, and the number of triples.
    """

    class Config(PublishedConfig):
        """Settings of the task dart."""

    licence: ClassVar[str] = "MIT"
    citation: ClassVar[str] = "Nan et al. 2021, DART: open-domain structured data record to text generation, NAACL"
    # multi-bleu.perl on the three published reference files, which are split and in lower case. prepare_files.py of the
    # official script passes all three to METEOR and tercom, too (the authors' release of 2020-07-03 and later).
    scoring = Scoring(
        metrics=("bleu", "meteor", "ter", "chrf", "rouge_l", "entity_coverage"),
        preparation="dart",
        max_references=3,
        bleu="multi-bleu",
        ter="tercom",
    )

    def files(self) -> Mapping[Split, PublishedFile]:
        return FILES

    def published(self) -> Mapping[Split, PublishedCounts]:
        return COUNTS

    def read(self, location: str, sha256: str | None, split: Split) -> Iterator[Entry]:
        text = read_text(location, sha256)
        if text.lstrip().startswith("<"):
            for number, entry in enumerate(read_entries(text, location), start=1):
                yield _entry(f"{split}-{number}", tuple(entry.triples), entry.texts)
            return
        for number, (line, record) in enumerate(read_json_array(text, location), start=1):
            where = f"{location}: line {line}"
            yield _entry(f"{split}-{number}", _triples(record, where), _annotations(record, where))

    def word(self, facts: Facts) -> str:
        if self.config.linearisation == "plain":
            return linearise(
                [(entity_words(one), relation_words(relation), entity_words(two)) for one, relation, two in facts]
            )
        return linearise([(subject, relation.lower(), value) for subject, relation, value in facts])


def _entry(entry_id: str, facts: Facts, texts: list[tuple[str, str]]) -> Entry:
    kept = tuple(text for _, text in texts if text)
    origins = [origin for origin, _ in Counter(origin for origin, _ in texts).most_common(1)]
    empty = len(texts) - len(kept)
    return Entry(
        facts, kept, entry_id, (*origins, numbered_triples(len(facts))), {"empty references": empty} if empty else {}
    )


def _triples(record: dict[str, Any], where: str) -> Facts:
    triples = record.get("tripleset")
    if not isinstance(triples, list) or not triples:
        raise TaskError(f"{where}: 'tripleset' must be a list of triples, got {triples!r}")
    for triple in triples:
        if not isinstance(triple, list) or len(triple) != 3 or not all(isinstance(part, str) for part in triple):
            raise TaskError(f"{where}: expected a triple of three texts, got {triple!r}")
    return tuple(tuple(part.strip() for part in triple) for triple in triples)


def _annotations(record: dict[str, Any], where: str) -> list[tuple[str, str]]:
    annotations = record.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise TaskError(f"{where}: 'annotations' must be a list of at least one text, got {annotations!r}")
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("text"), str):
            raise TaskError(f"{where}: expected an annotation with 'source' and 'text', got {annotation!r}")
    return [(str(annotation.get("source", "")), annotation["text"].strip()) for annotation in annotations]
