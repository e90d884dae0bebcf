"""A cache on disk of what classes of methods say of their settings, so that asking again takes no torch.

Only of methods that Tuneoff ships, under a hash of the sources concerned and of the versions of what these import: with
other ones everything is asked anew. The classes stay the truth, and the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.measure.provenance import ANSWERING, installed_version, sources_sha256
from bench.models.model_files import cache_path
from bench.plugins.source import SHIPPED
from bench.schema.digests import sha256_of_json
from bench.schema.search_space import SearchSpace
from bench.schema.trial import JsonDict, Spec
from bench.store.files import make_folder, write_atomically

# Packages that the modules of methods import.
PACKAGES = ("torch", "transformers", "peft", "pydantic", "pydantic-core", "numpy", "safetensors")
# So many files are kept, of different sources and versions; the oldest are removed.
MOST_FILES = 8


class Resolved(Spec):
    """What a class says of one choice of its settings."""

    config: JsonDict
    """All of them, defaults included."""
    trains: bool
    search_space: SearchSpace
    needed_steps: tuple[float, str]
    adapts_in_training: bool | None = None
    """None: nobody has asked."""
    trains_in_turns: bool | None = None
    """None: nobody has asked."""


_Entries = TypeAdapter(dict[str, Resolved])


class ResolvedMethods:
    """Reads the cache when it is first asked, and adds to it.

    Args:
        folder: Where the files lie.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_path() / "methods"
        self._new = False

    def get(self, target: str, config: JsonDict) -> Resolved | None:
        """What was said of these settings; None if nobody asked before, or if the method is a plugin."""
        return self._entries.get(_key(target, config)) if _is_shipped(target) else None

    def add(self, target: str, config: JsonDict, resolved: Resolved) -> None:
        """Remember what the class said of these settings, which are those of the sweep file."""
        if _is_shipped(target):
            self._entries[_key(target, config)] = resolved
            self._new = True

    def save(self) -> None:
        """Write new entries. If they cannot be written, the class is asked again next time."""
        if not self._new:
            return
        with contextlib.suppress(OSError):
            make_folder(self.folder)
            write_atomically(self._path, _Entries.dump_json(self._entries))
            self._new = False
            by_age = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in by_age[MOST_FILES:]:
                path.unlink(missing_ok=True)

    @functools.cached_property
    def _path(self) -> Path:
        versions = [platform.python_version(), *map(installed_version, PACKAGES)]
        sources = sources_sha256(*ANSWERING, "bench/config")
        return self.folder / f"{sha256_of_json([sources, *versions])[:32]}.json"

    @functools.cached_property
    def _entries(self) -> dict[str, Resolved]:
        try:
            return _Entries.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return {}


def _is_shipped(target: str) -> bool:
    return target.partition(":")[0].partition(".")[0] in SHIPPED


def _key(target: str, config: JsonDict) -> str:
    return f"{target} {config!r}"  # JSON would take 1 and "1" for the same key
