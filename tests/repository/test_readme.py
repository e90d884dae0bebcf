"""The examples of the README work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.conformance import verdicts
from bench.conformance.tiny_models import CORE_FAMILIES
from bench.plugins.registry import load_method

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert match, f"the README has no {language} block"
    return match.group(1)


def test_the_sweep_is_valid(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(block("yaml"))
    trials = expand(load_sweep(path, (f"task.path={shared_data / 'e2e'}",)), RegistryResolver())
    assert len(trials) == (1 + 1 + 2) * 3


def test_the_method_in_twenty_lines_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 20
    (tmp_path / "norm_scales.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    method_class = load_method("norm_scales:NormScales")
    all_verdicts = list(verdicts(method_class, method_class.Config(), CORE_FAMILIES, processes=0))
    assert [verdict for verdict in all_verdicts if verdict.outcome != "pass"] == []
