"""A plugin project to start from: one method that works, its entry point and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from bench.plugins.registry import known
from bench.schema.validation import ConfigError

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=80"]
build-backend = "setuptools.build_meta"

[project]
name = "tuneoff-$dashed"
version = "0.1.0"
description = "The fine-tuning method $name for Tuneoff."
requires-python = ">=3.11"
dependencies = ["tuneoff"]

# Left of = is the name that sweeps use.
[project.entry-points."tuneoff.methods"]
$name = "$name:$class_name"

[tool.setuptools]
py-modules = ["$name"]
"""

_METHOD = '''\
"""$class_name: a vector of its own is added to what every norm layer gives. Replace it with your method.

D width of a norm layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import nn

from bench.method import Method, MethodConfig, MethodError


class Offset(nn.Module):
    """Adds a trained vector ``(D,)``. Called as a module of its own, it works where ZeRO-3 cuts parameters up, too."""

    def __init__(self, like: torch.Tensor, std: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn_like(like) * std)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.vector.to(hidden_states.dtype)


class $class_name(Method):
    """A trained vector is added to the output of every norm layer."""

    class Config(MethodConfig):
        """Settings, each with a type, a default and a meaning; 'tuneoff methods $name' shows them."""

        init_std: NonNegativeFloat = Field(0.0, description="standard deviation at the start; 0: as the base model")

    paper: ClassVar[str] = ""  # authors, year, identifier

    def patch(self, model: Any) -> nn.Module:
        """Gets the base model frozen; what requires grad afterwards is trained."""
        norms = [module for module in model.modules() if "Norm" in type(module).__name__]
        if not norms:
            raise MethodError(f"{type(model).__name__} has no norm layer")
        offsets = nn.ModuleList(Offset(norm.weight, self.config.init_std) for norm in norms)
        for norm, offset in zip(norms, offsets, strict=True):
            norm.register_forward_hook(lambda module, args, output, offset=offset: offset(output))
        model.${name}_offsets = offsets
        patched: nn.Module = model
        return patched
'''

_TEST = '''\
"""The contract that every method of Tuneoff keeps, on tiny models of each family."""

import pytest
from $name import $class_name

from bench.conformance import keeps_contract, verdicts
from bench.conformance.tiny_models import CORE_FAMILIES


@pytest.mark.parametrize("family", CORE_FAMILIES)
def test_contract(family: str) -> None:
    found = list(verdicts($class_name, $class_name.Config(init_std=0.1), [family]))
    assert keeps_contract(found), [verdict for verdict in found if verdict.outcome != "pass"]
'''


def write_project(name: str, parent: Path) -> Path:
    """Write the project into ``parent/name``; returns that folder.

    Raises:
        ConfigError: The name cannot be a module's, is taken, or the folder is there already.
    """
    _require_free(name)
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"new-method: {str(folder)!r} is there already; choose another name or --into another folder")
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
    }
    folder.mkdir(parents=True)
    for file, text in (("pyproject.toml", _PYPROJECT), (f"{name}.py", _METHOD), (f"test_{name}.py", _TEST)):
        (folder / file).write_text(Template(text).substitute(words), encoding="utf-8")
    return folder


def _require_free(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"new-method: {name!r} cannot name a Python module; use small letters, digits and _")
    if name in known("method"):
        raise ConfigError(f"new-method: there is a method {name!r} already; choose another name")
    if name.startswith("test_") or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"new-method: {name!r} is the name of a module that is installed here; choose another name")
