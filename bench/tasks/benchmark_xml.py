"""Reads the XML of WebNLG and DART: entries with triples and lexicalisations."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from bench.task import TaskError

TRIPLE_SEPARATOR = " | "


@dataclass
class XmlEntry:
    """One ``<entry>``: a set of triples and the texts that people wrote about it."""

    id: str
    category: str
    line: int
    triples: list[tuple[str, ...]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of comment (``good``, or the origin of the text) and text."""


def read_entries(text: str, where: str) -> list[XmlEntry]:
    """All entries of a benchmark file, in order.

    Raises:
        TaskError: The text is no XML, is cut off, or a triple does not have three parts. The message names the line.
    """
    reader = _Reader(where)
    try:
        reader.parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        raise TaskError(f"{where}: line {error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from error
    return reader.entries


class _Reader:
    """Collects entries while expat, which knows line numbers, parses the file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.entries: list[XmlEntry] = []
        self._text: list[str] | None = None
        self._comment = ""
        self.parser = expat.ParserCreate("utf-8")
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        # Benchmark files declare no entities. Another file could, to make the parser fill the memory.
        self.parser.EntityDeclHandler = self._entity

    def _here(self) -> str:
        return f"{self.where}: line {self.parser.CurrentLineNumber}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "entry":
            for name in ("eid", "category"):
                if name not in attributes:
                    raise TaskError(f"{self._here()}: <entry> has no attribute {name!r}")
            self.entries.append(XmlEntry(attributes["eid"], attributes["category"], self.parser.CurrentLineNumber))
        elif tag in ("mtriple", "lex"):
            if not self.entries:
                raise TaskError(f"{self._here()}: <{tag}> outside of any <entry>")
            self._text = []
            self._comment = attributes.get("comment", "")

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        if tag == "entry" and self.entries and not self.entries[-1].triples:
            raise TaskError(f"{self.where}: line {self.entries[-1].line}: <entry> has no <mtriple>")
        if self._text is None or tag not in ("mtriple", "lex"):
            return
        text, self._text = "".join(self._text).strip(), None
        if tag == "lex":
            self.entries[-1].texts.append((self._comment, text))
            return
        parts = tuple(part.strip() for part in text.split(TRIPLE_SEPARATOR))
        if len(parts) != 3 or not all(parts):
            raise TaskError(f"{self._here()}: expected 'subject | relation | object', got {text!r}")
        self.entries[-1].triples.append(parts)

    def _entity(self, name: str, *_: object) -> None:
        raise TaskError(f"{self._here()}: the entity {name!r} is declared; benchmark files declare none")


def numbered_triples(count: int) -> str:
    """The tag for the size of a source."""
    return "1 triple" if count == 1 else f"{count} triples"
