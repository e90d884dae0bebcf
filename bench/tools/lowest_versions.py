"""Prints constraints for ``make test-lowest``: each dependency of pyproject.toml at its lowest version."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lowest(requirements: list[str]) -> list[str]:
    """``name==version`` for each requirement's lower bound; where that names a release line, any version of it.

    Raises:
        ValueError: A requirement has no lower bound.
    """
    lines = []
    for requirement in map(Requirement, requirements):
        bounds = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement}: one lower bound is needed to test with it")
        exact = bounds[0].count(".") >= 2
        lines.append(f"{requirement.name}=={bounds[0]}{'' if exact else '.*'}")
    return lines


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(lowest(project["dependencies"])) + "\n")
