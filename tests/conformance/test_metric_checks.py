"""The contract of metrics: built-in ones keep it, and each mistake is found by the check that names it."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Done

from bench.commands.metrics import _sample
from bench.conformance.check_verdict import CheckVerdict
from bench.conformance.metric_checks import CHECKS, verdicts
from bench.conformance.project_template import write_project
from bench.metrics import METRICS, Metric
from bench.metrics.known import BUILT_IN

SLOW = {"ter", "chrf", "cider", "rouge_l", "nist"}
WITHOUT_WEIGHTS = {"meteor", "bertscore", "bleurt", "mauve"}


class Recall(Metric):
    """The share of the reference's words in a prediction. It is correct, and every test changes it."""

    name = "recall"
    higher_is_better = True
    best = 100.0

    def signature(self, texts: Any) -> str:
        return "words|v1"

    def statistics(self, texts: Any) -> Any:
        pairs = zip(texts.predictions, texts.references, strict=True)
        word_sets = [(set(said.split()), set(some[0].split())) for said, some in pairs]
        return np.array([(len(said & some), len(some)) for said, some in word_sets], dtype=np.float64)

    def score(self, sums: Any) -> Any:
        return 100.0 * sums[..., 0] / np.maximum(1.0, sums[..., 1])


def found(metric_class: type[Metric], processes: bool = False) -> dict[str, CheckVerdict]:
    return {verdict.check: verdict for verdict in verdicts(metric_class, processes=processes)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name in SLOW else name
        for name in METRICS
        if name not in WITHOUT_WEIGHTS
    ],
)
def test_built_in_metrics_keep_the_contract(name: str) -> None:
    assert [one for one in found(BUILT_IN[name]).values() if one.outcome == "fail"] == []


def test_a_sound_metric_passes_everything_in_other_processes_too() -> None:
    assert {one.outcome for one in found(Recall, processes=True).values()} == {"pass"}
    assert len(found(Recall, processes=True)) == len(CHECKS)


def mean_of_means(self: Any, texts: Any) -> Any:
    rows = Recall.statistics(self, texts)
    return rows / rows[:, 1].sum()


def measured_otherwise(self: Any, texts: Any) -> Any:
    measured = Metric.measure(self, texts)
    of_sources = np.array(measured.per_example)
    return type(measured)(
        measured.signature, lambda sources: float(of_sources[list(sources)].mean()), tuple(of_sources)
    )


def in_order(self: Any, texts: Any) -> Any:
    return Recall.statistics(self, texts) * np.arange(1, len(texts) + 1)[:, None]


def drawn(self: Any, texts: Any) -> Any:
    return Recall.statistics(self, texts) * [np.random.random(), 1.0]


def seeding(self: Any, texts: Any) -> Any:
    np.random.seed(0)
    return Recall.statistics(self, texts)


def environment(self: Any, texts: Any) -> Any:
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "maybe"
    return Recall.statistics(self, texts)


def in_place(self: Any, sums: Any) -> Any:
    sums[..., 0] *= 100.0
    return sums[..., 0] / np.maximum(1.0, sums[..., 1])


def changes_texts(self: Any, texts: Any) -> Any:
    object.__setattr__(texts, "predictions", tuple(text.lower() for text in texts.predictions))
    return Recall.statistics(self, texts)


def of_the_first(self: Any, sums: Any) -> Any:
    return 100.0 * sums[0] / np.maximum(1.0, sums[1])


def divided(self: Any, sums: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100.0 * sums[..., 0] / (sums[..., 1] * (sums[..., 0] > 0))


@pytest.mark.parametrize(
    ("changed", "check", "reason"),
    [
        ({"signature": lambda self, texts: ""}, "has a signature", "must be one line that says what makes up"),
        (
            {"signature": lambda self, texts: f"v{len(texts.predictions[0])}"},
            "has a signature",
            "changes with the predictions",
        ),
        ({"statistics": lambda self, texts: [1.0, 2.0]}, "statistics are a table", r"\(2,\) for 16 sources"),
        (
            {"statistics": mean_of_means},
            "statistics are of one source",
            "depend on the other sources or on their order",
        ),
        ({"statistics": in_order}, "statistics are of one source", "set of_all_sources = True"),
        (
            {"statistics": in_order, "of_all_sources": True},
            "score is one of sums",
            "depends on the order of the sources",
        ),
        ({"measure": measured_otherwise}, "score is one of sums", "is not what score makes of summed statistics"),
        ({"score": of_the_first}, "score is one of sums", r"write sums\[\.\.\., 0\] for the first statistic"),
        ({"score": divided}, "scores are finite", "the score of one source is nan"),
        ({"best": 1.0}, "references score best", "do not score best: 100 instead of 1"),
        ({"higher_is_better": False}, "damage is told", "is the direction wrong"),
        ({"higher_is_better": False, "best": None}, "damage is told", "is the direction wrong"),
        ({"statistics": seeding}, "nothing is left behind", r"changes the random numbers of numpy \(np.random\)"),
        ({"statistics": environment}, "nothing is left behind", r"changes the environment \(os.environ\)"),
        ({"score": in_place}, "input stays", "score changes the sums"),
        ({"statistics": changes_texts}, "input stays", "changes the texts, which other metrics read"),
        ({"statistics": drawn}, "same again", "another score the second time"),
        ({"absent": lambda self, texts: False}, "can be had", "absent gives False"),
        ({"absent": lambda self, texts: "no weights"}, "can be had", "nothing was checked"),
        ({"name": "My Recall"}, "class is whole", "small letters"),
        ({"higher_is_better": 1}, "class is whole", "must be True, False or None"),
        (
            {"statistics": Metric.statistics, "__abstractmethods__": frozenset({"statistics"})},
            "class is whole",
            "lacks st",
        ),
    ],
)
def test_each_mistake_is_named(changed: dict[str, Any], check: str, reason: str) -> None:
    verdict = found(type("Changed", (Recall,), changed))[check]
    assert verdict.outcome == "fail"
    assert re.search(reason, verdict.reason), verdict.reason


HASHED = '''
from test_metric_checks import Recall


class Hashed(Recall):
    """Depends on the order of a set."""

    name = "hashed"

    def statistics(self, texts):
        rows = super().statistics(texts)
        return rows * [[len(next(iter({*said.split(), "a"}))), 1.0] for said in texts.predictions]
'''


def test_what_depends_on_the_hash_seed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hashed_metric.py").write_text(HASHED)
    monkeypatch.syspath_prepend(tmp_path)
    made = importlib.import_module("hashed_metric").Hashed
    assert "depend on the hash seed" in found(made, processes=True)["same in other processes"].reason


@pytest.mark.parametrize("kind", ["metric", "task"])
def test_a_new_project_keeps_the_contract_as_it_is_written(
    kind: str, tmp_path: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"quite_new_{kind}"
    done = tuneoff(f"new-{kind}", name, "--into", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "work" / name
    assert f"tuneoff check-{kind} {name} --plugins-dir {folder}" in done.stdout
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][f"tuneoff.{kind}s"] == {name: f"{name}:QuiteNew{kind.capitalize()}"}
    checked = tuneoff(f"check-{kind}", name, "--plugins-dir", str(folder), "--json")
    assert checked.returncode == 0, checked.stdout
    assert {verdict["outcome"] for verdict in json.loads(checked.stdout)} == {"pass"}
    monkeypatch.syspath_prepend(folder)
    its_own_test: Any = importlib.import_module(f"test_{name}")
    for name in [name for name in vars(its_own_test) if name.startswith("test_")]:
        getattr(its_own_test, name)()
    again = tuneoff(f"new-{kind}", name, "--into", str(tmp_path / "work"))
    assert again.returncode == 2
    assert f"new-{kind}: " in again.stderr


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def signature", "def sign", "the class lacks signature"),
        ('name = "sayings"', 'name = "proverbs"', "is offered as 'sayings' and calls itself 'proverbs'"),
    ],
)
def test_a_class_that_is_not_whole_fails(
    old: str, new: str, reason: str, tmp_path: Path, tuneoff: Callable[..., Done]
) -> None:
    write_project("sayings", tmp_path, "metric")
    module = tmp_path / "sayings" / "sayings.py"
    module.write_text(module.read_text().replace(old, new))
    done = tuneoff("check-metric", "sayings", "--plugins-dir", str(module.parent), "--json")
    assert done.returncode == 1, done.stderr
    (verdict,) = json.loads(done.stdout)
    assert (verdict["check"], verdict["outcome"]) == ("class is whole", "fail")
    assert reason in verdict["reason"]


def test_a_metric_is_tried_on_the_data_of_a_task(tiny_task: Path, tuneoff: Callable[..., Done]) -> None:
    arguments = ("check-metric", "exact_match", "--task", "jsonl", "--set", f"path={tiny_task}", "--json")
    done = tuneoff(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "did you mean 'exact_match'" in tuneoff("check-metric", "exact_macht").stderr
    assert "--set has no effect without --task" in tuneoff("check-metric", "bleu", "--set", "path=x").stderr


def test_references_of_a_task_are_the_labels_that_places_name(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("source,references\na,0\nb,1\n")
    sample = _sample("csv", [f"path={tmp_path}", "choices={labels: [no, yes], reference: place}"], None)
    assert [example.references for example in sample.examples] == [("no",), ("yes",)]
