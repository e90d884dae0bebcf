"""What a report says of a search: pure functions of its rows and records, checked against enumeration."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import probed, record, trial

from bench.report import Content, markdown
from bench.report.data import json_text
from bench.report.figures.budget import budget_curves
from bench.report.figures.style import looks
from bench.schema.record import Failed, Outcome, TrialResult
from bench.schema.search_space import Range
from bench.schema.sweep import HalvingSpec, TuneSpec
from bench.schema.trial import TrialSpec
from bench.store.records import StoreError
from bench.tuning.rows import SearchRows, SearchStore, read_searches
from bench.tuning.search import Ask, Cut, Origin, Search
from bench.tuning.summary import expected_best, tunings

RATE = "train.learning_rate"


def test_the_expected_best_is_the_mean_over_all_samples_without_replacement() -> None:
    generator = random.Random(1)
    values = [generator.gauss(0, 1) for _ in range(7)]
    for trials, found in enumerate(expected_best(values, higher_is_better=True), start=1):
        samples = itertools.combinations(values, trials)
        assert found == pytest.approx(statistics.fmean(max(sample) for sample in samples))
    for trials, found in enumerate(expected_best(values, higher_is_better=False), start=1):
        samples = itertools.combinations(values, trials)
        assert found == pytest.approx(statistics.fmean(min(sample) for sample in samples))


def test_the_estimator_is_unbiased() -> None:
    generator = random.Random(2)
    estimates = [expected_best([generator.random() for _ in range(6)], True)[2] for _ in range(4000)]
    # The best of three uniform numbers is 3/4 on average; the standard error of this mean is 0.0017.
    assert statistics.fmean(estimates) == pytest.approx(0.75, abs=0.006)


def tune_trial(rate: float, stop: int | None = None) -> TrialSpec:
    spec = trial()
    train = spec.train.model_copy(update={"learning_rate": rate})
    return spec.model_copy(update={"stage": "tune", "train": train, "stop_after_steps": stop, "seed": 1000})


def rows(
    outcomes: dict[float, Outcome], origins: dict[float, Origin] | None = None
) -> tuple[SearchRows, list[TrialResult]]:
    search = Search(
        key="full-1",
        method="full",
        label="",
        space={RATE: Range(low=1e-4, high=1e-2)},
        tune=TuneSpec(trials=5),
        steps=10,
        rungs=[],
    )
    asks = tuple(
        Ask(
            number=number,
            settings={RATE: rate},
            origin=(origins or {}).get(rate, "sampler"),
            trial_ids=[tune_trial(rate).trial_id],
        )
        for number, rate in enumerate(outcomes)
    )
    return SearchRows(search, asks, ()), [record(tune_trial(rate), outcome) for rate, outcome in outcomes.items()]


DIVERGED = Failed(reason="diverged", phase="train", rank=0, message="nan")
SEARCHED: dict[float, Outcome] = {
    1e-4: probed(3.0, 10.0),
    1e-3: probed(2.0, 12.0),
    1e-2: DIVERGED,
    3e-3: probed(1.5, 8.0),
}


def test_what_was_tried_used_and_chosen() -> None:
    searched, records = rows(SEARCHED, {3e-3: "refinement"})
    (tuning,) = tunings([searched], records)
    assert tuning.chosen_trial is not None
    assert tuning.chosen_trial.settings == {RATE: 3e-3}
    assert tuning.trials_used == 4
    assert tuning.device_seconds_used == pytest.approx(10 + 12 + 20 + 8), "a failed trial counts its wall time"
    assert tuning.failed == 1
    assert tuning.extensions == 0
    assert tuning.learning_rate_curve == ((1e-4, 3.0), (1e-3, 2.0), (3e-3, 1.5), (1e-2, None))
    assert [point.value for point in tuning.expected_best] == pytest.approx([(3 + 2 + 3) / 3, (2 + 3 + 2) / 3, 2.0])
    assert tuning.expected_best[1].device_seconds == pytest.approx(2 * (10 + 12) / 2), (
        "the time until a failure says nothing"
    )
    assert tuning.audit is None


def test_scores_that_are_better_when_higher_keep_their_sign() -> None:
    outcomes: dict[float, Outcome] = {
        1e-4: probed(3.0, dev_bleu=20.0),
        1e-3: probed(2.0, dev_bleu=30.0),
        1e-2: DIVERGED,
    }
    searched, records = rows(outcomes)
    by_bleu = searched.search.model_copy(update={"tune": TuneSpec(trials=5, metric="bleu")})
    (tuning,) = tunings([replace(searched, search=by_bleu)], records)
    assert [one.value for one in tuning.tried] == [20.0, 30.0, None]
    assert tuning.chosen_trial is not None and tuning.chosen_trial.settings == {RATE: 1e-3}


def test_an_unfinished_search_tells_what_it_has() -> None:
    searched, records = rows(SEARCHED)
    (tuning,) = tunings([searched], records[:1])
    assert [one.value for one in tuning.tried] == [3.0]
    (nothing,) = tunings([searched], [])
    assert nothing.chosen_trial is None
    assert nothing.expected_best == ()


def halved(rates: Sequence[float], tune: TuneSpec) -> SearchRows:
    """A search cut once, after 3 of 9 steps: the second trial goes on, and the first is trained on as an audit."""
    search = Search(
        key="full-1", method="full", label="", space={RATE: Range(low=1e-4, high=1e-2)}, steps=9, rungs=[3], tune=tune
    )
    asks = tuple(
        Ask(
            number=number,
            settings={RATE: rate},
            origin="sampler",
            trial_ids=[tune_trial(rate, 3).trial_id, tune_trial(rate).trial_id],
        )
        for number, rate in enumerate(rates)
    )
    return SearchRows(search, asks, (Cut(rung=0, kept=[1], audited=[0]),))


def test_the_audit_of_halving_tells_its_regret() -> None:
    early = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5}
    records = [record(tune_trial(rate, 3), probed(value)) for rate, value in early.items()]
    records += [record(tune_trial(1e-3), probed(1.5)), record(tune_trial(1e-4), probed(1.25))]
    (tuning,) = tunings([halved(list(early), TuneSpec(trials=5, halving=HalvingSpec()))], records)
    assert tuning.audit is not None
    assert (tuning.audit.best_kept, tuning.audit.best_audited, tuning.audit.regret) == (1.5, 1.25, 0.25)
    assert tuning.trials_used == pytest.approx(3 * 3 / 9 + 2)
    assert tuning.chosen_trial is not None
    assert tuning.chosen_trial.settings == {RATE: 1e-4}, (
        "what was audited may be chosen: it was trained within the budget"
    )
    assert tuning.expected_best == ()


def test_the_regret_of_a_score_that_is_better_when_higher_has_its_sign() -> None:
    rates = {1e-4: 35.0, 1e-3: 30.0}
    records = [record(tune_trial(rate), probed(1.0, dev_bleu=bleu)) for rate, bleu in rates.items()]
    (tuning,) = tunings([halved(list(rates), TuneSpec(trials=5, halving=HalvingSpec(), metric="bleu"))], records)
    assert tuning.audit is not None
    assert (tuning.audit.best_kept, tuning.audit.best_audited, tuning.audit.regret) == (30.0, 35.0, 5.0)


def test_asks_and_cuts_are_read_as_they_were_written(tmp_path: Path) -> None:
    search = rows(SEARCHED)[0].search
    store = SearchStore(tmp_path, search)
    assert (store.asks(), store.cut(0)) == ([], None)
    asks = [Ask(number=number, settings={RATE: 1e-3}, origin="border", trial_ids=["a"]) for number in (0, 1, 10)]
    for ask in reversed(asks):
        assert store.add_ask(ask) == ask
    cuts = [Cut(rung=rung, kept=[rung], audited=[]) for rung in (0, 1)]
    for cut in cuts:
        assert store.add_cut(cut) == cut
    again = SearchStore(tmp_path, search)
    assert again.asks() == asks
    assert [again.cut(rung) for rung in (0, 1, 2)] == [*cuts, None]
    (read,) = read_searches(tmp_path)
    assert (read.search, list(read.asks), list(read.cuts)) == (search, asks, cuts)


def test_reports_tell_how_settings_were_chosen() -> None:
    searched, records = rows(SEARCHED, {3e-3: "refinement"})
    content = Content("demo", (), tunings=tuple(tunings([searched], records)))
    text = markdown(content)
    assert (
        "| full | learning_rate 0.0001 to 0.01 (2 decades) | 4 | 4 | 1 | 50 | 0 | learning_rate=0.003 | 1.500 |" in text
    )
    assert "- full: 0.0001 → 3.000, 0.001 → 2.000, 0.003 → 1.500, 0.01 → failed" in text
    assert "| full | 2.667 | 2.333 | 2.000 |" in text
    document = json.loads(json_text(content))["tuning"][0]
    assert document["chosen"] == {"settings": {RATE: 0.003}, "value": 1.5}
    assert [one["value"] for one in document["tried"]] == [3.0, 2.0, None, 1.5]


def test_the_expected_best_is_drawn_against_the_budget() -> None:
    searched, records = rows(SEARCHED)
    searches = tuple(tunings([searched], records))
    picture = budget_curves(searches, looks(["full"]), "budget")
    assert picture is not None
    assert "budget, device-seconds" in picture.svg
    assert picture.png.startswith(b"\x89PNG")
    assert budget_curves((), {}, "budget") is None


def test_a_torn_row_is_named(tmp_path: Path) -> None:
    searched, _ = rows(SEARCHED)
    store = SearchStore(tmp_path, searched.search)
    store.add_ask(searched.asks[0])
    assert [found.asks for found in read_searches(tmp_path)] == [(searched.asks[0],)]
    (tmp_path / "tuning" / "full-1" / "ask-000.json").write_text('{"number": 0')
    with pytest.raises(StoreError, match=r"ask-000.json is not a valid row of a search; move its folder away"):
        read_searches(tmp_path)


def test_ranges_of_unequal_width_are_said() -> None:
    searched, records = rows(SEARCHED)
    narrow = searched.search.model_copy(update={"method": "ia3", "space": {RATE: Range(low=1e-3, high=2e-3)}})
    searches = tunings([searched, SearchRows(narrow, searched.asks, ())], records)
    assert Content("demo", (), tunings=tuple(searches)).caveats == [
        "Searches look at ranges of learning_rate of unequal width in decades (full 2; ia3 0.3): the same budget finds "
        "the best value of a narrower range more closely."
    ]
    same = tunings([searched, SearchRows(searched.search.model_copy(update={"method": "x"}), (), ())], records)
    assert Content("demo", (), tunings=tuple(same)).caveats == []


def test_what_was_asked_twice_was_trained_once() -> None:
    searched, records = rows(SEARCHED)
    again = searched.asks[0].model_copy(update={"number": 4})
    (tuning,) = tunings([SearchRows(searched.search, (*searched.asks, again), ())], records)
    assert (len(tuning.trained_trials), tuning.trials_used, tuning.failed) == (4, 4, 1)
    assert tuning.device_seconds_used == pytest.approx(10 + 12 + 20 + 8)
