"""The files of the projects that new-method, new-task and new-metric write: plugins that work and keep their contract.

``$name``, ``$class_name`` and ``$dashed`` stand for the name of the plugin, of its class and of its distribution.
"""

from __future__ import annotations

import json

from bench.plugins.offers import Kind

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=80"]
build-backend = "setuptools.build_meta"

[project]
name = "tuneoff-$dashed"
version = "0.1.0"
description = "{what} $name for Tuneoff."
requires-python = ">=3.11"
dependencies = ["tuneoff"]

# Left of = is the name that sweeps use.
[project.entry-points."{group}"]
$name = "$name:$class_name"

[tool.setuptools]
{modules}
"""

_METHOD = '''\
"""$class_name: adds a trained vector to the output of every norm layer. Replace it with your method.

D width of a norm layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import nn

from bench.method import Method, MethodConfig, MethodError


class Offset(nn.Module):
    """Adds a trained vector ``(D,)``. It is its own module, so that ZeRO-3 gathers the vector when it is called."""

    def __init__(self, like: torch.Tensor, std: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn_like(like) * std)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.vector.to(hidden_states.dtype)


class $class_name(Method):
    """Adds a trained vector to the output of every norm layer."""

    class Config(MethodConfig):
        """Settings, each with a type, a default and a meaning; 'tuneoff methods $name' shows them."""

        init_std: NonNegativeFloat = Field(0.0, description="standard deviation at the start; 0: as the base model")

    paper: ClassVar[str] = ""  # authors, year, identifier

    def patch(self, model: Any) -> nn.Module:
        """The base model comes frozen; the tensors that require grad afterwards are trained."""
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

_METHOD_TEST = '''\
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

_METRIC = '''\
"""$class_name: the share of the reference's words that a prediction contains. Replace it with your metric."""

from __future__ import annotations

import numpy as np

from bench.metrics import Array, Metric, Texts


class $class_name(Metric):
    """Percentage of the words of the first reference that the prediction contains."""

    name = "$name"
    higher_is_better = True  # False where less is better, None where neither end is
    best = 100.0  # of texts that equal their reference; None where there is no such number

    def signature(self, texts: Texts) -> str:
        """Everything that changes the score: how words are cut, versions of libraries."""
        return "words between spaces, lower case|first reference|v1"

    def statistics(self, texts: Texts) -> Array:
        """For each source: shared words, and words of the reference. They are added up over sources."""
        rows = []
        for prediction, references in zip(texts.predictions, texts.references, strict=True):
            words = set(references[0].lower().split())
            rows.append((len(words & set(prediction.lower().split())), len(words)))
        return np.array(rows, dtype=np.float64)

    def score(self, sums: Array) -> Array:
        """The scores of many sums of statistics at once; sums[..., 0] is the first statistic of each."""
        share: Array = 100.0 * sums[..., 0] / np.maximum(1.0, sums[..., 1])
        return share
'''

_METRIC_TEST = '''\
"""The contract that every metric of Tuneoff keeps, and a right value."""

from $name import $class_name

from bench.conformance.metric_checks import verdicts
from bench.metrics.texts import prepare
from bench.task import Scoring


def test_contract() -> None:
    found = list(verdicts($class_name))
    assert all(verdict.outcome == "pass" for verdict in found), found


def test_a_right_value() -> None:
    texts = prepare(["a b", ""], [["a b c d"], ["e f"]], Scoring())
    measured = $class_name(texts.scoring).measure(texts)
    assert measured.over([0, 1]) == 100 * 2 / 6
    assert measured.per_example == (50.0, 0.0)
'''

_TASK = '''\
"""$class_name: sentences on people's homes and hobbies. Replace its data, and the code that reads them, with yours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.task import Example, Scoring, Split, Task, TaskConfig, existing_file, linearise
from bench.tasks.rows import read_json_lines


class $class_name(Task):
    """Turns facts about a person into a sentence."""

    class Config(TaskConfig):
        """Settings beside the common ones, each with a type, a default and a meaning."""

        path: str | None = Field(None, description="folder of the data; None: those of this package")

    licence: ClassVar[str] = ""  # of the data
    citation: ClassVar[str] = ""  # authors, year, identifier
    scoring = Scoring(metrics=("bleu", "chrf", "ter", "rouge_l"))
    stop = ("\\n",)  # what ends a prediction; () for texts of several lines

    def data_files(self) -> Mapping[Split, str]:
        folder = Path(self.config.path or Path(__file__).parent)
        splits: tuple[Split, ...] = ("train", "dev", "test")
        return {split: existing_file(folder / f"{split}.jsonl", f"the {split} split") for split in splits}

    def load(self, split: Split) -> list[Example]:
        return [
            Example(
                id=f"{split}-{number}",
                facts=tuple(tuple(fact) for fact in row["facts"]),
                source=linearise(row["facts"]),
                references=tuple(row["references"]),
            )
            for number, row in read_json_lines(self.data_files()[split])
        ]
'''

_TASK_TEST = '''\
"""The contract that every task of Tuneoff keeps."""

from $name import $class_name

from bench.conformance.task_checks import verdicts


def test_contract() -> None:
    found = list(verdicts($class_name($class_name.Config())))
    assert all(verdict.outcome == "pass" for verdict in found), found
'''

_PEOPLE = ("Ann", "Bob", "Cid", "Dan", "Eve", "Flo", "Gus", "Hal")
_CITIES = ("Rome", "Oslo", "Lima", "Bern")


def _lines(people: tuple[str, ...]) -> str:
    rows = [
        {
            "facts": [[person, "home", city], [person, "hobby", hobby]],
            "references": [f"{person} lives in {city} and likes {hobby}.", f"{person} from {city} likes {hobby}."],
        }
        for person in people
        for city, hobby in zip(_CITIES, ("chess", "rowing", "music", "cooking"), strict=True)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _pyproject(kind: Kind) -> str:
    modules = 'py-modules = ["$name"]'
    if kind == "task":
        modules = 'packages = ["$name"]\npackage-data = { $name = ["*.jsonl"] }'
    what = {"method": "The fine-tuning method", "task": "The task", "metric": "The metric"}[kind]
    return _PYPROJECT.format(what=what, group=f"tuneoff.{kind}s", modules=modules)


def files_of(kind: Kind) -> dict[str, str]:
    """Path within the project to content."""
    code: dict[str, str] = {
        "method": {"$name.py": _METHOD, "test_$name.py": _METHOD_TEST},
        "metric": {"$name.py": _METRIC, "test_$name.py": _METRIC_TEST},
        "task": {
            "$name/__init__.py": _TASK,
            "$name/train.jsonl": _lines(_PEOPLE[:6]),
            "$name/dev.jsonl": _lines(_PEOPLE[6:7]),
            "$name/test.jsonl": _lines(_PEOPLE[7:]),
            "test_$name.py": _TASK_TEST,
        },
    }[kind]
    return {"pyproject.toml": _pyproject(kind), **code}
