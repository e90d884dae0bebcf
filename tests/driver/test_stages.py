"""Sweeps with stages, on records made by a formula: equal budgets, resuming with the same asks, order of stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import completed, probed, record

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.stages import Round, Stages
from bench.metrics.scoring import with_perplexity
from bench.schema.record import Failed, Outcome, TrialResult
from bench.schema.trial import TrialSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.tuning.rows import read_searches
from bench.tuning.search import first_settings
from bench.tuning.summary import tunings

SWEEP = """
name: demo
task: {name: jsonl, path: FOLDER}
train: {steps: 27, batch_size: 4, warmup_steps: 1}
methods:
  - none
  - full
  - {name: prefix_tuning, config: {num_prompt_tokens: 3}}
stages:
  tune: {trials: 6}
  final: {seeds: [0, 1, 2]}
  cost: {steps: 12}
"""

CHECKPOINTS = "resources: {checkpoint_every_steps: 2}"
BEST_RATE = {"full": 1e-4, "prefix_tuning": 2e-1}
Outcomes = Callable[[TrialSpec], Outcome]


def outcome(spec: TrialSpec) -> Outcome:
    """A dev loss that is best at the method's best rate, and failure far above it."""
    if spec.stage == "final":
        return completed(train=spec.method.name != "none")
    if spec.stage == "cost":
        return probed()
    distance = math.log10(spec.train.learning_rate / BEST_RATE[spec.method.name])
    if distance > 1.5:
        return Failed(reason="diverged", phase="train", rank=0, message="the loss is nan")
    unfinished = 0.5 if spec.stop_after_steps else 0.0
    return probed(1.0 + distance**2 + unfinished, seconds=10.0 if spec.method.name == "full" else 20.0)


class Driver:
    """Runs the rounds of a sweep on formulas, and may die before any trial."""

    def __init__(self, folder: Path, task: Path, text: str = SWEEP, settings: tuple[str, ...] = ()) -> None:
        path = folder / "sweep.yaml"
        path.write_text(text.replace("FOLDER", str(task)))
        self.sweep = load_sweep(path, settings)
        self.store = Store(folder / "demo")
        self.store.root.mkdir(exist_ok=True)
        self.started: list[str] = []

    def run(self, outcomes: Outcomes = outcome, dies_before: int | None = None, seconds: float = 20.0) -> list[Round]:
        stages = Stages(self.sweep, RegistryResolver())
        done = []
        for one in stages.rounds(self.store):
            done.append(one)
            for spec in one.trials:
                if self.store.read(spec.trial_id) is not None:
                    continue
                if len(self.started) == dies_before:
                    return done
                self.started.append(spec.trial_id)
                self.store.commit(record(spec, outcomes(spec)).model_copy(update={"total_seconds": seconds}), [])
        self.without_settings = stages.without_settings
        return done

    def records(self, stage: str) -> list[TrialResult]:
        return [result for result in self.store.read_all() if result.spec.stage == stage]

    def asked_rates(self) -> dict[str, list[float]]:
        return {
            rows.search.method: [ask.settings["train.learning_rate"] for ask in rows.asks]
            for rows in read_searches(self.store.root)
        }


@pytest.fixture
def make(tmp_path: Path, tiny_task: Path) -> Iterator[Callable[..., Driver]]:
    def build(text: str = SWEEP, *settings: str, name: str = "one") -> Driver:
        (tmp_path / name).mkdir(exist_ok=True)
        return Driver(tmp_path / name, tiny_task, text, settings)

    yield build


def test_every_method_gets_the_same_budget_and_its_border_is_extended(make: Callable[..., Driver]) -> None:
    driver = make()
    rounds = driver.run()
    assert [one.stage for one in rounds] == ["tune"] * 3 + ["final"] + ["cost"] * 9
    asked_rates = driver.asked_rates()
    assert set(asked_rates) == {"full", "prefix_tuning"}, "what trains nothing is not tuned"
    assert {len(rates) for rates in asked_rates.values()} == {6}
    assert max(asked_rates["prefix_tuning"]) > 1e-1, "the range ended at 0.1 and the best rate is 0.2"
    origins = {rows.search.method: [ask.origin for ask in rows.asks] for rows in read_searches(driver.store.root)}
    assert origins["prefix_tuning"][4] == "border"
    assert "border" not in origins["full"]

    finals = driver.records("final")
    assert sorted((result.spec.method.name, result.spec.seed) for result in finals) == [
        *[("full", seed) for seed in (0, 1, 2)],
        ("none", 0),
        *[("prefix_tuning", seed) for seed in (0, 1, 2)],
    ]
    chosen = {result.spec.method.name: result.spec.train.learning_rate for result in finals}
    for method, rates in asked_rates.items():
        assert chosen[method] == min(rates, key=lambda rate: abs(math.log10(rate / BEST_RATE[method])))
    costs = driver.records("cost")
    assert {result.spec.configuration_class for result in costs} == {
        result.spec.configuration_class for result in finals
    }
    assert all(result.spec.train.steps == 12 for result in costs)
    assert {one.stage: {spec.compares_merged for spec in one.trials} for one in rounds if one.stage != "tune"} == {
        "final": {False},
        "cost": {True},
    }
    measured = [one.trials for one in rounds if one.stage == "cost"]
    assert all(len(trials) == 1 for trials in measured), "nothing runs beside a cost trial"
    in_turns = [(spec.repetition, spec.method.name) for (spec,) in measured]
    assert in_turns == [(turn, name) for turn in range(3) for name in ("none", "full", "prefix_tuning")]
    assert len({spec.trial_id for (spec,) in measured}) == 9


def test_a_final_trial_is_the_plain_trial_with_these_settings(make: Callable[..., Driver]) -> None:
    driver = make()
    driver.run()
    rates = {result.spec.method.name: result.spec.train.learning_rate for result in driver.records("final")}
    plain = SWEEP[: SWEEP.index("stages:")].replace(
        "  - full", f"  - {{name: full, train: {{learning_rate: {rates['full']}}}}}"
    )
    plain = (
        plain.replace("tokens: 3}}", f"tokens: 3}}, train: {{learning_rate: {rates['prefix_tuning']}}}}}")
        + "seeds: [0, 1, 2]\n"
    )
    specs = expand(make(plain, name="plain").sweep, RegistryResolver())
    assert {result.trial_id for result in driver.records("final")} <= {spec.trial_id for spec in specs}


def test_without_the_stage_cost_the_first_seed_compares_merged_decoding(make: Callable[..., Driver]) -> None:
    without_cost = make(SWEEP.replace("  cost: {steps: 12}\n", "").replace("[0, 1, 2]", "[5, 6]"))
    stages = make(SWEEP[: SWEEP.index("stages:")] + "seeds: [5, 6]\n", name="plain")
    plain = Stages(stages.sweep, RegistryResolver()).plain
    for specs in (without_cost.run()[-1].trials, plain):
        trained = [spec for spec in specs if spec.method.name != "none"]
        assert {(spec.seed, spec.compares_merged) for spec in trained} == {(5, True), (6, False)}


@pytest.mark.parametrize(
    "tune",
    [
        "{trials: 6}",
        "{trials: 6, sampler: quasi_random}",
        "{trials: 7, sampler: tpe}",
        "{trials: 12, halving: {factor: 3}}",
        "{device_seconds: 105, sampler: tpe}",
    ],
)
def test_a_sweep_that_is_taken_up_again_asks_exactly_the_same(tune: str, make: Callable[..., Driver]) -> None:
    text = SWEEP.replace("{trials: 6}", tune)
    whole = make(text, name="whole")
    whole.run()
    broken = make(text, name="broken")
    for fifth in range(1, 5):
        broken.run(dies_before=fifth * len(whole.started) // 5)
    broken.run()
    assert broken.asked_rates() == whole.asked_rates()
    assert sorted(broken.started) == sorted(whole.started)
    assert len(set(whole.started)) == len(whole.started)
    before = len(broken.started)
    broken.run()
    assert len(broken.started) == before, "a finished sweep starts nothing"


def test_a_budget_in_device_seconds_buys_more_of_the_cheaper_method(make: Callable[..., Driver]) -> None:
    driver = make(SWEEP.replace("{trials: 6}", "{device_seconds: 105, sampler: quasi_random}"))
    driver.run()
    assert {method: len(rates) for method, rates in driver.asked_rates().items()} == {"full": 10, "prefix_tuning": 5}


def test_a_budget_in_device_seconds_ends_where_no_machine_holds_a_trial(make: Callable[..., Driver]) -> None:
    def infeasible(spec: TrialSpec) -> Outcome:
        if spec.method.name == "none":
            return outcome(spec)
        return Failed(reason="infeasible", phase=None, rank=None, message="needs 64 CPU cores")

    driver = make(SWEEP.replace("{trials: 6}", "{device_seconds: 105, sampler: quasi_random}"))
    driver.run(infeasible, seconds=0.0)
    assert {method: len(rates) for method, rates in driver.asked_rates().items()} == {"full": 1, "prefix_tuning": 1}
    assert driver.without_settings == ["full", "prefix_tuning"]


@pytest.mark.parametrize("sampler", ["quasi_random", "tpe"])
def test_a_trial_that_does_not_fit_what_is_left_is_not_started(sampler: str, make: Callable[..., Driver]) -> None:
    driver = make(SWEEP.replace("{trials: 6}", f"{{device_seconds: 29, sampler: {sampler}}}"))
    driver.run()
    spent = {name: 0.0 for name in ("full", "prefix_tuning")}
    for result in driver.records("tune"):
        spent[result.spec.method.name] += result.device_seconds
    assert spent == {"full": 20.0, "prefix_tuning": 20.0}, "trials of 10 and of 20 seconds"


def test_a_space_of_choices_is_trained_once_through(make: Callable[..., Driver]) -> None:
    text = SWEEP.replace("{trials: 6}", "{trials: 6, sampler: quasi_random}").replace(
        "  - full", "  - {name: full, search: {train.learning_rate: [1.0e-4, 1.0e-3]}}"
    )
    driver = make(text)
    driver.run()
    (of_full,) = (rows for rows in read_searches(driver.store.root) if rows.search.method == "full")
    (tuning,) = tunings([of_full], driver.store.read_all())
    assert len(tuning.trained_trials) == len(of_full.asks) == tuning.trials_used == 2


@pytest.mark.parametrize("sampler", ["grid", "quasi_random", "tpe"])
def test_what_a_setting_cannot_be_is_not_tried(sampler: str, make: Callable[..., Driver]) -> None:
    def undropped(spec: TrialSpec) -> Outcome:
        return probed(1.0 + (spec.train.dropout or 0.0)) if spec.stage == "tune" else completed()

    space = "{train.dropout: {low: 0, high: 0.3, log: false}}"
    text = SWEEP.replace("  - full", f"  - {{name: full, search: {space}}}")
    driver = make(text.replace("{trials: 6}", f"{{trials: 6, sampler: {sampler}}}"))
    driver.run(undropped)
    (of_full,) = (rows for rows in read_searches(driver.store.root) if rows.search.method == "full")
    tried = [ask.settings["train.dropout"] for ask in of_full.asks]
    assert len(tried) == 6 and min(tried) >= 0.0
    if sampler == "grid":
        assert [ask.origin for ask in of_full.asks[4:]] == ["refinement"] * 2


def test_whole_numbers_are_not_searched_between(make: Callable[..., Driver]) -> None:
    def small(spec: TrialSpec) -> Outcome:
        rate = math.log10(spec.train.learning_rate) + 3
        return probed(spec.method.config.get("num_prompt_tokens", 0) + rate**2) if spec.stage == "tune" else completed()

    space = "{train.learning_rate: {low: 1.0e-4, high: 1.0e-2}, config.num_prompt_tokens: {low: 1, high: 8}}"
    text = SWEEP.replace("config: {num_prompt_tokens: 3}", f"search: {space}").replace("  - full\n", "")
    driver = make(text)
    driver.run(small)
    (rows,) = read_searches(driver.store.root)
    asks = rows.asks
    assert {float(ask.settings["config.num_prompt_tokens"]) for ask in asks} == {1.0, 8.0}
    assert len(asks) == 6


def test_halving_cuts_within_each_method_and_audits(make: Callable[..., Driver]) -> None:
    driver = make(SWEEP.replace("{trials: 6}", "{trials: 12, halving: {factor: 3}}"))
    driver.run()
    for rows in read_searches(driver.store.root):
        assert rows.search.rungs == [3, 9], (
            "27 steps, cut after a ninth and a third; three times the warm-up come first"
        )
        first, second = rows.cuts
        assert len(first.kept) == math.ceil(rows.search.first_asks / 3)
        assert first.audited
        assert not set(first.audited) & set(first.kept)
        assert set(second.kept) <= set(first.kept)
        method = rows.search.method
        whole = [r for r in driver.records("tune") if r.spec.method.name == method and r.spec.stop_after_steps is None]
        later = len(rows.asks) - rows.search.first_asks
        assert len(whole) == len(second.kept) + len(first.audited) + len(second.audited) + later
        used = sum((r.spec.stop_after_steps or 27) / 27 for r in driver.records("tune") if r.spec.method.name == method)
        assert 11 < used <= 12


def test_a_method_whose_tuning_all_fails_has_no_final_trial(make: Callable[..., Driver]) -> None:
    def broken(spec: TrialSpec) -> Outcome:
        if spec.method.name == "full":
            return Failed(reason="out_of_memory", phase="train", rank=0, message="no memory")
        return outcome(spec)

    driver = make()
    driver.run(broken)
    assert driver.without_settings == ["full"]
    assert {result.spec.method.name for result in driver.records("final")} == {"none", "prefix_tuning"}


def test_settings_may_be_chosen_by_a_score_of_the_dev_split(make: Callable[..., Driver]) -> None:
    def scored(spec: TrialSpec) -> Outcome:
        if spec.stage != "tune":
            return outcome(spec)
        assert spec.scores_dev
        # By dev loss the smallest rate would win, by BLEU the largest.
        return probed(spec.train.learning_rate, dev_bleu=math.log10(spec.train.learning_rate))

    driver = make(SWEEP.replace("{trials: 6}", "{trials: 3, metric: bleu}"))
    driver.run(scored)
    rates = {result.spec.method.name: result.spec.train.learning_rate for result in driver.records("final")}
    assert rates["full"] == 1e-3
    assert rates["prefix_tuning"] == 1e-1
    other = make(SWEEP.replace("{trials: 6}", "{trials: 3, metric: blue}"), name="other")
    with pytest.raises(ValueError, match="there is no score 'blue'; known: dev_loss, bleu"):
        other.run(scored)


def test_entries_of_one_method_and_choices_of_the_grid_are_tuned_apart(make: Callable[..., Driver]) -> None:
    text = SWEEP.replace("  - full\n", "").replace(
        "  - none\n", "  - {name: prefix_tuning, config: {num_prompt_tokens: 5}}\n"
    )
    driver = make(text + "grid: {task.train_examples: [8, 16]}\n")
    driver.run()
    searches = read_searches(driver.store.root)
    assert sorted(rows.search.label for rows in searches) == ["train_examples=16"] * 2 + ["train_examples=8"] * 2
    assert len({rows.search.key for rows in searches}) == 4
    assert len(driver.records("final")) == 4 * 3


def test_a_larger_budget_goes_on_from_the_trials_of_the_smaller(make: Callable[..., Driver]) -> None:
    text = SWEEP.replace("{trials: 6}", "{trials: 6, sampler: quasi_random}")
    make(text).run()
    more = make(text, "stages.tune.trials=9")
    more.run()
    assert len(more.started) < 2 * 9
    assert not {spec for spec in more.started if "s1000" not in spec and "cost" in spec}, "classes of cost are known"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{trials: 6}", "{}"), "stages.tune: set exactly one of trials and device_seconds"),
        (("{trials: 6}", "{trials: 6, device_seconds: 5}"), "set exactly one of trials and device_seconds"),
        (("{trials: 6}", "{device_seconds: 5}"), "sampler: grid needs a budget in trials"),
        (
            ("stages:\n  tune: {trials: 6}", f"{CHECKPOINTS}\nstages:\n  tune: {{device_seconds: 5, sampler: tpe}}"),
            "checkpoint_every_steps: a budget in stages.tune.device_seconds",
        ),
        (("{trials: 6}", "{trials: 6, sampler: tpe, halving: {}}"), "halving needs a budget in trials and the sampler"),
        (
            ("{trials: 6}", "{trials: 1, halving: {}}"),
            "methods.1: halving takes 1.44 trainings of full length for one choice of settings, and stages.tune.trials",
        ),
        (("{trials: 6}", "{trials: 6, seed: 1}"), "tune.seed: 1 is a final seed too"),
        (("{trials: 6}", "{trials: 6, halving: {first_cut_steps: 20}}"), "the first cut is after 20 of 27 steps"),
        (("cost: {steps: 12}", "costs: {}"), "unknown key .*did you mean 'cost'"),
        (("  - full", "  - {name: full, train: {learning_rate: 1.0}}"), r"methods.1.train.learning_rate has no effect"),
        (("  - full", "  - {name: full, grid: {train.learning_rate: [1]}}"), r"methods.1.grid: with stages.tune"),
        (("  - full", "  - {name: full, search: {learning_rate: [1]}}"), "'learning_rate' is not a key that can be"),
        (("  - full", "  - {name: full, search: {train.learning_rate: {low: 1, high: 0.1}}}"), "low 1 must be below"),
        (("  - full", "  - {name: full, search: {train.stepz: [5]}}"), "train: stepz: unknown key"),
        (
            (
                "  - full",
                "  - {name: full, train: {optimizer: lion, optimizer_options: {betas: [0.9, 0.9]}}, "
                "search: {train.optimizer_options.betas: [[0.8, 0.9]]}}",
            ),
            r"methods.1.train.optimizer_options.betas has no effect: it is searched",
        ),
        (("  - none", "  - {name: none, search: {train.steps: [5]}}"), "none trains nothing"),
        (("warmup_steps: 1", "learning_rate: 1"), "train.learning_rate has no effect: every method searches it"),
        (
            ("stages:", "grid: {train.learning_rate: [1.0e-3, 1.0e-4]}\nstages:"),
            r"grid.train.learning_rate has no effect on full: it is searched; leave it out, or .* methods.1.search",
        ),
        (("stages:", "seeds: [1]\nstages:"), "seeds has no effect beside stages"),
        (("  tune: {trials: 6}\n", ""), None),
        (
            ("  - full", "  - {name: full, search: {train.learning_rate: {low: 1, high: 2}, train.adam_beta2: [0.9]}}"),
            None,
        ),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    change: tuple[str, str], message: str | None, make: Callable[..., Driver]
) -> None:
    old, new = change
    assert old in SWEEP
    text = SWEEP.replace(old, new)
    if message is None:
        Stages(make(text).sweep, RegistryResolver())
        return
    with pytest.raises(ConfigError, match=message):
        Stages(make(text).sweep, RegistryResolver())


def test_search_without_tune_and_a_grid_too_small_are_refused(make: Callable[..., Driver]) -> None:
    text = SWEEP.replace("  tune: {trials: 6}\n", "").replace(
        "  - full", "  - {name: full, search: {train.steps: [5]}}"
    )
    with pytest.raises(ConfigError, match=r"methods.1.search has no effect without stages.tune"):
        make(text)
    space = "{train.learning_rate: {low: 1, high: 2}, train.weight_decay: {low: 0, high: 1, log: false}}"
    text = SWEEP.replace("  - full", f"  - {{name: full, search: {space}}}").replace("trials: 6", "trials: 3")
    with pytest.raises(ConfigError, match=r"methods.1: a grid over .* takes at least 4 first trials; there are 3"):
        Stages(make(text).sweep, RegistryResolver())


def test_a_plan_tells_what_is_known_before_anything_has_run(make: Callable[..., Driver]) -> None:
    stages = Stages(make().sweep, RegistryResolver())
    known: dict[str, int] = {}
    for spec in stages.known_trials():
        known[spec.stage] = known.get(spec.stage, 0) + 1
    assert known == {"tune": 8, "final": 1, "cost": 3}, "the untouched base model has nothing to wait for"
    assert stages.outlook() == [
        "tune: 2 searches with 6 trials each, sampler grid, chosen by dev_loss; 8 trials come first, the others depend "
        "on their results",
        "final: 7 trials on the test split, with the settings chosen",
        "cost: at most 9 trials, one after the other, 3 of each class in turns",
    ]


@pytest.mark.parametrize(
    ("more", "finals", "costs"),
    [
        ("decode: {temperature: 1.0}\n", 9, 9),
        ("decode: {temperature: 1.0, seed: 3}\n", 7, 9),
        ("grid: {train.weight_decay: [0.0, 0.1]}\n", 13, 15),
    ],
)
def test_a_plan_counts_what_trains_nothing_as_often_as_it_runs(
    more: str, finals: int, costs: int, make: Callable[..., Driver]
) -> None:
    driver = make(SWEEP + more)
    outlook = Stages(driver.sweep, RegistryResolver()).outlook()
    assert [line.partition(" trials")[0] for line in outlook[1:]] == [f"final: {finals}", f"cost: at most {costs}"]
    driver.run()
    assert len(driver.records("final")) == finals


def test_a_trial_without_a_perplexity_is_never_chosen(make: Callable[..., Driver]) -> None:
    def scored(spec: TrialSpec) -> Outcome:
        if spec.stage != "tune":
            return outcome(spec)
        done = probed(1.0, dev_bleu=1.0)
        assert done.dev_scores is not None
        loss = 60.0 if spec.train.learning_rate == min(first[spec.method.name]) else spec.train.learning_rate
        return done.model_copy(update={"dev_scores": with_perplexity(done.dev_scores, loss, None)})

    driver = make(SWEEP.replace("{trials: 6}", "{trials: 6, metric: reference_perplexity}"))
    first = {
        contender.final.method.name: [settings["train.learning_rate"] for settings in first_settings(contender.search)]
        for contender in Stages(driver.sweep, RegistryResolver()).contenders
        if contender.search is not None
    }
    driver.run(scored)
    for tuning in tunings(read_searches(driver.store.root), driver.store.read_all()):
        values = {one.settings["train.learning_rate"]: one.value for one in tuning.tried}
        assert values[min(first[tuning.search.method])] is None
        assert tuning.chosen_trial is not None and not tuning.higher_is_better


def test_what_is_to_come_is_what_a_budget_has_left_and_the_later_stages(make: Callable[..., Driver]) -> None:
    driver = make()
    stages, rounds = Stages(driver.sweep, RegistryResolver()), driver.run()

    def counts(past: int, used: float = 0.0) -> list[int]:
        return [len(later.specs) for later in stages.to_come(rounds[:past], lambda: used)]

    assert counts(0) == []
    assert counts(1) == [4, 7, *[1] * 9], "two searches of six trials have asked for eight"
    assert counts(4) == [1] * 9, "the final trials run now"
    assert counts(6) == [1] * 7
    assert not any(later.seconds for later in stages.to_come(rounds[:1], lambda: 0.0))


def test_what_is_to_come_of_searches_that_cut_or_are_paid_in_seconds(make: Callable[..., Driver]) -> None:
    driver = make(SWEEP.replace("{trials: 6}", "{trials: 12, halving: {factor: 3}}"), name="halved")
    stages = Stages(driver.sweep, RegistryResolver())
    known = [spec for spec in stages.known_trials() if spec.stage == "tune"]
    assert {spec.stop_after_steps for spec in known} == {3}, "all begin with the first rung"
    rest, *_ = stages.to_come([Round("tune", tuple(known))], lambda: 0.0)
    assert len(rest.specs) == round(2 * 12 - len(known) * 3 / 27)
    assert [spec.method.name for spec in rest.specs[:3]] == ["full", "prefix_tuning", "full"], "searches take turns"
    assert {spec.stop_after_steps for spec in rest.specs} == {None}
    driver = make(SWEEP.replace("{trials: 6}", "{device_seconds: 105, sampler: tpe}"), name="paid")
    stages = Stages(driver.sweep, RegistryResolver())
    first = Round("tune", tuple(spec for spec in stages.known_trials() if spec.stage == "tune"))
    for used, left in ((0.0, 105.0), (60.0, 75.0), (300.0, 0.0)):
        rest, *_ = stages.to_come([first], lambda used=used: used)  # type: ignore[misc]
        assert (len(rest.specs), rest.seconds) == (1, left)
