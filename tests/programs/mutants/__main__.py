"""``python -m mutants [PACKAGE ...]``: try faults, say what survived, and write docs/inside/mutants.md.

What was tried is kept in build/mutants/, one file for a package, and the page has a row for each of these. Exit code 1
if a package that was tried misses the aim.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mutants.mutations import Mutant, sample
from mutants.page import AIM, Counted, counted, page
from mutants.targets import ROOT, TARGETS, Target
from mutants.trials import Tried, try_all

OUTCOMES = ROOT / "build" / "mutants"
PAGE = ROOT / "docs" / "inside" / "mutants.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutants")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--sample", type=int, help="of each module; 0: all. Default: as the package's target says")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--only",
        choices=("survivors", "untried"),
        help="what survived last time or was not tried then; only what was not tried",
    )
    parser.add_argument("--longest", type=float, help="seconds; tests that take longer are left out. Default: likewise")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=[],
        help="only these of the package's tests: for survivors that new tests may kill",
    )
    arguments = parser.parse_args()
    names = arguments.packages or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no package {unknown[0]}; there are {', '.join(TARGETS)}")
    if len(names) > 1:  # each in a process of its own: what one package imports is not there for the next
        options = sys.argv[1:]
        for name in names:
            subprocess.run(
                [sys.executable, "-m", "mutants", name, *(one for one in options if one not in names)], check=False
            )
    else:
        os.chdir(ROOT)
        OUTCOMES.mkdir(parents=True, exist_ok=True)
        try_package(TARGETS[names[0]], arguments)
    packages = [counted_outcomes(name) for name in TARGETS if (OUTCOMES / f"{name}.json").exists()]
    PAGE.write_text(page(packages, arguments.seed), encoding="utf-8")
    for one in packages:
        if one.name in names:
            sys.stdout.write(
                f"{one.name}: {one.score:.0%}: {one.killed} killed, {len(one.survived)} survived, "
                f"{one.equivalent} equivalent\n"
            )
    return 1 if any(one.score < AIM for one in packages if one.name in names) else 0


def try_package(target: Target, arguments: argparse.Namespace) -> None:
    """Try a sample of a package's faults, and write build/mutants/PACKAGE.json after each."""
    if strangers := [test for test in arguments.tests if not test.startswith(target.tests)]:
        raise SystemExit(f"{strangers[0]} is no test of {target.name}; these are: {', '.join(target.tests)}")
    if arguments.tests:
        target = replace(target, tests=tuple(arguments.tests))
    possible = 0
    size = target.sample if arguments.sample is None else arguments.sample
    longest = target.longest_seconds if arguments.longest is None else arguments.longest
    drawn: list[Mutant] = []
    for file in target.files:
        source = (ROOT / file).read_text(encoding="utf-8")
        of_file, count = sample(source, file, size or None, str(arguments.seed))
        drawn += of_file
        possible += count
    path = OUTCOMES / f"{target.name}.json"
    known = {key(one): one for one in json.loads(path.read_text())["tried"]} if arguments.only and path.exists() else {}
    settled = {"killed", "hung"} if arguments.only == "survivors" else {"killed", "hung", "survived", "not reached"}
    outcomes = [known[one.key] for one in drawn if one.key in known and known[one.key]["outcome"] in settled]
    there = {key(one) for one in outcomes}
    todo = [one for one in drawn if one.key not in there]

    def tried(one: Tried) -> None:
        mutant = todo[one.number]
        outcomes.append(
            {
                **{name: getattr(mutant, name) for name in ("file", "function", "before", "after", "line")},
                "outcome": one.outcome,
                "seconds": round(one.seconds, 2),
            }
        )
        write_outcomes(path, size, longest, possible, outcomes)
        note(f"{one.outcome:11} {one.seconds:5.1f} s  {mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}")

    note(f"{target.name}: {possible} faults, {len(todo)} to try")
    with tempfile.TemporaryDirectory(prefix="tuneoff-mutants-") as folder:
        if todo:
            try_all(target, todo, Path(folder), longest, tried, note)
    write_outcomes(path, size, longest, possible, outcomes)


def key(one: dict[str, Any]) -> tuple[str, str, str, str]:
    """What :attr:`Mutant.key` is, of an entry of the file."""
    return one["file"], one["function"], one["before"], one["after"]


def write_outcomes(path: Path, size: int, longest: float, possible: int, outcomes: list[dict[str, Any]]) -> None:
    """Write a package's file."""
    revision = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    content = {
        **{"day": day, "revision": revision.stdout.strip()},
        **{"sample": size, "longest": longest, "possible": possible, "tried": outcomes},
    }
    text = json.dumps(content, indent=1)
    path.with_suffix(".new").write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)


def counted_outcomes(name: str) -> Counted:
    """What lies in a package's file."""
    return counted(name, json.loads((OUTCOMES / f"{name}.json").read_text(encoding="utf-8")))


def note(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
