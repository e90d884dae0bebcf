"""Reports are a pure function of records, exact to the character, and need neither torch nor ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakes import completed, record, trial

from bench import report
from bench.record import Failed, TrialResult
from bench.store import Store

COLUMNS = [
    *("trial_id", "method", "model", "task", "seed", "status", "reason", "bleu", "chrf", "ter", "rouge_l"),
    *("trained_parameters", "stored_parameters", "total_parameters", "trained_fraction", "peak_memory_bytes"),
    *("train_tokens_per_second", "decode_tokens_per_second", "train_seconds", "total_seconds"),
]

GOLDEN = Path(__file__).parent / "golden"


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


def test_markdown_is_exact() -> None:
    found = report.markdown("demo", results(), "tuneoff run demo.yaml")
    assert found == (GOLDEN / "report.md").read_text(encoding="utf-8")


def test_csv_has_a_row_for_each_trial_and_the_promised_columns() -> None:
    text = report.csv_text(results())
    lines = text.splitlines()
    assert lines[0].split(",")[: len(COLUMNS)] == COLUMNS
    assert len(lines) == 1 + 6 + 1, "six trials, one of which has a message of two lines"
    assert text == (GOLDEN / "results.csv").read_text(encoding="utf-8")


def test_absent_is_missing_and_never_zero() -> None:
    table = report.frame(results()).set_index("trial_id")
    failed = table[table["status"] == "failed"].iloc[0]
    assert failed["reason"] == "out_of_memory"
    assert failed[["bleu", "trained_parameters", "peak_memory_bytes"]].isna().all()
    untouched = table[table["method"] == "none"].iloc[0]
    assert untouched[["peak_memory_bytes", "train_tokens_per_second"]].isna().all()
    assert untouched["trained_parameters"] == 0


def test_a_failed_sweep_and_an_empty_one_still_render() -> None:
    assert "1 trials, 1 failed" in report.markdown("x", [results()[3]])
    assert "0 trials, 0 failed" in report.markdown("x", [])


def test_what_would_invalidate_a_comparison_is_said() -> None:
    mixed = [record(trial("full"), completed()), record(trial("none"), completed(), device="Other")]
    text = report.markdown("x", mixed)
    assert "Rows were made with different devices." in text
    assert "One seed: differences between methods may be chance." in text


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
    assert (store.root / "report" / "report.md").is_file()


@pytest.mark.parametrize("old", sorted((Path(__file__).parent / "records").glob("*.json")), ids=lambda path: path.name)
def test_old_records_load(old: Path) -> None:
    result = TrialResult.model_validate_json(old.read_text())
    assert report.row(result)["trial_id"] == result.trial_id
