"""Listings read from sources what the classes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plugins.read_class import read_class
from bench.plugins.registry import load, summary
from bench.tasks import TASKS
from methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_of_a_method_is_what_its_class_says(name: str) -> None:
    method = load("method", METHODS[name])
    assert read_class(METHODS[name]) == (summary(method), method.paper)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_read_of_a_task_is_what_its_class_says(name: str) -> None:
    task = load("task", TASKS[name])
    assert read_class(TASKS[name]) in (None, (summary(task), task.citation))


CASES = {
    "Plain": ('class Plain(Method):\n    """One.\n\n    Two."""\n', ("One.", "")),
    "Said": ('class Said(Task):\n    """One."""\n    citation: ClassVar[str] = "A"\n', ("One.", "A")),
    "Joined": ('class Joined(Method):\n    """One."""\n    paper = "A " "B"\n', ("One.", "A B")),
    "Computed": ('class Computed(Method):\n    """One."""\n    paper = "A" + B\n', None),
    "Heir": ('class Heir(Plain):\n    """One."""\n', None),
    "Absent": ("x = 1\n", None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_file_does_not_tell_is_left_to_the_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = CASES[name]
    (tmp_path / f"of_{name.lower()}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_class(f"of_{name.lower()}:{name}") == expected
