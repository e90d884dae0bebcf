"""The sweep that a results folder belongs to, as it was run last: ``results/<sweep>/sweep.json``.

Records stay for ever, while people change a sweep file. Tables therefore show the trials that the last version asks
for, and list those of other versions apart. A folder without this file, from before 2026-11-29, shows all its records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from bench.schema.printable import in_one_line
from bench.schema.record import TrialResult
from bench.schema.sweep import Sweep
from bench.schema.trial import JsonDict, Spec
from bench.store.files import write_atomically
from bench.store.records import StoreError

KEPT_FILE = "sweep.json"


class KeptSweep(Spec):
    """The sweep as it was run last, and the trials that it asks for."""

    schema_version: Literal[1] = 1
    source: str | None = Field(None, description="text of the sweep file; None where it was no file")
    settings: list[str] = Field(default_factory=list, description="what --set changed in it")
    sweep: JsonDict | None = Field(None, description="every key with its value; None where no sweep was run here")
    trial_ids: list[str] = Field(default_factory=list, description="of the records that it asks for, as far as known")
    searches: list[str] = Field(default_factory=list, description="keys of its searches")
    beside: list[str] = Field(default_factory=list, description="trials that commands of their own have added")

    @property
    def asks(self) -> frozenset[str] | None:
        """The trials that tables show; None: all there are."""
        return None if self.sweep is None else frozenset([*self.trial_ids, *self.beside])


def read_kept(root: Path) -> KeptSweep | None:
    """The sweep of a results folder; None in a folder from before 2026-11-29.

    Raises:
        StoreError: The file was damaged or edited.
    """
    path = root / KEPT_FILE
    try:
        return KeptSweep.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} does not hold a sweep; move it away, and tables show all records until 'tuneoff run' writes it "
            f"anew. {in_one_line(str(error)).partition(' [type=')[0]}"
        ) from error


def keep_sweep(root: Path, sweep: Sweep, source: str | None, settings: Sequence[str], searches: Sequence[str]) -> None:
    """Write that this sweep is run now. If it has changed, the trials that its last version asked for are forgotten.

    A sweep that has all the searches of its last version, as one to which a method was added, keeps them until
    :func:`keep_only`: which final trials it asks for is not known before the last search has ended, and until then
    tables would be empty.
    """
    before = read_kept(root) or KeptSweep()
    resolved = sweep.model_dump(mode="json")
    goes_on = bool(before.searches) and set(before.searches) <= set(searches)
    known = before.trial_ids if goes_on or before.sweep == resolved else []
    version = {"source": source, "settings": list(settings), "sweep": resolved, "searches": list(searches)}
    _write(root, before.model_copy(update={**version, "trial_ids": known}))


def keep_asked(root: Path, trial_ids: Iterable[str]) -> None:
    """Write that the sweep asks for these trials too."""
    _add(root, "trial_ids", trial_ids)


def keep_beside(root: Path, trial_ids: Iterable[str]) -> None:
    """Write that tables show these trials whatever the sweep asks for."""
    _add(root, "beside", trial_ids)


def keep_only(root: Path, trial_ids: Iterable[str]) -> None:
    """Write that the sweep asks for these trials and no others, once all of them are known."""
    if (kept := read_kept(root)) is not None:
        _write(root, kept.model_copy(update={"trial_ids": list(dict.fromkeys(trial_ids))}))


def divided(
    records: Iterable[TrialResult], asks: Collection[str] | None
) -> tuple[list[TrialResult], list[TrialResult]]:
    """The records that are asked for, and the others."""
    current_records: list[TrialResult] = []
    others: list[TrialResult] = []
    for record in records:
        (current_records if asks is None or record.trial_id in asks else others).append(record)
    return current_records, others


def _add(root: Path, field: Literal["trial_ids", "beside"], trial_ids: Iterable[str]) -> None:
    kept = read_kept(root) or KeptSweep()
    before: list[str] = getattr(kept, field)
    if len(all_ids := list(dict.fromkeys([*before, *trial_ids]))) > len(before):
        _write(root, kept.model_copy(update={field: all_ids}))


def _write(root: Path, kept: KeptSweep) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / KEPT_FILE, kept.model_dump_json(indent=1) + "\n")
