"""The command ``tuneoff``: sees that the packages it is about to import are its own, and hands over to them.

``bench`` and ``methods`` are names that others use too, and a folder of that name on PYTHONPATH comes first.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Entry of the command; exit code 2 where the packages are somebody else's."""
    here = Path(__file__).resolve().parent
    for name in ("bench", "methods"):
        found = _folder_of(name)
        if found != here / name:
            sys.stderr.write(
                f"error: Python finds another package {name!r} ({found or 'none'}) before Tuneoff's ({here / name}); "
                "take its folder out of PYTHONPATH, or run the command from an environment without it\n"
            )
            sys.exit(2)
    from bench import cli

    cli.main()


def _folder_of(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve().parent
    return next((Path(place).resolve() for place in spec.submodule_search_locations or ()), None)


if __name__ == "__main__":
    main()
