"""Names of rows are unique and contain only settings that differ; all rows are tested against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import completed, failed, record, trial, varied
from predicted import rows, write_trial
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.report import Content, csv_text, frame, load_content, names
from bench.report.caveats import caveats
from bench.report.configurations import configurations
from bench.report.terminal import results_table
from bench.schema.labels import labels
from bench.schema.trial import TrialSpec
from bench.store.records import Store

LORA = trial("lora")
LONG = "a text that is too long for a label, and ends in "


def said(*specs: TrialSpec) -> list[str]:
    return [label.text for label in labels(specs)]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([varied(LORA, config={"rank": 8})], [""]),
        ([LORA, trial("full")], ["", ""]),
        ([LORA, trial("lora", seed=1)], ["", ""]),
        ([varied(LORA, model={"quantization": "nf4"})], ["on nf4"]),
        ([LORA, varied(LORA, model={"quantization": "int8"})], ["", "on int8"]),
        ([varied(LORA, model={"checkpoint_quantization": "gptq"})], ["on gptq"]),
        (
            [varied(LORA, model={"quantization": "nf4", "double_quantization": n}) for n in (False, True)],
            ["on nf4", "on nf4, double_quantization=true"],
        ),
        (
            [varied(LORA, model={"quantization": n}, config={"rank": rank}) for n, rank in (("nf4", 4), (None, 8))],
            ["on nf4, rank=4", "rank=8"],
        ),
        (
            [varied(LORA, config={"rank": 64}), varied(LORA, config={"rank": 4}, resources={"precision": "bf16"})],
            ["rank=64, precision=fp32", "rank=4, precision=bf16"],
        ),
        ([varied(LORA, train={"steps": n}) for n in (10, 20)], ["steps=10", "steps=20"]),
        (
            [varied(LORA, train={"steps": steps, "epochs": epochs}) for steps, epochs in ((10, None), (None, 1.0))],
            ["steps=10", "epochs=1.0"],
        ),
        ([varied(LORA, train={"micro_batch_size": n}) for n in (None, 2)], ["", "micro_batch_size=2"]),
        ([varied(LORA, decode={"beams": n}) for n in (1, 5)], ["beams=1", "beams=5"]),
        (
            [varied(LORA, config={"adapter": {"rank": n}, "prefix": {"rank": 1}}) for n in (4, 8)],
            ["adapter.rank=4", "adapter.rank=8"],
        ),
        ([varied(LORA, config={"init": {"kind": {"scale": n}}}) for n in (1, 2)], ["scale=1", "scale=2"]),
        ([varied(LORA, train={"batch_size": n}) for n in (4, 8)], ["train.batch_size=4", "train.batch_size=8"]),
        ([varied(LORA, model={"weights_sha256": n * 64}) for n in "ab"], ["model=aaaaaaaa", "model=bbbbbbbb"]),
        (
            [varied(LORA, task={"data_sha256": n * 64, "config": {"path": f"data/{n}.csv"}}) for n in "ab"],
            ["data=data/a.csv", "data=data/b.csv"],
        ),
        ([varied(LORA, config={"text": n}) for n in ("1", 1)], ['text="1"', "text=1"]),
        (
            [varied(LORA, config={"text": LONG + n}) for n in "ab"],
            ['text="a text that …nd ends in a"', 'text="a text that …nd ends in b"'],
        ),
        (
            [varied(LORA, config={"text": LONG + n + LONG}) for n in "ab"],
            [f'text="{LONG}{n}{LONG}"' for n in "ab"],
        ),
        ([varied(LORA, config={"places": n}) for n in (["q"], ["q", "v"])], ['places=["q"]', 'places=["q", "v"]']),
    ],
)
def test_labels_name_what_differs_and_nothing_else(specs: list[TrialSpec], expected: list[str]) -> None:
    assert said(*specs) == expected


def test_labels_are_unique_whatever_differs() -> None:
    """Also where one record knows a setting that another, older one does not."""
    found = said(varied(LORA, config={"x": None}), varied(LORA, config={}), varied(LORA, config={"x": 1}))
    assert len(set(found)) == 3
    grid = [
        varied(LORA, train={"learning_rate": rate, "warmup_steps": warmup}, config={"rank": rank, "alpha": 2 * rank})
        for rate in (1e-3, 1e-4)
        for warmup in (0, 5)
        for rank in (4, 8)
    ]
    found = said(*grid)
    assert len(set(found)) == 8
    assert found[0] == "rank=4, warmup_steps=0, learning_rate=0.001", "alpha follows from the rank"


def test_what_labels_leave_out_is_a_caveat() -> None:
    """Rows that differ in more than a label can hold do not look as if they differed in less."""
    other = {"steps": 20, "learning_rate": 1e-4, "warmup_steps": 2, "label_smoothing": 0.1}
    caveat_lines = caveats([record(LORA, completed()), record(varied(LORA, train=other), completed())])
    (caveat,) = [line for line in caveat_lines if "called by" in line]
    assert caveat == "Rows of lora differ in more than they are called by: train.learning_rate."


def test_what_trains_nothing_is_one_row_whatever_the_training() -> None:
    untouched = completed(5.0, trained=0, train=False)
    base = trial("none")
    found = [record(base, untouched), record(varied(trial("none", seed=1), train={"steps": 99}), untouched)]
    (configuration,) = configurations(found)
    assert (configuration.name, configuration.seeds) == ("none", "2")
    (configuration,) = configurations([*found, record(varied(base, train={"steps": 5}), untouched)])
    assert configuration.seeds == "2", "the same seed counts once"


def test_a_model_that_has_moved_stays_in_its_table() -> None:
    first = varied(trial("lora"), model={"path": "/home/a/llama", "weights_sha256": "1" * 64})
    moved = varied(trial("lora", seed=1), model={"path": "/data/llama/", "weights_sha256": "1" * 64})
    other = varied(trial("full"), model={"path": "/data/llama/", "weights_sha256": "1" * 64})
    times = ("2026-01-03", "2026-01-01", "2026-01-02")
    made = [
        record(spec, completed()).model_copy(update={"started_at": time})
        for spec, time in zip((other, first, moved), times, strict=True)
    ]
    (comparison,) = Content("demo", tuple(made)).comparisons
    assert comparison.model == "/home/a/llama", "where it lay first"
    assert {row.name: row.seeds for row in comparison.configurations} == {"full": "1", "lora": "2"}
    assert set(names(made).values()) == {"full", "lora"}
    elsewhere = record(varied(first, model={"path": "/home/b/llama", "weights_sha256": "2" * 64}), completed())
    assert len(Content("demo", (*made, elsewhere)).comparisons) == 2


def test_every_format_tells_rows_apart() -> None:
    one, other = varied(LORA, config={"rank": 64}), varied(LORA, config={"rank": 4}, resources={"precision": "bf16"})
    found = [record(one, completed(60.0)), record(other, completed(50.0))]
    content = Content("demo", tuple(found))
    called = ["lora (rank=64, precision=fp32)", "lora (rank=4, precision=bf16)"]
    assert [configuration.name for configuration in content.comparisons[0].configurations] == called
    assert list(names(found).values()) == called
    assert list(frame(found)["label"]) == ["rank=64, precision=fp32", "rank=4, precision=bf16"]
    assert "precision=bf16" in csv_text(found)
    assert [str(text) for text in results_table(found).columns[0].cells] == called


def test_a_trial_on_the_terminal_says_of_which_model_it_is() -> None:
    found = [record(varied(LORA, model={"path": path}), completed(score)) for path, score in (("a", 60.0), ("b", 50.0))]
    assert [str(text) for text in results_table(found).columns[0].cells] == ["a: lora", "b: lora"]
    tasks = [record(varied(LORA, task={"name": name}), completed(score)) for name, score in (("x", 60.0), ("y", 50.0))]
    assert list(names(tasks).values()) == ["x: lora", "y: lora"]


def write_rows(root: Path, *specs: tuple[TrialSpec, float], sources: int = 24) -> Path:
    store = Store(root)
    for spec, quality in specs:
        for seed in range(3):
            write_trial(store, spec.model_copy(update={"seed": seed}), rows(quality, f"{quality} {seed}", sources))
    return root


def test_rows_that_a_confound_sets_apart_are_tested(tmp_path: Path) -> None:
    root = write_rows(
        tmp_path / "demo",
        (varied(LORA, config={"rank": 64}), 0.9),
        (varied(LORA, config={"rank": 4}, resources={"precision": "bf16"}), 0.3),
    )
    content = load_content(root)
    (significance_of_pairs,) = content.significances
    assert significance_of_pairs is not None and not isinstance(significance_of_pairs, str)
    assert significance_of_pairs.leaders == ("lora (rank=64, precision=fp32)",)
    assert "Rows were made with different precisions." in content.caveats


def test_rows_of_other_sources_are_named_and_not_tested(tmp_path: Path) -> None:
    root = write_rows(tmp_path / "demo", (varied(LORA, task={"config": {"test_examples": 24}}), 0.9))
    write_rows(root, (varied(LORA, task={"config": {"test_examples": 20}}), 0.3), sources=20)
    (report_content,) = load_content(root).significances
    assert isinstance(report_content, str)
    assert "lora (test_examples=20) (seed 0) was not tested on the sources and references of" in report_content


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "200"})


def test_two_sweeps_that_differ_throughout(tmp_path: Path) -> None:
    """Each configuration stands against the one that differs least, whatever sets the sweeps apart, and says so."""
    ranks = [varied(LORA, config={"rank": rank}) for rank in (4, 8)]
    first = write_rows(tmp_path / "a" / "demo", (ranks[0], 0.9), (ranks[1], 0.5))
    halves = [varied(spec, resources={"precision": "bf16"}) for spec in ranks]
    second = write_rows(tmp_path / "b" / "demo", (halves[0], 0.3), (halves[1], 0.5), (trial("full"), 0.5))
    done = compare(first, second)
    assert "b/demo: full has no counterpart." in done.stdout
    document = json.loads(compare(first, second, "--json").stdout)
    assert [(one["first"], one["second"], one["verdict"]) for one in document] == [
        ("a/demo: lora (rank=4, precision=fp32)", "b/demo: lora (rank=4, precision=bf16)", "worse"),
        ("a/demo: lora (rank=8, precision=fp32)", "b/demo: lora (rank=8, precision=bf16)", "not told apart"),
    ]
    assert 'They differ in resources.precision ("fp32", "bf16").' in document[0]["remarks"]


def test_what_has_several_counterparts_is_left_over(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "one", (varied(LORA, config={"rank": 4}), 0.9))
    others = [(varied(LORA, config={"rank": rank}), 0.5) for rank in (8, 16)]
    second = write_rows(tmp_path / "two", *others)
    done = compare(first, second)
    assert done.exception is not None
    assert "no configuration in common (one: lora (rank=4), two: lora (rank=16), two: lora (rank=8))" in str(
        done.exception
    )


def test_failed_and_cancelled_trials_enter_no_mean() -> None:
    """A trial that ended early is neither quick nor slow."""
    slow = record(LORA, completed()).model_copy(update={"total_seconds": 40.0})
    lost = [
        record(trial("lora", seed=seed), failed(reason)).model_copy(update={"total_seconds": 0.2})
        for seed, reason in enumerate(("cancelled", "out_of_memory", "timed_out"), start=1)
    ]
    (configuration,) = configurations([slow, *lost])
    interval = configuration.estimate("total_seconds")
    assert interval is not None and (interval.mean, interval.standard_deviation) == (40.0, None)
    table = frame([slow, *lost])
    assert table.groupby("method")["total_seconds"].mean()["lora"] == 40.0
    assert list(table["failed_after_seconds"].dropna()) == [0.2] * 3
