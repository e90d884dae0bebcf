"""The command compare: what it prints, what its exit code says, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import trial, varied
from predicted import rows, write_sweep, write_trial
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.report.column import Column
from bench.report.columns import metric_columns
from bench.report.comparison import Line
from bench.schema.trial import LoadedSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.task import Scoring

PUBLISHED = """
schema_version: 1
key: Someone et al. 2020
citation: "Someone et al. 2020, Something"
url: https://example.org
read_in: the paper
tables:
  - table: "Table 1"
    task: facts
    metrics: {{bleu: 1}}
    spread: "over 3 seeds"
    note: "scored otherwise"
    rows:
      - {{model: {model}, method: full, label: FT, values: [{score}], spread: [0.3]}}
      - {{model: {model}, method: full, label: FT, tag: unseen, values: [{score}]}}
      - {{model: {model}, method: adapters, label: Adapter, values: [99.0]}}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=True, env={"COLUMNS": "200"})


def document(*arguments: object) -> list[dict[str, object]]:
    document: list[dict[str, object]] = json.loads(call(*arguments, "--json").stdout)
    return document


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_sweep(folder / "old", {"full": 0.9, "lora": 0.6, "none": 0.2})
    write_sweep(folder / "new", {"full": 0.9, "lora": 0.85, "bitfit": 0.7})
    write_sweep(folder / "short", {"full": 0.9, "lora": 0.3}, seeds=2)
    return folder


def test_two_methods_of_a_sweep(sweeps: Path) -> None:
    worse = call(f"{sweeps}/old:full", f"{sweeps}/old:lora")
    assert worse.exit_code == 1, worse.output
    assert "In BLEU: worse." in worse.stdout
    better = call(f"{sweeps}/old:lora", f"{sweeps}/old:full")
    assert better.exit_code == 0
    assert "In BLEU: better." in better.stdout
    (found,) = document(f"{sweeps}/old:full", f"{sweeps}/old:lora")
    scores = {line["column"]: line for line in found["scores"]}  # type: ignore[attr-defined]
    form = {"exact_match", "length_ratio", "empty_rate", "repetition_rate"}
    assert set(scores) == {"bleu", "chrf", "ter", "rouge_l"} | form
    assert scores["bleu"]["difference"] == pytest.approx(scores["bleu"]["second"] - scores["bleu"]["first"])
    assert scores["bleu"]["low"] < scores["bleu"]["difference"] < scores["bleu"]["high"] < 0
    assert scores["ter"]["verdict"] == "worse"
    assert scores["ter"]["difference"] > 0, "a lower TER is better"
    assert {line["tag"] for line in found["tags"]} == {"seen", "unseen"}  # type: ignore[attr-defined]
    costs = {line["column"]: line for line in found["costs"]}  # type: ignore[attr-defined]
    assert costs["trained_parameters"]["difference"] == 1.0
    assert costs["peak_memory_bytes"]["basis"] == "seeds"


def test_the_base_model_against_a_method(sweeps: Path) -> None:
    (found,) = document(f"{sweeps}/old:none", f"{sweeps}/old:lora")
    assert found["verdict"] == "better"
    assert found["scores"][0]["seeds"] == 5  # type: ignore[index]
    assert {line["column"] for line in found["costs"]} == {"decode_tokens_per_second"}, "the base trains nothing"  # type: ignore[attr-defined]


def test_two_sweeps_by_equal_configurations(sweeps: Path) -> None:
    done = call(sweeps / "old", sweeps / "new")
    assert done.exit_code == 0, done.output
    found = document(sweeps / "old", sweeps / "new")
    assert [(one["first"], one["second"], one["verdict"]) for one in found] == [
        ("old: full", "new: full", "not told apart"),
        ("old: lora", "new: lora", "better"),
    ]
    assert call(sweeps / "new", sweeps / "old").exit_code == 1


def test_too_few_seeds_have_an_exit_code_of_their_own(sweeps: Path) -> None:
    done = call(f"{sweeps}/short:full", f"{sweeps}/short:lora")
    assert done.exit_code == 3
    assert "In BLEU: too few seeds: at least 3 pairs of seeds are needed to conclude anything." in done.stdout


def test_against_published_numbers(sweeps: Path, tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED.format(model="someone/smollm2-135m", score=99.0))
    done = call(path, sweeps / "old")
    assert done.exit_code == 1, done.output
    assert "Someone et al. 2020, Table 1: FT (someone/smollm2-135m)" in done.stdout
    (found,) = document(path, sweeps / "old")
    assert found["scores"][0]["basis"] == "seeds"  # type: ignore[index]
    assert found["scores"][0]["note"] == "published with ± 0.3, which the interval leaves out"  # type: ignore[index]
    assert [line["tag"] for line in found["tags"]] == ["unseen"]  # type: ignore[attr-defined]
    assert found["remarks"] == ["scored otherwise"]
    assert document(sweeps / "old", path) == [found], "published numbers are the reference wherever they stand"
    path.write_text(PUBLISHED.format(model="openai-community/gpt2-medium", score=1.0))
    done = call(path, sweeps / "old")
    assert done.exit_code == 0
    assert "published on openai-community/gpt2-medium, ours is on another model: no reproduction" in done.stdout


def test_another_score_may_decide(sweeps: Path) -> None:
    done = call(f"{sweeps}/old:full", f"{sweeps}/old:lora", "--metric", "ter")
    assert done.exit_code == 1
    assert "In TER: worse." in done.stdout


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("old:ful", "old:lora", r"no configuration is called 'ful'; name one of 'full', 'lora', 'none'"),
        ("old", "elsewhere", r"no folder 'trials'; give results/<sweep>"),
        ("old:full --metric blue", "old:lora", "no such score in these records; known: bleu, chrf, ter, rouge_l"),
        ("old:none", "published.yaml", "have no configuration in common"),
        ("published.yaml", "published.yaml", "both are files of published numbers"),
    ],
)
def test_bad_input_is_one_clear_error(first: str, second: str, message: str, sweeps: Path) -> None:
    (sweeps / "published.yaml").write_text(PUBLISHED.format(model="someone/smollm2-135m", score=50.0))
    first, *options = first.split()
    done = call(sweeps / first, sweeps / second, *options)
    assert isinstance(done.exception, ConfigError), done.output
    with pytest.raises(ConfigError, match=message):
        raise done.exception


def test_the_name_of_a_row_comes_before_that_of_its_method(tmp_path: Path) -> None:
    root = tmp_path / "a"
    trained = write_sweep(root, {"full": 0.9, "lora": 0.6}, seeds=3)["lora"][0].spec
    loaded = LoadedSpec(path="/elsewhere", form="tuneoff", sha256="0" * 64, name="elsewhere")
    evaluated = trained.model_copy(update={"loaded": loaded, "label": "evaluated=elsewhere"})
    write_trial(Store(root), evaluated, rows(0.9, "evaluated"))
    (found,) = document(f"{root}:full", f"{root}:lora")
    assert (found["second"], found["verdict"]) == ("a: lora", "worse"), "that of three seeds"
    (found,) = document(f"{root}:full", f"{root}:lora (evaluated=elsewhere)")
    assert found["second"] == "a: lora (evaluated=elsewhere)"


def test_rows_of_several_models_are_named_as_tables_name_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    for path, quality in (("gpt2", 0.5), ("opt", 0.9)):
        for seed in range(3):
            spec = varied(trial("lora", seed=seed), model={"path": path})
            write_trial(store, spec, rows(quality, f"{path} {seed}"))
    (found,) = document(f"{store.root}:gpt2: lora", f"{store.root}:opt: lora")
    assert found["verdict"] == "better"
    assert found["first"] != found["second"]
    refused = call(f"{store.root}:lora", f"{store.root}:opt: lora")
    assert "several configurations are called 'lora'; name one of 'gpt2: lora', 'opt: lora'" in str(refused.exception)


def test_names_of_rows_and_folders_may_have_colons(tmp_path: Path) -> None:
    store = Store(tmp_path / "a:b")
    for optimizer in ("adamw", "torch.optim:NAdam"):
        for seed in range(3):
            spec = varied(trial("lora", seed=seed), train={"optimizer": optimizer})
            write_trial(store, spec, rows(0.5, f"{optimizer} {seed}"))
    of_plugin = f"{store.root}:lora (optimizer=torch.optim:NAdam)"
    (found,) = document(f"{store.root}:lora (optimizer=adamw)", of_plugin)
    assert found["second"] == "a:b: lora (optimizer=torch.optim:NAdam)"


def test_a_verdict_is_about_the_score_that_was_asked_for(tmp_path: Path, sweeps: Path) -> None:
    store = Store(tmp_path / "a")
    for method, scoring in (("full", Scoring(metrics=("bleu", "nist"))), ("lora", Scoring(metrics=("bleu",)))):
        for seed in range(3):
            write_trial(store, trial(method, seed=seed), rows(0.5, f"{method} {seed}"), scoring=scoring)
    full, lora = f"{store.root}:full", f"{store.root}:lora"
    for pair in ((full, lora), (lora, full)):
        refused = call(*pair, "--metric", "nist")
        assert isinstance(refused.exception, ConfigError), refused.output
        assert str(refused.exception) == "--metric nist: a: lora has no such score"
    assert document(full, lora, "--metric", "bleu")

    single = Store(tmp_path / "single")
    for method in ("full", "lora"):
        for seed in range(3):
            write_trial(single, trial(method, seed=seed), rows(0.5, f"{method} {seed}", sources=1))
    for options, asked in (((), ""), (("--metric", "ter"), "--metric ter: ")):
        refused = call(f"{single.root}:full", f"{single.root}:lora", *options)
        assert isinstance(refused.exception, ConfigError), refused.output
        one_source = "single: full and single: lora were tested on one source, which says nothing of others"
        assert str(refused.exception) == asked + one_source

    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED.format(model="someone/smollm2-135m", score=99.0))
    refused = call(path, f"{sweeps}/old:full", "--metric", "ter")
    assert isinstance(refused.exception, ConfigError), refused.output
    assert str(refused.exception) == (
        "--metric ter: Someone et al. 2020 prints no such score beside old: full; it prints bleu"
    )


def test_sweeps_on_other_sources_cannot_be_compared(sweeps: Path, tmp_path: Path) -> None:
    write_sweep(tmp_path / "other", {"full": 0.9}, seeds=1)
    (result,) = Store(tmp_path / "other").read_all()
    (tmp_path / "bare").mkdir()
    Store(tmp_path / "bare").commit(result, [])
    done = call(f"{sweeps}/old:full", f"{tmp_path}/bare:full")
    assert isinstance(done.exception, ConfigError)
    assert "bare: full: no completed trial with predictions" in str(done.exception)


def test_what_no_seed_changes_is_paired_with_every_seed_in_every_score(tmp_path: Path) -> None:
    """NIST is no function of sums over sources, so that it is compared over seeds alone."""
    scoring = Scoring(metrics=("bleu", "nist"))
    store = Store(tmp_path / "a")
    for seed in range(4):
        write_trial(store, trial("lora", seed=seed), rows(0.7, f"lora {seed}"), scoring=scoring)
        if seed < 3:
            write_trial(store, trial("none", seed=seed), rows(0.3, "untouched"), trains=False, scoring=scoring)
    recorded = [one.number(result) for result in store.read_all() for one in metric_columns([result])[1:2]]
    (found,) = document(f"{store.root}:none", f"{store.root}:lora")
    nist = next(line for line in found["scores"] if line["column"] == "nist")  # type: ignore[attr-defined]
    assert (nist["seeds"], nist["basis"], nist["verdict"]) == (4, "seeds", "better")
    assert nist["first"] == pytest.approx(min(recorded))
    other = Store(tmp_path / "b")
    for seed in range(3):
        write_trial(other, trial("none", seed=seed), rows(0.9, "other"), trains=False, scoring=scoring)
    (alone,) = document(f"{store.root}:none", f"{other.root}:none")
    of_none = next(line for line in alone["scores"] if line["column"] == "nist")  # type: ignore[attr-defined]
    assert (of_none["seeds"], of_none["verdict"]) == (1, "too few seeds"), "three equal texts are no three seeds"


def test_two_answers_that_no_seed_changes_are_judged_over_sources(tmp_path: Path) -> None:
    for name, quality in (("old", 0.3), ("new", 0.9)):
        write_sweep(tmp_path / name, {"none": quality})
    done = call(tmp_path / "old", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "In BLEU: better." in done.stdout
    assert call(tmp_path / "new", tmp_path / "old").exit_code == 1
    (found,) = document(tmp_path / "old", tmp_path / "new")
    bleu = found["scores"][0]  # type: ignore[index]
    assert (bleu["basis"], bleu["seeds"], bleu["fixed"]) == ("sources", 1, True)
    assert bleu["note"] == "no seed changes either"
    assert bleu["p_value"] < 0.05 and bleu["low"] > 0


def test_failed_seeds_and_methods_are_said(sweeps: Path, tmp_path: Path) -> None:
    root = tmp_path / "new"
    every = tuple(("bitfit", seed) for seed in range(5))
    write_sweep(root, {"full": 0.9, "lora": 0.85, "bitfit": 0.7}, failed=(("lora", 3), ("lora", 4), *every))
    remark = "new: lora: 2 of 5 seeds failed, and are in no number here."
    done = call(sweeps / "old", root)
    assert done.exit_code == 0, done.output
    assert remark in done.stdout
    assert "new: bitfit (every trial failed) has no counterpart." in done.stdout
    assert remark in document(sweeps / "old", root)[1]["remarks"]  # type: ignore[operator]
    done = call(sweeps / "new", root)
    assert done.exit_code == 1, "the reference has what failed"
    assert "bitfit: every trial failed." in done.stdout and "In all scores: failed." in done.stdout
    (lost,) = [one for one in document(sweeps / "new", root) if one["verdict"] == "failed"]
    assert lost["scores"] == [] and str(lost["second"]).endswith("bitfit")
    assert call(root, sweeps / "new").exit_code == 3, "what the reference has failed in is not shown to be worse"
    refused = call(f"{sweeps}/new:lora", f"{root}:bitfit")
    assert str(refused.exception) == f"{root}:bitfit: every trial of 'bitfit' failed"


def test_a_row_is_not_compared_with_itself(sweeps: Path) -> None:
    refused = call(f"{sweeps}/old:full", f"{sweeps}/old:full")
    assert isinstance(refused.exception, ConfigError)
    assert "are both old: full: name two rows, or two sweeps, that differ" in str(refused.exception)


def test_a_score_without_a_direction_differs_and_is_neither_better_nor_worse() -> None:
    line = Line(Column("length_ratio"), None, 1.0, 1.2, 0.2, 0.1, 0.3, 0.001, "seeds", 5)
    assert line.verdict == "different"
    assert replace(line, p_value=0.2).verdict == "not told apart"
    assert replace(line, column=Column("ter", higher_is_better=False)).verdict == "worse"
