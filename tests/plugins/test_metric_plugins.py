"""Metrics of plugins in sweeps, tables and tests, and messages before a sweep starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Done
from predicted import write_sweep
from test_run import Bench

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.stages import Stages
from bench.metrics.checks import check_metrics
from bench.metrics.known import LOADED
from bench.metrics.metric import MetricError
from bench.plugins.offers import kinds_of
from bench.plugins.registry import describe, load_metrics, make_task, metrics_of, resolve
from bench.rank.trial import require_plugins
from bench.report.up_to_date import made_from
from bench.schema.record import Completed
from bench.schema.trial import TrialSpec
from bench.schema.validation import ConfigError
from bench.statistics.significance import significance
from bench.statistics.systems import StatisticsError
from bench.store.records import Store

pytestmark = pytest.mark.usefixtures("imports_forgotten")

WORD_RECALL = '''
import numpy as np

from bench.metrics import Metric


class WordRecall(Metric):
    """Percentage of the words of the first reference that a prediction says, over all words."""

    name = "word_recall"
    higher_is_better = True
    best = 100.0

    def signature(self, texts):
        return "words between spaces|first reference|v1"

    def statistics(self, texts):
        rows = []
        for said, references in zip(texts.predictions, texts.references):
            told = set(references[0].split())
            rows.append((len(told & set(said.split())), len(told)))
        return np.array(rows)

    def score(self, sums):
        return 100.0 * sums[..., 0] / np.maximum(1, sums[..., 1])
'''

SWEEP = r"""
name: tiny
model: {model}
task: {{name: jsonl, path: {task}, metrics: [word_recall], answer: {{pattern: '(?:in|is) ([A-Z]\w+)'}}}}
train: {{steps: 4, batch_size: 4}}
decode: {{max_new_tokens: 8, batch_size: 4}}
resources: {{cpus_per_rank: 1}}
methods:
{methods}
"""


@pytest.fixture(autouse=True)
def loaded_forgotten() -> Iterator[None]:
    yield
    LOADED.clear()


@pytest.fixture
def plugins_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "word_recall.py").write_text(WORD_RECALL)
    return folder


def trial(metrics: str, folder: Path, plugins_dir: Path | None, task: str = "facts") -> TrialSpec:
    sweep = folder / "sweep.yaml"
    sweep.write_text(f"name: x\ntask: {{name: {task}, metrics: [{metrics}]}}\nmethods: [none]\n")
    return expand(load_sweep(sweep), RegistryResolver(plugins_dir))[0]


def test_a_metric_of_thirty_lines_takes_part_in_a_sweep(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    tiny_task: Path,
    plugins_dir: Path,
    tuneoff: Callable[..., Done],
    trials_in_this_process: None,
) -> None:
    assert len(WORD_RECALL.strip().splitlines()) <= 30
    bench = Bench(tmp_path, tiny_models["llama"], tiny_task)
    methods = "  - none\n  - layer_norm"
    done = tuneoff(*bench.arguments(methods, "--launcher", "local", "--plugins-dir", str(plugins_dir), sweep=SWEEP))
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.table()["word_recall"].between(0, 100).all()
    assert bench.table()["accuracy"].between(0, 100).all()
    for one in Store(bench.results).read_all():
        (metric,) = one.spec.task.plugin_metrics
        assert (metric.name, metric.target) == ("word_recall", "word_recall:WordRecall")
        assert isinstance(one.outcome, Completed)
        assert one.outcome.scores.higher_is_better["word_recall"] is True
    document = json.loads((bench.results / "report" / "report.json").read_text())
    assert "word_recall" in json.dumps(document)
    ours = [f"{bench.results}:{method}" for method in ("none", "layer_norm")]
    compared = tuneoff("compare", *ours, "--metric", "word_recall", "--plugins-dir", str(plugins_dir), "--json")
    assert compared.returncode == 3, compared.stderr
    assert json.loads(compared.stdout)[0]["scores"][0]["basis"] == "sources"


def test_differences_in_it_are_tested(plugins_dir: Path, tmp_path: Path) -> None:
    metrics = trial("word_recall", tmp_path, plugins_dir).task.plugin_metrics
    cells = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=3, metrics=metrics)
    significance_of_pairs = significance(tmp_path / "demo", cells, "word_recall", True)
    assert significance_of_pairs is not None
    assert significance_of_pairs.means == pytest.approx(
        {name: sum(one.outcome.scores.values["word_recall"] for one in cell) / 3 for name, cell in cells.items()}
    )
    assert significance_of_pairs.differences[0].told_apart
    LOADED.clear()  # as in the process of another command, which imports nothing that a record names
    with pytest.raises(StatisticsError, match=r"plugin \(word_recall:WordRecall.*give its folder with --plugins-dir"):
        significance(tmp_path / "demo", cells, "word_recall", True)
    load_metrics(plugins_dir)
    assert significance(tmp_path / "demo", cells, "word_recall", True) == significance_of_pairs


def test_a_report_that_was_made_without_it_is_out_of_date(plugins_dir: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    store.root.mkdir()
    LOADED.clear()
    without = made_from(store)
    load_metrics(plugins_dir)
    assert None not in (without, made_from(store))
    assert made_from(store) != without


def test_settings_are_chosen_by_it(plugins_dir: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "name: x\ntask: {name: facts, metrics: [word_recall]}\nmethods: [layer_norm]\ntrain: {steps: 4}\n"
        "stages: {tune: {trials: 2, metric: word_recall}}\n"
    )
    stages = Stages(load_sweep(sweep), RegistryResolver(plugins_dir))
    assert stages.metrics == ("word_recall",)
    assert "word_recall:WordRecall" in stages.targets
    with pytest.raises(ConfigError, match=r"there is no score 'word_recal'.*did you mean 'word_recall'"):
        Stages(load_sweep(sweep, ["stages.tune.metric=word_recal"]), RegistryResolver(plugins_dir))


def test_a_metric_is_part_of_what_a_trial_is(plugins_dir: Path, tmp_path: Path) -> None:
    first = trial("word_recall", tmp_path, plugins_dir)
    assert "plugin_metrics" not in trial("bleu", tmp_path, plugins_dir).identity["task"]
    (metric,) = first.task.plugin_metrics
    assert metric.origin == str(plugins_dir / "word_recall.py")
    moved = first.task.model_copy(update={"plugin_metrics": [metric.model_copy(update={"origin": "elsewhere"})]})
    assert first.model_copy(update={"task": moved}).trial_id == first.trial_id
    changed = first.task.model_copy(update={"plugin_metrics": [metric.model_copy(update={"source_sha256": "0" * 64})]})
    other = first.model_copy(update={"task": changed})
    assert other.trial_id != first.trial_id
    require_plugins(first)
    with pytest.raises(ValueError, match=r"the metric 'word_recall' of .* is another version"):
        require_plugins(other)


def test_a_metric_by_its_class_has_the_name_that_it_gives_itself(plugins_dir: Path, tmp_path: Path) -> None:
    spec = trial("'word_recall:WordRecall'", tmp_path, plugins_dir).task
    assert spec.config["metrics"] == ["word_recall"]
    assert "word_recall" in metrics_of(spec)


def test_a_task_of_a_stranger_brings_its_metric(plugins_dir: Path, tmp_path: Path) -> None:
    (plugins_dir / "short.py").write_text(
        "from bench.task import Scoring\nfrom bench.tasks.facts.task import Facts\n\n\n"
        "class Short(Facts):\n    scoring = Scoring(metrics=('word_recall:WordRecall', 'bleu'))\n"
    )
    spec = trial("", tmp_path, plugins_dir, task="short").task
    task = make_task(spec)
    assert task.scoring.metrics == ("word_recall", "bleu")
    check_metrics(task, task.load("dev")[:5], known=metrics_of(spec))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"word_recall"', '"recall"', "is offered as 'word_recall' and calls itself 'recall'"),
        ('"word_recall"', '"Word Recall"', "its name is 'Word Recall'; it must be a text of small letters"),
        ("higher_is_better = True", "", "its higher_is_better is 'not set'; it must be True, False or None"),
        ("higher_is_better = True", "higher_is_better = 'yes'", "its higher_is_better is 'yes'"),
        ("best = 100.0", "best = 'all'", "its best is 'all'"),
        ("def signature", "def _signature", "its class lacks signature"),
        ("(Metric)", "", "defines no subclass of Metric"),
        ("import numpy as np", "import no_such_library", "No module named 'no_such_library'; repair the plugin"),
        ("import numpy as np", "import numpy as (", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_bad_class_is_told_when_a_sweep_names_it(
    old: str, new: str, message: str, plugins_dir: Path, tmp_path: Path
) -> None:
    (plugins_dir / "word_recall.py").write_text(WORD_RECALL.replace(old, new))
    assert trial("bleu", tmp_path, plugins_dir).task.plugin_metrics == [], "nobody asked for it"
    with pytest.raises(ConfigError, match="task facts: metrics: ") as raised:
        trial("word_recall", tmp_path, plugins_dir)
    assert message in str(raised.value)
    listed = {entry.name: entry.problem or "" for entry in describe("metric", plugins_dir)}
    assert message in listed["word_recall"]
    assert listed["bleu"] == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("np.array(rows)", "np.array(rows).sum(axis=0)", r"statistics gives .* \(2,\) for 5 sources; it must give"),
        ("np.array(rows)", "[1.0] * len(rows)", r"one row for each source, K numbers in each"),
        ("sums[..., 0] / np.maximum(1, sums[..., 1])", "sums[0]", r"write sums\[\.\.\., 0\] for the first statistic"),
        ("np.maximum(1, sums[..., 1])", "(0.0 * sums[..., 1])", "gives nan|gives inf"),
        ("references[0]", "references['first']", "the metric 'word_recall' fails: TypeError"),
        ('"words between', '"" and "words', "has the signature ''"),
        (
            "len(told)))",
            "len(told) // len(said.split())))",
            "predictions are empty, as those of a model may be: Zero",
        ),
    ],
)
def test_a_metric_that_cannot_score_is_told_before_the_first_trial(
    old: str, new: str, message: str, plugins_dir: Path, tmp_path: Path
) -> None:
    (plugins_dir / "word_recall.py").write_text(WORD_RECALL.replace(old, new))
    spec = trial("word_recall", tmp_path, plugins_dir).task
    task = make_task(spec)
    with pytest.raises(MetricError, match=message):
        check_metrics(task, task.load("dev")[:5], known=metrics_of(spec))


def test_an_unknown_metric_draws_close_ones(plugins_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"task facts: metrics: there is no metric 'word_recal'; did you mean 'word_r"
    ):
        trial("word_recal", tmp_path, plugins_dir)
    with pytest.raises(ConfigError, match=r"no metric 'word_recall'.*names of files come from --plugins-dir"):
        trial("word_recall", tmp_path, None)


def test_names_that_clash_are_told(plugins_dir: Path, tmp_path: Path) -> None:
    (plugins_dir / "bleu.py").write_text(WORD_RECALL.replace("word_recall", "bleu"))
    with pytest.raises(ConfigError, match=r"the metric 'bleu' is given by tuneoff .* and by .*bleu.py"):
        trial("bleu", tmp_path, plugins_dir)
    (plugins_dir / "bleu.py").unlink()
    (plugins_dir / "seed.py").write_text(WORD_RECALL.replace("word_recall", "seed"))
    with pytest.raises(ConfigError, match="is called 'seed', as another column of reports is; rename it"):
        trial("seed", tmp_path, plugins_dir)
    (plugins_dir / "twin.py").write_text(WORD_RECALL)
    with pytest.raises(ConfigError, match="both called 'word_recall'; rename one"):
        trial("word_recall, 'twin:WordRecall'", tmp_path, plugins_dir)


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ("from bench.method import Method, MethodError", {"method"}),
        ("from bench.task import Example, Task", {"task"}),
        ("from bench import task", {"task"}),
        ("import bench.metrics", {"metric"}),
        ("from bench.metrics import Metric, Texts\nfrom bench.task import Scoring", {"metric"}),
        ("from bench.task import Task\nfrom bench.metrics import MeanOfSources", {"task", "metric"}),
        ("from bench.metrics.overlap import Bleu", {"metric"}),
        ("from bench.tasks.jsonl import JsonLines", {"task"}),
        ("from methods.lora import LoRA", {"method"}),
        ("from _shared import Base", {"task"}),
        ("from bench.task import Task\n(", {"task"}),
        ("X = 1", {"method"}),
    ],
)
def test_what_a_file_offers_is_told_by_its_imports(content: str, kinds: set[str], tmp_path: Path) -> None:
    (tmp_path / "_shared.py").write_text("from bench.task import Task\n")
    (tmp_path / "some.py").write_text(content + "\n")
    assert kinds_of(tmp_path / "some.py") == kinds
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.inner import X\n")
    (package / "inner.py").write_text(content + "\n")
    assert kinds_of(package) == kinds
    assert "some" not in sys.modules


def test_a_file_is_taken_at_its_name_whatever_it_seems_to_offer(plugins_dir: Path) -> None:
    (plugins_dir / "odd.py").write_text(
        "import importlib\nclass Odd(importlib.import_module('bench.task').Task):\n    pass\n"
    )
    assert "odd" not in {entry.name for entry in describe("task", plugins_dir)}
    assert resolve("task", "odd", plugins_dir) == "odd:Odd"


def test_listings_of_a_folder_have_their_own_kind(plugins_dir: Path, tuneoff: Callable[..., Done]) -> None:
    for verb, there in (("tasks", False), ("methods", False), ("metrics", True)):
        done = tuneoff(verb, "--json", "--plugins-dir", str(plugins_dir))
        assert done.returncode == 0, done.stderr
        assert ("word_recall" in {entry["name"] for entry in json.loads(done.stdout)}) is there


def test_any_system_is_scored_by_it(plugins_dir: Path, tmp_path: Path, tuneoff: Callable[..., Done]) -> None:
    texts = tmp_path / "texts.txt"
    spec = trial("bleu", tmp_path, None).task
    texts.write_text("\n".join("" for _ in make_task(spec).load("test")) + "\n")
    arguments = ("score", "--task", "facts", "--hypotheses", str(texts), "--metric", "word_recall", "--json")
    done = tuneoff(*arguments, "--plugins-dir", str(plugins_dir))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["values"]["word_recall"] == 0.0
    assert "there is no metric 'word_recall'" in tuneoff(*arguments).stderr
