"""From records and predictions on disk to groups, pairs and plain words."""

from __future__ import annotations

import gzip
import json
import shutil
import statistics
from pathlib import Path

import pytest
from predicted import write_sweep

from bench import report
from bench.record import Completed
from bench.report.page import html
from bench.statistics.significance import significance
from bench.statistics.systems import StatisticsError
from bench.store import Store

QUALITIES = {"none": 0.2, "full": 0.85, "lora": 0.84, "prompt_tuning": 0.6}


def test_methods_are_grouped_by_what_can_be_told_apart(tmp_path: Path) -> None:
    cells = write_sweep(tmp_path / "demo", QUALITIES)
    found = significance(tmp_path / "demo", cells, "bleu", higher_is_better=True)
    assert found is not None
    assert list(found.means) in (["full", "lora", "prompt_tuning", "none"], ["lora", "full", "prompt_tuning", "none"])
    assert {frozenset(group) for group in found.groups} == {
        frozenset({"full", "lora"}),
        frozenset({"prompt_tuning"}),
        frozenset({"none"}),
    }
    assert found.letters["full"] == found.letters["lora"] == "a"
    assert (found.letters["prompt_tuning"], found.letters["none"]) == ("b", "c")
    assert len(found.differences) == 6
    assert all(one.seeds == 5 for one in found.differences), "the base model stands against every seed"
    assert all(one.difference >= 0 for one in found.differences), "the better one is named first"
    assert found.remarks == ()
    assert found.sources == 24


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter", "rouge_l"])
def test_every_score_can_be_tested(metric: str, tmp_path: Path) -> None:
    cells = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=3)
    found = significance(tmp_path / "demo", cells, metric, higher_is_better=metric != "ter")
    assert found is not None
    assert list(found.means) == ["full", "lora"]
    assert found.differences[0].told_apart
    assert (found.differences[0].difference > 0) == (metric != "ter")


@pytest.mark.parametrize(
    ("seeds", "remark"),
    [
        (1, "One pair of seeds: too few to conclude anything about the methods."),
        (2, "2 pairs of seeds: too few to conclude anything about the methods."),
        (3, "With 3 pairs of seeds, a difference has to be up to"),
    ],
)
def test_too_few_seeds_are_said_plainly(seeds: int, remark: str, tmp_path: Path) -> None:
    cells = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=seeds)
    found = significance(tmp_path / "demo", cells, "bleu", higher_is_better=True)
    assert found is not None
    assert found.remarks[0].startswith(remark)
    assert found.conclusive == (seeds >= 3)
    text = report.markdown(report.load_content(tmp_path / "demo"))
    assert remark in text
    assert ("| method | group |" in text) == (seeds >= 3)


def test_failed_seeds_are_counted_and_left_out_of_pairs(tmp_path: Path) -> None:
    cells = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, failed=(("full", 1), ("lora", 4)))
    found = significance(tmp_path / "demo", cells, "bleu", higher_is_better=True)
    assert found is not None
    assert found.seeds == (0, 2, 3)
    (one,) = found.differences
    assert one.seeds == 3
    assert found.remarks[:3] == (
        "full: 1 of 5 seeds failed.",
        "lora: 1 of 5 seeds failed.",
        "Means and differences are over the seeds that all completed (0, 2, 3).",
    )
    common = {
        name: [
            result.outcome.scores.values["bleu"]
            for result in results
            if isinstance(result.outcome, Completed) and result.spec.seed in (0, 2, 3)
        ]
        for name, results in cells.items()
    }
    assert found.means["full"] == pytest.approx(statistics.fmean(common["full"]))
    assert one.difference == pytest.approx(found.means[one.first] - found.means[one.second])


def edit_predictions(root: Path, trial_id: str, key: str, value: object) -> None:
    path = root / "trials" / trial_id / "predictions.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows[0][key] = value
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def test_other_sources_and_other_scores_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    cells = write_sweep(root, {"full": 0.9, "lora": 0.5}, seeds=3)
    edit_predictions(root, cells["lora"][2].trial_id, "prediction", "something else entirely")
    with pytest.raises(StatisticsError, match=r"lora \(seed 2\): its predictions give bleu \d.*, its record says"):
        significance(root, cells, "bleu", higher_is_better=True)
    edit_predictions(root, cells["lora"][2].trial_id, "references", ["another text"])
    with pytest.raises(StatisticsError, match=r"lora \(seed 2\) was not tested on the sources and references of full"):
        significance(root, cells, "bleu", higher_is_better=True)
    text = report.markdown(report.load_content(root))
    assert "Differences are not tested: lora (seed 2) was not tested on the sources" in text


def test_nothing_is_tested_without_a_pair_or_without_predictions(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    cells = write_sweep(root, {"full": 0.9, "lora": 0.5}, seeds=3)
    assert significance(root, {"full": cells["full"]}, "bleu", higher_is_better=True) is None
    for result in cells["lora"]:
        shutil.rmtree(root / "trials" / result.trial_id)
        Store(root).commit(result, [])
    assert significance(root, cells, "bleu", higher_is_better=True) is None
    assert "Which differences hold" not in report.markdown(report.load_content(root))


def test_reports_show_groups_and_pairs(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, QUALITIES)
    content = report.load_content(root)
    text = report.markdown(content)
    assert "| method | group | seeds | BLEU |" in text
    assert "Configurations of one line cannot be told apart:\n\n- " in text
    assert "| none | < 0.001 |" not in text
    assert text.count("| < 0.001 |") >= 5
    page = html(content, [[]], None)
    assert 'class="group">a</td>' in page
    assert "Which differences hold" in page
    document = json.loads((report.write(root) / "report.json").read_text())
    found = document["comparisons"][0]["significance"]
    assert found["letters"]["none"] == "c"
    assert {"p_value", "p_adjusted", "p_randomisation", "low", "high", "told_apart"} <= found["differences"][0].keys()
