"""The constraints of make test-lowest are the lower bounds of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bench.tools.lowest_versions import lowest

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_a_lower_bound_is_a_version_or_a_release_line() -> None:
    assert lowest(["ray>=2.50,<2.61", "peft>=0.19.1,<0.22"]) == ["ray==2.50.*", "peft==0.19.1"]
    with pytest.raises(ValueError, match=r"ray<3: one lower bound is needed"):
        lowest(["ray<3"])


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert len(lowest(requirements)) == len(requirements)
    for requirement in map(Requirement, requirements):
        assert {one.operator for one in requirement.specifier} == {">=", "<"}, requirement
