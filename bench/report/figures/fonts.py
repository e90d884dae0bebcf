"""The folder of matplotlib's list of fonts, which is temporary if the user's home cannot be written to."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.store.owned_folder import owned_folder

VARIABLE = "MPLCONFIGDIR"


@contextlib.contextmanager
def fonts_folder() -> Iterator[None]:
    """Matplotlib is imported with a folder for its list of fonts, which is removed after the block if it is temporary.

    Where it may not write into the user's home it makes a temporary folder by itself, complains, and counts on the end
    of the interpreter to remove it, which commands of ours do without (:mod:`bench.measure.leaving`).
    """
    home = Path.home()
    places = {"XDG_CONFIG_HOME": home / ".config", "XDG_CACHE_HOME": home / ".cache"}
    folders = [Path(os.environ.get(name) or place) / "matplotlib" for name, place in places.items()]
    if VARIABLE in os.environ or "matplotlib" in sys.modules or all(map(_takes_files, folders)):
        yield
        return
    temporary = owned_folder("tuneoff-fonts-")
    os.environ[VARIABLE] = str(temporary)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        shutil.rmtree(temporary, ignore_errors=True)


def _takes_files(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
