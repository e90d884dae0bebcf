"""Reports are a pure function of records, exact to the character, and need neither torch nor ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from command import Done
from fakes import completed, probed, record, trial, varied

from bench import report
from bench.driver.status import STATUS_FILE, SweepStatus
from bench.report.content import Content
from bench.report.data import json_text, write_parquet
from bench.report.figures import pictures
from bench.report.latex import latex
from bench.report.page import html
from bench.schema.record import Failed, Scores, TrialResult
from bench.statistics.estimates import estimate
from bench.store.records import Store

COLUMNS = [
    *("trial_id", "method", "model", "task", "seed", "status", "reason", "bleu", "chrf", "ter", "rouge_l"),
    *("trained_parameters", "stored_parameters", "total_parameters", "trained_fraction", "peak_memory_bytes"),
    *("train_tokens_per_second", "decode_tokens_per_second", "train_seconds", "total_seconds"),
]

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def results() -> list[TrialResult]:
    failure = Failed(
        reason="out_of_memory", phase="train", rank=1, message="RuntimeError: no\nmemory | left", traceback="..."
    )
    return [
        record(trial("none"), completed(5.0, trained=0, train=False)),
        record(trial("none", seed=1), completed(5.0, trained=0, train=False)),
        record(trial("full"), completed(60.0, trained=10_000, peak=900)),
        record(trial("full", seed=1), failure),
        record(trial("prefix_tuning", label="num_prompt_tokens=5"), completed(50.0, trained=100)),
        record(trial("prefix_tuning", seed=1, label="num_prompt_tokens=5"), completed(52.0, trained=100)),
    ]


def content(*found: TrialResult) -> Content:
    return Content("demo", found, "tuneoff run demo.yaml")


def assert_golden(name: str, text: str, update: bool) -> None:
    """Compare with a file to the character; ``pytest --update-golden`` writes it instead, for a human to review.

    But for the hashes in trials' ids: they change with every setting that an identity gains (test_stage_trials.py). And
    of numbers with many digits six count: how the last ones round is up to the machine and to scipy.
    """
    path = GOLDEN / name
    text = re.sub(r"(-s\d)-[0-9a-f]{10}\b", r"\1-0123456789", text)
    if update:
        path.write_text(text, encoding="utf-8")
    assert six_digits(text) == six_digits(path.read_text(encoding="utf-8"))


def six_digits(text: str) -> str:
    return re.sub(r"\d+\.\d{7,}(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", text)


@pytest.mark.parametrize(
    ("name", "render"),
    [("report.md", report.markdown), ("report.tex", latex), ("report.json", json_text)],
)
def test_text_formats_are_exact(name: str, render: Callable[[Content], str], update_golden: bool) -> None:
    assert_golden(name, render(content(*results())), update_golden)


def test_csv_has_a_row_for_each_trial_and_the_promised_columns(update_golden: bool) -> None:
    text = report.csv_text(results())
    lines = text.splitlines()
    assert lines[0].split(",")[: len(COLUMNS)] == COLUMNS
    assert len(lines) == 1 + 6 + 1, "six trials, one of which has a message of two lines"
    assert_golden("results.csv", text, update_golden)


def test_parquet_holds_the_rows_of_the_csv_with_their_types(tmp_path: Path) -> None:
    write_parquet(report.frame(results()), tmp_path / "results.parquet")
    table = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(table, report.frame(results()))
    assert table.to_csv(index=False, lineterminator="\n") == report.csv_text(results())
    assert table.dtypes[["seed", "trained_parameters", "git_dirty", "bleu"]].map(str).tolist() == [
        *("Int64", "Int64", "boolean", "float64")
    ]


def test_columns_come_from_the_records() -> None:
    scores = Scores(values={"nist": 8.5, "bleu": 50.0}, signatures={}, higher_is_better={"nist": True, "bleu": True})
    other = record(trial("none"), completed().model_copy(update={"scores": scores}))
    names = report.row_columns([other, *results()])
    assert names[7:12] == ("nist", "bleu", "chrf", "ter", "rouge_l")
    assert "| method | NIST | BLEU | test loss |" in report.markdown(content(other))
    assert "| none | 8.50 | 50.0 | 1.600 |" in report.markdown(content(other))


def test_latex_survives_hostile_names() -> None:
    hostile = [varied(trial("100%_{x}&$y^2~#"), config={"start": name}) for name in (r"a\b", "c")]
    text = latex(content(*(record(spec, completed()) for spec in hostile)))
    assert r"100\%\_\{x\}\&\$y\textasciicircum{}2\textasciitilde{}\# (start=" in text
    assert r"a\textbackslash{}\textbackslash{}b" in text


def test_intervals_are_those_of_student() -> None:
    interval = estimate([1.0, 2.0, 3.0])
    assert interval is not None
    assert (interval.mean, interval.standard_deviation) == (2.0, 1.0)
    assert interval.half_width == pytest.approx(4.302652729911275 / 3**0.5)  # t for 97.5 % and two degrees of freedom
    alone = estimate([1.0])
    assert alone is not None
    assert alone.half_width is None and alone.low == alone.high == 1.0
    assert estimate([]) is None


def test_absent_is_missing_and_never_zero() -> None:
    table = report.frame(results()).set_index("trial_id")
    failed = table[table["status"] == "failed"].iloc[0]
    assert failed["reason"] == "out_of_memory"
    assert failed[["bleu", "trained_parameters", "peak_memory_bytes"]].isna().all()
    untouched = table[table["method"] == "none"].iloc[0]
    assert untouched[["peak_memory_bytes", "train_tokens_per_second"]].isna().all()
    assert untouched["trained_parameters"] == 0


def test_a_failed_sweep_and_an_empty_one_still_render() -> None:
    for some, counts in (([results()[3]], "1 trials, 1 failed"), ([], "0 trials, 0 failed")):
        assert counts in report.markdown(content(*some))
        assert json.loads(json_text(content(*some)))["failed"] == len(some)
        assert latex(content(*some)).startswith("% demo")
        assert report.csv_text(some).startswith("trial_id,method")


def test_an_unfinished_sweep_says_how_much_is_missing() -> None:
    unfinished = replace(content(*results()), missing=7)
    sentence = "The sweep is not finished: 7 of the trials known so far have no record yet."
    assert f"- {sentence}" in report.markdown(unfinished)
    document = json.loads(json_text(unfinished))
    assert document["missing"] == 7 and document["caveats"][0] == sentence


def test_a_report_rendered_again_names_the_command_that_ran_the_sweep(
    tuneoff: Callable[..., Done], tmp_path: Path
) -> None:
    store = Store(tmp_path / "demo")
    with store.locked():
        for result in results():
            store.commit(result, [])
        assert store.command() is None
        store.log("run", command="tuneoff run first.yaml")
        store.log("run", command="tuneoff run demo.yaml --set train.steps=10")
    now = SweepStatus(sweep="demo", total=9, completed=5, failed=1, started_at=0.0, updated_at=1.0)
    (store.root / STATUS_FILE).write_text(now.model_dump_json())
    done = tuneoff("report", str(store.root))
    assert done.returncode == 0, done.stderr
    text = (store.root / "report" / "report.md").read_text()
    assert "## Again\n\n```\ntuneoff run demo.yaml --set train.steps=10\n```" in text
    assert "3 of the trials known so far have no record yet" in text


def test_failed_trials_show_the_end_of_their_log() -> None:
    failure = Failed(
        reason="worker_lost", phase="train", rank=0, message="gone", log_tail="\n".join(map(str, range(40)))
    )
    text = report.markdown(content(record(trial("full"), failure)))
    assert "**worker_lost** in train on rank 0: gone\n\n      34\n      35" in text
    assert "\n      33\n" not in text


def test_a_search_alone_is_said_to_be_one() -> None:
    tuned = trial().model_copy(update={"stage": "tune"})
    text = report.markdown(content(record(tuned, probed())))
    assert "0 trials, 0 failed. 1 more chose settings or measured costs. Model: smollm2-135m. Task: facts." in text


def test_failures_are_those_of_the_trials_that_are_counted() -> None:
    lost = Failed(reason="error", phase="train", rank=0, message="gone")
    costs = [trial().model_copy(update={"stage": "cost", "repetition": number}) for number in range(3)]
    made = content(record(trial(), completed()), *(record(spec, lost) for spec in costs))
    assert made.summary.startswith(
        "1 trials, 0 failed. 3 more chose settings or measured costs; 3 of those that measured costs failed. Model:"
    )
    document = json.loads(json_text(made))
    assert (document["trials"], document["failed"], document["failed_measuring_costs"]) == (1, 0, 3)
    assert len(document["failures"]) == 3


def test_a_run_ends_with_the_end_of_its_last_trial() -> None:
    first, second = record(trial(), completed()), record(trial(seed=1), completed())
    first = first.model_copy(update={"total_seconds": 3600.0})
    run = dict(content(first, second).provenance)["Run"]
    assert run == "2026-01-02T03:04:05+00:00 to 2026-01-02T04:04:05+00:00"


def test_formulas_of_spreadsheets_are_defused() -> None:
    failure = Failed(reason="error", phase=None, rank=None, message="=HYPERLINK(evil)")
    assert "'=HYPERLINK(evil)" in report.csv_text([record(trial(), failure)])


def test_records_are_read_back_and_rendered_without_torch_or_ray(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    store.root.mkdir()
    for result in results():
        store.commit(result, [])
    code = (
        "import sys; from pathlib import Path; from bench import report;"
        f"report.write(Path({str(store.root)!r}));"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers'} & sys.modules.keys(); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(report.load(store.root)) == 6
    written = {path.name for path in (store.root / "report").iterdir()}
    tables = {"report.md", "report.json", "report.tex", "results.csv", "results.parquet"}
    assert written == {*tables, "report.html", "figures"}


@pytest.mark.parametrize(
    "old", sorted((Path(__file__).parents[1] / "data" / "records").glob("*.json")), ids=lambda path: path.name
)
def test_old_records_load_and_render(old: Path) -> None:
    result = TrialResult.model_validate_json(old.read_text())
    assert report.row(result)["trial_id"] == result.trial_id
    assert result.outcome.status in report.csv_text([result])
    report_content = content(result)
    assert "1 trials" in report.markdown(report_content)
    assert json.loads(json_text(report_content))["trials"] == 1
    assert "tabular" in latex(report_content) or result.outcome.status == "failed"
    assert result.trial_id in html(report_content, pictures(report_content), None)
