"""Each fact that makes rows incomparable is a caveat of one sentence; a clean sweep has none."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import completed, probed, provenance, record, trial, varied

from bench.report import markdown
from bench.report.caveats import caveats
from bench.report.content import Content
from bench.schema.record import Completed, DevPoint, Failed, Fused, Placement, Probed, TrialResult


def pair(other: TrialResult) -> list[TrialResult]:
    """Two clean trials of different seeds, and another one."""
    return [record(trial("full"), completed()), record(trial("full", seed=1), completed()), other]


def made(**changes: Any) -> TrialResult:
    clean = record(trial("none"), completed())
    return clean.model_copy(update={"provenance": provenance().model_copy(update=changes)})


def outcome(**changes: Any) -> Completed:
    return completed().model_copy(update=changes)


def of(found: Completed) -> TrialResult:
    return record(trial("none"), found)


def test_a_clean_sweep_has_nothing_to_mind() -> None:
    clean = [record(trial(method, seed=seed), completed()) for method in ("full", "none") for seed in (0, 1)]
    assert caveats(clean) == []
    assert caveats([]) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (made(device="Other"), "different devices"),
        (made(code_sha256="cd" * 32), "different sources of Tuneoff"),
        (made(package_versions={"torch": "2.12.0"}), "different package versions"),
        (made(threads_per_rank=1), "different numbers of threads"),
        (made(git_dirty=True), "not committed"),
        (made(load_average_1min=9.0), "1 trial started on a busy machine"),
        (
            of(completed()).model_copy(update={"fused": Fused(trials=["x"], shared_seconds=1.0)}),
            "1 trial trained in one pass with others (resources.fuse): time and memory are those of all of them",
        ),
        (of(outcome(decode=completed().decode.model_copy(update={"sources": 9}))), "numbers of test sources"),
        (of(outcome(data={"truncated_sources": 3})), "3 sources were longer than the limit"),
        (
            of(outcome(data={"references_tried": 100, "references_lost": 7})),
            "7 of 100 references that were tried do not come back from the base model's tokens",
        ),
        (of(outcome(data={"truncated_targets": 2})), "2 references were longer than the limit"),
        (of(outcome(data={"test_sources_in_train": 4})), "4 test sources are in the training data too"),
        (of(outcome(data={"dev_sources_in_train": 5})), "5 dev sources are in the training data too"),
        (of(outcome(data={"repeated_test_sources": 6})), "6 test sources occur more than once"),
        (of(outcome(data={"test_sources_in_dev": 7})), "7 test sources are in the dev data too"),
        (
            of(outcome(data={"left_out": {"train": {"empty references": 3}, "dev": {"rows without a source": 1}}})),
            "Left out of the data: train: 3 empty references; dev: 1 rows without a source.",
        ),
        (
            of(outcome(dev_curve=[DevPoint(step=5, loss=2.0), DevPoint(step=10, loss=1.5)])),
            "In 1 of 3 trials the dev loss was lowest at the last step: none might gain",
        ),
        (record(trial("none", precision="bf16"), completed()), "different precisions"),
        (
            record(trial("none"), Failed(reason="diverged", phase="train", rank=0, message="nan")),
            "No trial completed for none.",
        ),
        (record(trial("none"), completed()), "different numbers of completed seeds (1 with 2, 1 with 1)"),
    ],
)
def test_each_is_found(other: TrialResult, expected: str) -> None:
    assert any(expected in sentence for sentence in caveats(pair(other))), caveats(pair(other))


def test_trials_that_shared_a_machine_are_counted() -> None:
    spec = trial("none")
    shared = Placement(nodes=["a"], gpus=[[]], exclusive="device", co_tenants=["full-s0"])
    alone = shared.model_copy(update={"co_tenants": []})
    others = [record(trial("full"), completed()), record(trial("full", seed=1), completed())]
    assert caveats([*others, record(spec, completed()).model_copy(update={"placement": alone})]) == caveats(
        [*others, record(spec, completed())]
    )
    found = [*others, record(spec, completed()).model_copy(update={"placement": shared})]
    assert "1 trial ran beside other trials on one machine: do not compare their costs." in caveats(found)
    costs = {result.spec.configuration_class: [record(result.spec, probed())] for result in found}
    (sentence,) = [text for text in caveats(found, costs) if "beside" in text]
    assert sentence.endswith("but for memory and rates, which trials of the stage cost measured alone.")


def measured(method: str, rates: list[float], **changes: Any) -> list[TrialResult]:
    """Trials of the stage cost with these training rates."""
    found = []
    for repetition, rate in enumerate(rates):
        outcome = probed()
        assert outcome.train is not None
        outcome = outcome.model_copy(
            update={"train": outcome.train.model_copy(update={"tokens_per_second": rate}), "decode": completed().decode}
        )
        spec = trial(method).model_copy(update={"stage": "cost", "repetition": repetition})
        made = provenance().model_copy(update=changes)
        found.append(record(spec, outcome).model_copy(update={"provenance": made}))
    return found


ROWS = tuple(record(trial(method, seed=seed), completed()) for method in ("full", "lora") for seed in (0, 1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"load_average_1min": 50.0}, "6 trials of the stage cost started on a busy machine"),
        ({"device": "another"}, "Trials of the stage cost were made with other devices than the rows"),
        ({"git_dirty": True}, "Some trials of the stage cost were made with sources that were not committed."),
        ({"threads_per_rank": 9}, "with other numbers of threads than the rows"),
    ],
)
def test_measurements_of_the_stage_cost_get_every_caveat(changes: dict[str, Any], expected: str) -> None:
    both = [measured(method, [100.0, 101.0, 102.0], **changes) for method in ("full", "lora")]
    content = Content("demo", (*ROWS, *both[0], *both[1]))
    assert any(expected in line for line in content.caveats), content.caveats
    clean = [measured(method, [100.0, 101.0, 102.0]) for method in ("full", "lora")]
    assert not [line for line in Content("demo", (*ROWS, *clean[0], *clean[1])).caveats if "stage cost" in line]
    mixed = Content("demo", (*ROWS, *both[0], *clean[1])).caveats
    assert any("stage cost" in line for line in mixed)


def test_a_cost_without_what_an_optimiser_does_once_in_many_steps_is_named() -> None:
    def of_galore(result: TrialResult, steady: int) -> TrialResult:
        assert isinstance(result.outcome, Completed | Probed) and result.outcome.train is not None
        train = result.outcome.train.model_copy(update={"optimizer_period": 200, "steady_steps": steady})
        return result.model_copy(update={"outcome": result.outcome.model_copy(update={"train": train})})

    def lines(costs: int, finals: int = 300) -> list[str]:
        alone = [of_galore(result, costs) for result in measured("full", [100.0, 101.0, 102.0])] if costs else []
        found = (*(of_galore(row, finals) for row in ROWS[:2]), *ROWS[2:], *alone)
        return [line for line in Content("demo", found).caveats if "work that its other steps lack" in line]

    assert lines(15)[0].startswith("Once in 200 steps the optimiser of full does work"), "costs are shown"
    assert not lines(200)
    assert lines(0, finals=90) and not lines(0)


@pytest.mark.parametrize(
    ("full", "lora", "best"),
    [
        ([100.0, 101.0, 102.0], [110.0, 111.0, 112.0], {"lora"}),
        ([100.0, 105.0, 111.0], [110.0, 111.0, 112.0], set()),
        ([100.0], [110.0], set()),
    ],
)
def test_a_cost_within_the_spread_of_another_is_not_the_best(
    full: list[float], lora: list[float], best: set[str]
) -> None:
    content = Content("demo", (*ROWS, *measured("full", full), *measured("lora", lora)))
    (comparison,) = content.comparisons
    (rate,) = (column for column in comparison.columns if column.name == "train_tokens_per_second")
    assert {
        configuration.name for configuration in comparison.configurations if comparison.is_best(configuration, rate)
    } == best
    interval = {configuration.name: configuration.estimate(rate.name) for configuration in comparison.configurations}[
        "full"
    ]
    assert interval is not None
    assert (interval.values, interval.basis) == (tuple(full), "repetitions")
    if len(full) > 1:
        assert f"{rate.text(interval.mean)} ± {rate.text(interval.standard_deviation or 0.0)}" in markdown(content)
        assert "(stage cost; repetitions: 3); there ± is over repetitions" in markdown(content)
    else:
        assert "The cost of full, lora was measured once: how far it varies is not known, and none is best." in (
            content.caveats
        )


def test_one_seed_and_unequal_training_are_said() -> None:
    short = trial("prefix_tuning")
    cost = completed().train
    assert cost is not None
    longer = outcome(train=cost.model_copy(update={"steps": 20}))
    caveat_lines = caveats([record(trial("full"), completed()), record(short, longer)])
    assert "One seed: differences between methods may be chance." in caveat_lines
    assert "Trials saw different numbers of training pairs (80: full; 160: prefix_tuning)." in caveat_lines


def test_what_differs_between_tables_alone_is_no_caveat() -> None:
    found = []
    for task, sources, seeds, steps in (("facts", 40, (0, 1), 10), ("e2e", 630, (0, 1, 2), 20)):
        cost = completed().train
        assert cost is not None
        decode = completed().decode.model_copy(update={"sources": sources})
        scores = completed().scores.model_copy(update={"signatures": {"bleu": task}})
        done = outcome(decode=decode, scores=scores, train=cost.model_copy(update={"steps": steps}))
        for method in ("full", "lora"):
            for seed in seeds:
                spec = varied(trial(method, seed=seed), task={"name": task, "data_sha256": task, "config": {}})
                found.append(record(spec, done))
    assert caveats(found) == []
    *of_e2e, last = found
    assert caveats([*of_e2e, last.model_copy(update={"spec": varied(last.spec, decode={"beams": 4})})]) == [
        "Rows were made with different decoding settings.",
        "smollm2-135m on e2e: Configurations have different numbers of completed seeds (1 with 3, 1 with 2, 1 with 1): "
        "the best of many single seeds is partly luck.",
    ]


def test_one_seed_for_each_is_said_whichever_it_is() -> None:
    found = [record(trial("full"), completed()), record(trial("lora", seed=7), completed())]
    assert "One seed: differences between methods may be chance." in caveats(found)


def test_rows_of_several_models_are_named_with_theirs() -> None:
    rising = outcome(dev_curve=[DevPoint(step=5, loss=2.0), DevPoint(step=10, loss=1.5)])
    remarked = outcome(scores=completed().scores.model_copy(update={"remarks": ["Scores are odd."]}))
    lost = Failed(reason="diverged", phase="train", rank=0, message="nan")
    found = []
    for path, of_lora, of_full, of_ia3 in (("a", rising, remarked, completed()), ("b", completed(), completed(), lost)):
        for method, done in (("lora", of_lora), ("full", of_full), ("ia3", of_ia3)):
            found += [record(varied(trial(method, seed=seed), model={"path": path}), done) for seed in (0, 1)]
    assert caveats(found) == [
        "b on facts: No trial completed for ia3.",
        "a on facts: full: Scores are odd.",
        "a on facts: In 2 of 6 trials the dev loss was lowest at the last step: lora might gain from more steps.",
    ]
    other = {"steps": 20, "learning_rate": 1e-4, "warmup_steps": 2, "label_smoothing": 0.1}
    unsaid = [record(varied(trial("lora"), model={"path": "a"}, train=one), completed()) for one in ({}, other)]
    (caveat,) = [line for line in caveats([*found[6:], *unsaid]) if "called by" in line]
    assert caveat == "a on facts: Rows of lora differ in more than they are called by: train.learning_rate."


def test_costs_measured_alone_are_not_compared_with_those_of_final_trials() -> None:
    content = Content("demo", (*ROWS, *measured("full", [100.0, 101.0, 102.0])))
    (comparison,) = content.comparisons
    (rate,) = (column for column in comparison.columns if column.name == "train_tokens_per_second")
    assert {one.name: one.mean(rate.name) for one in comparison.configurations} == {"full": 101.0, "lora": 1100.0}
    assert not any(comparison.is_best(configuration, rate) for configuration in comparison.configurations)
    assert (
        "lora has no trial of the stage cost: memory and rates there are those of final trials, and cannot be told "
        "apart from those that were measured alone." in content.caveats
    )
