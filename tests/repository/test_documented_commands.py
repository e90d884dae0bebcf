"""Every command of tuneoff that the documentation shows exists, with these options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from bench.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/**/*.md", "results/exhibits/*/*.md")
WHERE = (*PAGES, "configs/cluster/**/*", "Makefile", ".ci/*")
# typer carries its own copy of click, of which it shows this class alone.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def files(patterns: Sequence[str]) -> list[Path]:
    """Without reports of sweeps, which quote the command that made them, of the time when they were made."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != "report.md")


def documented() -> list[tuple[str, str]]:
    """File and command: what follows the word in code blocks and scripts up to a comment or a pipe."""
    found = []
    for path in files(WHERE):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        for line in text.splitlines():
            code = re.split(r"(?:^|\s)#", line)[0]
            for command in re.findall(r"(?:^|[\s/\"])(tuneoff [a-z][^;&|]*)", code):
                found.append((str(path.relative_to(ROOT)), command.strip()))
    return found


def mentioned() -> list[tuple[str, str]]:
    """File and command, of those in backquotes within a sentence, which may leave arguments out."""
    found = []
    for path in files(PAGES):
        prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        found += [(str(path.relative_to(ROOT)), command) for command in re.findall(r"`(tuneoff [a-z][^`]*)`", prose)]
    return found


def named_sweeps() -> set[tuple[str, str]]:
    """File and sweep file of this repository that it names."""
    return {
        (str(path.relative_to(ROOT)), name)
        for path in files(WHERE)
        for name in re.findall(r"(?<![\w./-])configs/[\w./-]+\.ya?ml", path.read_text(encoding="utf-8"))
    }


def parse(command: str) -> None:
    """Parse as the program would, and run nothing.

    Raises:
        UsageError: There is no such command, option or argument.
    """
    without_brackets = re.sub(r"\[([^\]]*)\]", r"\1", command)  # an option that the text shows as optional
    words = [word for word in _words(without_brackets) if word != "$@"]
    group: Any = typer.main.get_command(app)
    context = group.make_context("tuneoff", words[1:], resilient_parsing=True)
    if (subcommand := group.get_command(context, words[1])) is None:
        raise UsageError(f"there is no command {words[1]}")
    subcommand.make_context(words[1], words[2:])


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # the end of a shell's own quoting, as in echo "... tuneoff doctor"
        return shlex.split(command.removesuffix('"'))


@pytest.mark.parametrize(("file", "command"), documented())
def test_a_command_that_is_shown_parses(file: str, command: str) -> None:
    try:
        parse(command)
    except UsageError as error:
        pytest.fail(f"{file}: {command}: {error}")


@pytest.mark.parametrize(("file", "command"), mentioned())
def test_a_command_that_is_mentioned_exists(file: str, command: str) -> None:
    try:
        parse(command)
    except UsageError as error:
        if type(error).__name__ != "MissingParameter":
            pytest.fail(f"{file}: {command}: {error}")


def test_sweep_files_that_are_named_exist() -> None:
    named = named_sweeps()
    assert ("results/exhibits/e2e_precision/precision.md", "configs/examples/e2e_cpu.yaml") in named
    assert [found for found in sorted(named) if not (ROOT / found[1]).is_file()] == []


def test_commands_are_found_and_wrong_ones_are_refused() -> None:
    document = documented()
    assert ("docs/use/cluster.md", "tuneoff doctor --address HOST:6379") in document
    assert {"tuneoff plan", "tuneoff run --retry-failed"} <= {command for _, command in mentioned()}
    assert {"README.md", "Makefile", "configs/cluster/slurm/tuneoff.sbatch"} <= {file for file, _ in document}
    for wrong in ("tuneoff walk", "tuneoff run", "tuneoff run a.yaml --speed 3", "tuneoff doctor --address"):
        with pytest.raises(UsageError):
            parse(wrong)
