"""The rows of searches: ``results/<sweep>/tuning/<search>/{search,ask-000,cut-0}.json``, each written atomically.

An ask is written before its trial starts, and a cut before other trials go on, so that a search that was interrupted
makes exactly the same ones again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bench.schema.trial import Spec
from bench.store.files import write_atomically
from bench.store.records import StoreError
from bench.tuning.search import Ask, Cut, Search

RowT = TypeVar("RowT", bound=Spec)


@dataclass(frozen=True)
class SearchRows:
    """All rows of one search."""

    search: Search
    asks: tuple[Ask, ...]
    cuts: tuple[Cut, ...]


class SearchStore:
    """Reads and writes the rows of one search.

    Args:
        root: ``<results>/<sweep>``.
        search: The search.
    """

    def __init__(self, root: Path, search: Search) -> None:
        self.folder = root / "tuning" / search.key
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "search.json", search.model_dump_json(indent=2) + "\n")

    def asks(self) -> list[Ask]:
        """All asks so far, by number."""
        return _rows(self.folder, "ask-*.json", Ask)

    def cut(self, rung: int) -> Cut | None:
        """The cut after a rung, if it was made."""
        return next((cut for cut in _rows(self.folder, "cut-*.json", Cut) if cut.rung == rung), None)

    def add_ask(self, ask: Ask) -> Ask:
        """Write an ask."""
        write_atomically(self.folder / f"ask-{ask.number:03}.json", ask.model_dump_json(indent=2) + "\n")
        return ask

    def add_cut(self, cut: Cut) -> Cut:
        """Write a cut."""
        write_atomically(self.folder / f"cut-{cut.rung}.json", cut.model_dump_json(indent=2) + "\n")
        return cut


def read_searches(root: Path) -> list[SearchRows]:
    """All searches of a sweep, in order of their keys.

    Raises:
        StoreError: A row is torn.
    """
    return [
        SearchRows(
            search=_row(path, Search),
            asks=tuple(_rows(path.parent, "ask-*.json", Ask)),
            cuts=tuple(_rows(path.parent, "cut-*.json", Cut)),
        )
        for path in sorted((root / "tuning").glob("*/search.json"))
    ]


def _rows(folder: Path, pattern: str, kind: type[RowT]) -> list[RowT]:
    return [_row(path, kind) for path in sorted(folder.glob(pattern))]


def _row(path: Path, kind: type[RowT]) -> RowT:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is not a valid row of a search; move its folder away to search anew. {error}"
        ) from error
