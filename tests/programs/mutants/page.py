"""docs/inside/mutants.md, from the outcomes of all packages."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants.targets import TARGETS

AIM = 0.85
COLUMNS = (
    *("package", "modules", "tests", "longest test, s", "possible", "of each module"),
    *("tried", "killed", "survived", "equivalent", "score", "day", "revision"),
)
EQUIVALENT = Path(__file__).resolve().parent / "equivalent.toml"


@dataclass(frozen=True)
class Counted:
    """The outcomes of a package."""

    name: str
    day: str
    revision: str
    sample: int  # at most so many of each module; 0: all
    longest_seconds: float  # tests that take longer were left out
    possible: int
    killed: int
    equivalent: int
    survived: Sequence[Mapping[str, Any]]  # and is no equivalent

    @property
    def score(self) -> float:
        """Share of those killed that are no equivalents."""
        return self.killed / max(1, self.killed + len(self.survived))


def counted(name: str, tried: Mapping[str, Any]) -> Counted:
    """Count what a package's file holds."""
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    judged = {(one["at"], one["from"], one["to"]) for one in listed}
    alive = [one for one in tried["tried"] if one["outcome"] in ("survived", "not reached")]
    survived = [one for one in alive if (f"{one['file']}:{one['function']}", one["before"], one["after"]) not in judged]
    return Counted(
        name=name,
        day=tried["day"],
        revision=tried["revision"],
        sample=tried["sample"],
        longest_seconds=tried["longest"],
        possible=tried["possible"],
        killed=len(tried["tried"]) - len(alive),
        equivalent=len(alive) - len(survived),
        survived=survived,
    )


def page(packages: Sequence[Counted], seed: int) -> str:
    """The page."""
    lines = [
        "# Would the tests notice?",
        "",
        "How many small faults, put into the code on purpose, the tests notice, by package.",
        "",
        "    make mutants                                # all packages, which takes hours of one core",
        "    make mutants MUTANTS='statistics --sample 0'   # all faults of one package",
        "    make mutants MUTANTS='--only survivors'        # once more what survived",
        "",
        "The command changes the code in one small place, as a mistake would (a mutant), and runs the tests that reach",
        "the changed line. The mutant is killed if a test fails or does not end; otherwise it survives, and a test is",
        "missing. Then comes the next mutant. The changes are: `<` for `<=` or for `>=`, `-` for `+`, a number that is",
        "off by one, a negated condition, a loop that does nothing, an exception that nobody catches, a statement left",
        "out, and their like (`tests/programs/mutants/mutations.py`; cosmic-ray makes all but the last).",
        "",
        f"Each module gets a sample of its possible mutants, drawn by seed {seed}; the table says how many. A mutant",
        "is equivalent if no test could notice it, or if it changes only the words of a message;",
        "`tests/programs/mutants/equivalent.toml` gives the reason for each. The score is",
        f"killed / (tried - equivalent). Each package should reach {AIM:.0%}. Tests that take longer than the table",
        "says are left out.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|---|---|{'---:|' * 8}---|---|",
    ]
    for one in packages:
        target = TARGETS[one.name]
        tried = one.killed + len(one.survived) + one.equivalent
        counts = (one.possible, one.sample or "all", tried, one.killed, len(one.survived), one.equivalent)
        cells = (
            one.name,
            _code(target.modules),
            _code(target.tests),
            f"{one.longest_seconds:g}",
            *counts,
            f"{one.score:.0%}",
            one.day,
            one.revision,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "These mutants survived at the revisions of the table. A test for one is welcome, unless it has come since:",
    ]
    for one in packages:
        if one.survived:
            lines += ["", f"**{one.name}**", ""]
            lines += [
                f"- {_place(left)}: {_quoted(left['before'])} → {_quoted(left['after'])}" for left in one.survived
            ]
    return "\n".join(lines) + "\n"


def _code(names: Sequence[str]) -> str:
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    return "<br>".join(f"`{file}`" for file in files)


def _place(left: Mapping[str, Any]) -> str:
    return f"`{left['file']}`, `{left['function']}`" if left["function"] else f"`{left['file']}`"


def _quoted(text: str) -> str:
    short = text if len(text) <= 90 else f"{text[:87]}..."
    return f"``{short}``" if "`" in short else f"`{short}`"
