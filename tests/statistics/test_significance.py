"""Groups, pairs and sentences from records and predictions on disk."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import statistics
from pathlib import Path

import pytest
from fakes import completed, record, trial, varied
from predicted import rows, write_sweep, write_trial

from bench import report
from bench.report import significance_table
from bench.report.content import Content, legend
from bench.report.efficiency import efficiencies
from bench.report.page import html
from bench.schema.record import Completed, Failed, TrialResult
from bench.schema.trial import FewShotSpec, TrialSpec
from bench.statistics.estimates import estimate
from bench.statistics.outliers import outlying_seeds
from bench.statistics.significance import Significance, significance
from bench.statistics.systems import PairedSystems, StatisticsError, load_system
from bench.store.records import Store
from bench.task import Scoring, TokenizerName

QUALITIES = {"none": 0.2, "full": 0.85, "lora": 0.84, "prompt_tuning": 0.6}


def test_methods_are_grouped_by_what_can_be_told_apart(tmp_path: Path) -> None:
    configurations = write_sweep(tmp_path / "demo", QUALITIES)
    significance_of_pairs = significance(tmp_path / "demo", configurations, "bleu", higher_is_better=True)
    assert significance_of_pairs is not None
    assert list(significance_of_pairs.means) in (
        ["full", "lora", "prompt_tuning", "none"],
        ["lora", "full", "prompt_tuning", "none"],
    )
    assert {frozenset(group) for group in significance_of_pairs.groups} == {
        frozenset({"full", "lora"}),
        frozenset({"prompt_tuning"}),
        frozenset({"none"}),
    }
    assert significance_of_pairs.letters["full"] == significance_of_pairs.letters["lora"] == "a"
    assert (significance_of_pairs.letters["prompt_tuning"], significance_of_pairs.letters["none"]) == ("b", "c")
    assert len(significance_of_pairs.differences) == 6
    assert all(one.seeds == 5 for one in significance_of_pairs.differences), "the base model stands against every seed"
    assert all(one.difference >= 0 for one in significance_of_pairs.differences), "the better one is named first"
    assert significance_of_pairs.remarks == ()
    assert significance_of_pairs.sources == 24


def test_what_trains_nothing_has_one_answer_for_all_seeds(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    results = [write_trial(store, trial("none", seed=seed), rows(0.3, "untouched"), trains=False) for seed in (0, 1)]
    statistics_of_bleu = PairedSystems((load_system(store.root, "none", results),)).statistics("bleu")
    assert statistics_of_bleu is not None
    answers = statistics_of_bleu[1]["none"]
    assert answers.seeds is None
    assert answers.values.shape[:2] == (1, 24)


@pytest.mark.parametrize("tokenize", ["13a", "char"])
def test_predictions_are_scored_again_by_the_settings_of_their_record(tokenize: TokenizerName, tmp_path: Path) -> None:
    scoring = Scoring(lowercase=True, tokenize=tokenize)
    store = Store(tmp_path / "demo")
    results = [write_trial(store, trial("full"), rows(0.6, "tokenized"), scoring=scoring)]
    statistics_of_bleu = PairedSystems((load_system(store.root, "full", results),)).statistics("bleu")
    assert statistics_of_bleu is not None
    score, of_systems = statistics_of_bleu
    outcome = results[0].outcome
    assert isinstance(outcome, Completed)
    assert float(score(of_systems["full"].values[0].sum(axis=0))) == pytest.approx(outcome.scores.values["bleu"])


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter", "rouge_l"])
def test_every_score_can_be_tested(metric: str, tmp_path: Path) -> None:
    configurations = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=3)
    significance_of_pairs = significance(tmp_path / "demo", configurations, metric, higher_is_better=metric != "ter")
    assert significance_of_pairs is not None
    assert list(significance_of_pairs.means) == ["full", "lora"]
    assert significance_of_pairs.differences[0].told_apart
    assert (significance_of_pairs.differences[0].difference > 0) == (metric != "ter")


@pytest.mark.parametrize(
    ("seeds", "remark"),
    [
        (1, "One pair of seeds: too few to conclude anything about the methods."),
        (2, "2 pairs of seeds: too few to conclude anything about the methods."),
        (3, "With 3 pairs of seeds, a difference has to be up to"),
    ],
)
def test_too_few_seeds_are_said_plainly(seeds: int, remark: str, tmp_path: Path) -> None:
    configurations = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, seeds=seeds)
    significance_of_pairs = significance(tmp_path / "demo", configurations, "bleu", higher_is_better=True)
    assert significance_of_pairs is not None
    assert significance_of_pairs.remarks[0].startswith(remark)
    assert significance_of_pairs.conclusive == (seeds >= 3)
    text = report.markdown(report.load_content(tmp_path / "demo"))
    assert remark in text
    assert ("| method | group |" in text) == (seeds >= 3)


def test_failed_seeds_are_counted_and_left_out_of_pairs(tmp_path: Path) -> None:
    configurations = write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.5}, failed=(("full", 1), ("lora", 4)))
    significance_of_pairs = significance(tmp_path / "demo", configurations, "bleu", higher_is_better=True)
    assert significance_of_pairs is not None
    assert significance_of_pairs.seeds == (0, 2, 3)
    (one,) = significance_of_pairs.differences
    assert one.seeds == 3
    assert significance_of_pairs.remarks[:3] == (
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
        for name, results in configurations.items()
    }
    assert significance_of_pairs.means["full"] == pytest.approx(statistics.fmean(common["full"]))
    assert one.difference == pytest.approx(
        significance_of_pairs.means[one.first] - significance_of_pairs.means[one.second]
    )


def edit_predictions(root: Path, trial_id: str, key: str, value: object) -> None:
    path = root / "trials" / trial_id / "predictions.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows[0][key] = value
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def test_other_sources_and_other_scores_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    configurations = write_sweep(root, {"full": 0.9, "lora": 0.5}, seeds=3)
    edit_predictions(root, configurations["lora"][2].trial_id, "prediction", "something else entirely")
    with pytest.raises(StatisticsError, match=r"lora \(seed 2\): its predictions give bleu \d.*, its record says"):
        significance(root, configurations, "bleu", higher_is_better=True)
    edit_predictions(root, configurations["lora"][2].trial_id, "references", ["another text"])
    with pytest.raises(StatisticsError, match=r"lora \(seed 2\) was not tested on the sources and references of full"):
        significance(root, configurations, "bleu", higher_is_better=True)
    text = report.markdown(report.load_content(root))
    assert "Differences are not tested: lora (seed 2) was not tested on the sources" in text


def test_nothing_is_tested_without_a_pair_or_without_predictions(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    configurations = write_sweep(root, {"full": 0.9, "lora": 0.5}, seeds=3)
    assert significance(root, {"full": configurations["full"]}, "bleu", higher_is_better=True) is None
    for result in configurations["lora"]:
        shutil.rmtree(root / "trials" / result.trial_id)
        Store(root).commit(result, [])
    assert significance(root, configurations, "bleu", higher_is_better=True) is None
    assert "Which differences hold" not in report.markdown(report.load_content(root))


def test_reports_show_groups_and_pairs(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, QUALITIES)
    content = report.load_content(root)
    text = report.markdown(content)
    assert "| method | group | BLEU |" in text
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


def cell_of(name: str, scores: dict[int, float], rank: int | None = None, dev_loss: float = 1.5) -> list[TrialResult]:
    """A configuration with these test scores by seed."""
    found = []
    for seed, score in scores.items():
        spec = trial(name, seed=seed, label="" if rank is None else f"r={rank}")
        method = spec.method.model_copy(update={"config": {"rank": rank}})
        outcome = completed(score).model_copy(update={"dev_loss": dev_loss})
        found.append(record(spec.model_copy(update={"method": method}), outcome))
    return found


def test_the_headline_names_the_group_that_leads(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, QUALITIES)
    content = report.load_content(root)
    (line,) = content.headlines
    significance_of_pairs = significance(
        root, {c.name: c.results for c in content.comparisons[0].configurations}, "bleu", True
    )
    assert significance_of_pairs is not None and set(significance_of_pairs.leaders) == {"full", "lora"}
    first, second = (f"{name} ({significance_of_pairs.means[name]:.1f})" for name in significance_of_pairs.leaders)
    assert line.startswith(f"BLEU: {first} and {second} lead and cannot be told apart. Next: prompt_tuning (")
    assert f"**{line}**" in report.markdown(content)
    assert f'<p class="verdict">{line}</p>' in html(content, [[]], None)
    document = json.loads((report.write(root) / "report.json").read_text())
    assert document["headlines"] == [line]
    (comparison,) = content.comparisons
    bold = [
        configuration.name
        for configuration in comparison.configurations
        if comparison.is_best(configuration, comparison.metrics[0])
    ]
    assert bold == list(significance_of_pairs.leaders), "both are bold, not the one that came out first"
    assert "in BLEU all that cannot be told apart from the best" in report.markdown(content)


def test_one_that_leads_is_named_with_its_lead(tmp_path: Path) -> None:
    write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.4, "none": 0.2})
    (line,) = report.load_content(tmp_path / "demo").headlines
    assert re.fullmatch(
        r"BLEU: full \(\d+\.\d, 95 % interval over seeds and sources \d+\.\d to \d+\.\d, 5 seeds\) leads, by \d+\.\d "
        r"over lora\. Next: lora \(\d+\.\d\), none \(\d+\.\d\)\.",
        line,
    ), line


def test_where_nothing_can_be_told_apart_nobody_leads(tmp_path: Path) -> None:
    write_sweep(tmp_path / "demo", {"full": 0.8, "lora": 0.8})
    content = report.load_content(tmp_path / "demo")
    (line,) = content.headlines
    assert re.fullmatch(r"BLEU: \w+ \(\d+\.\d\) and \w+ \(\d+\.\d\) cannot be told apart\.", line), line
    (comparison,) = content.comparisons
    assert not any(
        comparison.is_best(configuration, comparison.metrics[0]) for configuration in comparison.configurations
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_without_a_test_nobody_leads(seeds: int, tmp_path: Path) -> None:
    write_sweep(tmp_path / "demo", {"full": 0.9, "lora": 0.4}, seeds=seeds)
    (line,) = report.load_content(tmp_path / "demo").headlines
    assert "which does not say that it leads: there are too few seeds to tell. Next: lora" in line
    (alone,) = Content("demo", tuple(cell_of("full", {0: 60.0, 1: 61.0}) + cell_of("lora", {0: 62.0}))).headlines
    assert alone == (
        "BLEU: the best mean is that of lora (62.0), which does not say that it leads: differences are not tested "
        "without predictions. Next: full (60.5)."
    )


def test_tables_and_differences_are_over_the_same_seeds() -> None:
    results = cell_of("full", {0: 60.0, 1: 61.0, 2: 62.0, 3: 63.0}) + cell_of(
        "lora", {0: 60.5, 1: 61.5, 2: 62.5, 3: 20.0}
    )
    failure = Failed(reason="diverged", phase="train", rank=0, message="nan")
    results[7] = record(results[7].spec, failure)
    (comparison,) = Content("demo", tuple(results)).comparisons
    assert {configuration.name: configuration.mean("bleu") for configuration in comparison.configurations} == {
        "lora": 61.5,
        "full": 61.0,
    }
    assert {configuration.name: configuration.seeds for configuration in comparison.configurations} == {
        "lora": "3 of 4",
        "full": "3 of 4",
    }
    assert "Means are over the seeds that all configurations completed (0, 1, 2)." in legend(comparison)
    few = cell_of("full", {0: 60.0, 1: 61.0, 2: 62.0}) + cell_of("lora", {0: 60.5, 1: 61.5})
    (comparison,) = Content("demo", tuple(few)).comparisons
    assert {configuration.name: configuration.mean("bleu") for configuration in comparison.configurations} == {
        "lora": 61.0,
        "full": 61.0,
    }, "too few in common"


def test_a_method_is_tested_by_the_configuration_that_the_dev_split_chose() -> None:
    found = [
        result
        for number in range(13)
        for result in cell_of("lora", {0: 60.0 + number, 1: 60.0 + number}, number, dev_loss=1 + (number != 4))
    ]
    (comparison,) = Content("demo", tuple(found + cell_of("full", {0: 61.0, 1: 61.0}))).comparisons
    assert comparison.configurations[0].name == "lora (rank=12)"
    assert [configuration.name for configuration in significance_table.tested_configurations(comparison)] == [
        "lora (rank=4)",
        "full",
    ]
    assert [row.configuration.name for row in efficiencies(comparison)] == ["lora (rank=4)", "full"]


def test_a_mean_of_a_tested_configuration_has_an_interval_over_seeds_and_sources(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, {"full": 0.9, "lora": 0.5})
    document = json.loads((report.write(root) / "report.json").read_text())
    for configuration in document["comparisons"][0]["configurations"]:
        values = configuration["values"]
        assert values["bleu"]["interval_over"] == "seeds and sources"
        assert values["chrf"]["interval_over"] == "seeds"
        alone = estimate(values["bleu"]["values"])
        assert alone is not None
        assert values["bleu"]["interval_95"][1] >= alone.high - 1e-9
    assert "95 % interval of the mean, over seeds and sources; sorts" in (root / "report" / "report.html").read_text()


def test_a_seed_far_from_the_others_is_said_with_all_single_seeds() -> None:
    usual = cell_of("full", {0: 61.0, 1: 61.4, 2: 60.8})
    results = usual + cell_of("lora", {0: 60.9, 1: 31.2, 2: 61.1}) + cell_of("ia3", {0: 60.1, 1: 60.4, 2: 60.9})
    far_seeds = [line for line in Content("demo", tuple(results)).caveats if "is far from" in line]
    assert far_seeds == [
        "lora: BLEU of seed 1 is far from that of its other seeds: 60.9 (seed 0), 31.2 (seed 1), 61.1 (seed 2). If "
        "trainings go wrong now and then, no test of means is honest: look at the single seeds."
    ]


def test_what_is_far_is_so_for_its_own_method_and_for_all() -> None:
    generator = random.Random(1)
    usual = {f"m{n}": {seed: generator.gauss(60.0, 0.3) for seed in range(5)} for n in range(200)}
    assert len(outlying_seeds(usual)) < 5, "hardly any of a thousand normal seeds"
    wide = {**usual, "wide": {seed: generator.gauss(60.0, 2.0) for seed in range(10)}}
    assert "wide" not in outlying_seeds(wide)
    assert outlying_seeds({"a": {0: 60.0, 1: 60.01, 2: 60.5}}) == {}, "three seeds do not tell how far they spread"
    assert outlying_seeds({"a": {0: 60.0, 1: 60.2, 2: 30.0}}) == {"a": [2]}
    assert outlying_seeds({"a": {0: 60.0, 1: 30.0}}) == {}, "which of the two?"


def test_texts_that_seeds_draw_differ_although_nothing_is_trained(tmp_path: Path) -> None:
    """Then every seed of the base model counts, in the test as in the table; greedy texts are those of one seed."""
    store = Store(tmp_path / "demo")
    for seed in range(3):
        for method, quality in (("none", 0.4), ("lora", 0.7)):
            spec = varied(trial(method, seed=seed), decode={"temperature": 1.0})
            write_trial(store, spec, rows(quality, f"{method} {seed}"), trains=method != "none")
    content = report.load_content(store.root)
    (comparison,), (found,) = content.comparisons, content.significances
    assert not isinstance(found, str) and found is not None
    means = {configuration.name: configuration.mean("bleu") for configuration in comparison.configurations}
    assert found.means == pytest.approx(means)
    assert found.differences[0].difference == pytest.approx(found.means["lora"] - found.means["none"])
    assert found.estimates["none"].basis == "seeds and sources"
    base = next(configuration for configuration in comparison.configurations if configuration.name == "none")
    assert (base.varies_over_seeds, base.trains) == (True, False)


def test_what_no_seed_changes_has_an_interval_over_sources(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    for seed in range(3):
        write_trial(store, trial("none", seed=seed), rows(0.3, "untouched"), trains=False)
        write_trial(store, trial("lora", seed=seed), rows(0.7, f"lora {seed}"))
    (comparison,) = report.load_content(store.root).comparisons
    base = comparison.configurations[-1].estimate("bleu")
    assert base is not None
    assert (base.basis, base.standard_deviation, len(base.values)) == ("sources", 0.0, 3)
    assert base.half_width is not None and base.half_width > 1.0


def test_pairs_with_seeds_of_their_own_are_corrected_by_holm(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_sweep(root, {"full": 0.9, "lora": 0.6, "ia3": 0.5}, failed=(("lora", 0), ("lora", 1), ("ia3", 3), ("ia3", 4)))
    text = report.markdown(report.load_content(root))
    assert "number of pairs (Holm)" in text and "(Shaffer)" not in text


def test_a_row_of_one_seed_takes_no_test_from_the_others(tmp_path: Path) -> None:
    without, beside = tmp_path / "without", tmp_path / "beside"
    for root in (without, beside):
        write_sweep(root, {"full": 0.9, "lora": 0.8, "none": 0.2})
    few_shot = FewShotSpec(examples=["a", "b"], template="{source}:", max_source_tokens=32)
    shots = trial("none").model_copy(update={"few_shot": few_shot, "label": "shots=4"})
    write_trial(Store(beside), shots, rows(0.4, "few shots"), trains=False)
    contents = [report.load_content(root) for root in (without, beside)]
    tested = [found for one in contents for found in one.significances if isinstance(found, Significance)]
    pairs = [{(one.first, one.second): one.p_adjusted for one in found.differences} for found in tested]
    assert pairs[0] == pairs[1], "as if the row were not there"
    content, found = contents[1], tested[1]
    assert found.remarks == ("none (shots=4): 1 seed, not tested: 3 are the least.",)
    assert content.headlines[0].endswith("Not tested, for want of seeds: none (shots=4).")
    assert "lowest dev loss is tested" not in content.headlines[0]


def test_gains_are_over_the_base_as_it_is(tmp_path: Path) -> None:
    """Quantised rows too: what the base loses by it is a cost of theirs."""
    results = []
    for quantization, method, score in (
        *((None, "none", 20.0), (None, "full", 60.0), (None, "lora", 50.0)),
        *(("nf4", "none", 10.0), ("nf4", "lora", 45.0)),
    ):
        spec = varied(trial(method), model={"quantization": quantization})
        results.append(record(spec, completed(score, train=method != "none")))
    rows_of = {
        row.configuration.name: (row.gain, row.full_gain_fraction)
        for row in efficiencies(Content("demo", tuple(results)).comparisons[0])
    }
    assert rows_of == {
        "full": (40.0, 1.0),
        "lora": (30.0, 0.75),
        "lora on nf4": (25.0, 0.625),
        "none": (0.0, 0.0),
        "none on nf4": (-10.0, -0.25),
    }
    of_nf4 = Content("demo", tuple(results[3:])).comparisons[0]
    assert [row.gain for row in efficiencies(of_nf4)] == [35.0, 0.0]


def gains(results: list[TrialResult]) -> dict[str, float | None]:
    """Name to gain of each row of what methods gain."""
    (comparison,) = Content("demo", tuple(results)).comparisons
    return {row.configuration.name: row.gain for row in efficiencies(comparison)}


def of_loss(spec: TrialSpec, bleu: float, dev_loss: float) -> TrialResult:
    done = completed(bleu, train=spec.method.name != "none").model_copy(update={"dev_loss": dev_loss})
    return record(spec, done)


def test_pairs_in_the_prompt_are_no_base_that_gains_are_over() -> None:
    few_shot = FewShotSpec(examples=["a", "b"], template="{source}:", max_source_tokens=32)
    plain = varied(trial("none"), task={"config": {"template": "{source}:", "max_source_tokens": 32}})
    prompted = varied(
        plain.model_copy(update={"few_shot": few_shot, "label": "shots=2"}),
        task={"config": {"template": "a: b\n\n{source}:", "max_source_tokens": 90}},
        decode={"stop": ["\n\n"]},
    )
    lora = plain.model_copy(update={"method": trial("lora").method})
    found = [of_loss(plain, 20.0, 2.5), of_loss(prompted, 35.0, 1.8), of_loss(lora, 55.0, 1.2)]
    assert gains(found) == {"lora": 35.0, "none (shots=2)": 15.0, "none": 0.0}


def test_gains_are_over_the_base_of_the_same_task_and_precision() -> None:
    found = []
    for template, base, lora, loss in (("{source}:", 20.0, 50.0, 1.1), ("Q: {source}", 30.0, 52.0, 1.3)):
        for method, score in (("none", base), ("lora", lora), ("full", lora + 5)):
            spec = varied(trial(method), task={"config": {"template": template}})
            dev_loss = 4.0 - loss if method == "none" else loss  # of none, the other template has the lower loss
            found.append(of_loss(spec, score, dev_loss))
    chosen = gains(found)
    assert sorted(name.partition(" ")[0] for name in chosen) == ["full", "lora", "none"]
    assert [chosen[name] for name in sorted(chosen)] == [35.0, 30.0, 0.0]
    half = record(trial("lora", precision="bf16"), completed(40.0))
    assert gains([record(trial("none"), completed(20.0, train=False)), half]) == {"lora": None, "none": 0.0}
