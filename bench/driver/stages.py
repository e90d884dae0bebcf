"""The stages of a sweep, round by round: tune searches settings, final takes test scores, cost measures time, memory.

A round is a set of trials that may run in any order and side by side. The next round may depend on their results. Each
decision of a search is written down as a row, so that a sweep that was interrupted decides the same again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.config.load import Resolver, combinations, configure, expand
from bench.driver.pace import Later
from bench.metrics.checks import choosable
from bench.metrics.scoring import did_you_mean
from bench.plugins.registry import make_task, metrics_of
from bench.schema.digests import sha256_of_json, slug
from bench.schema.labels import names
from bench.schema.printable import in_brief
from bench.schema.same_answer import distinct
from bench.schema.search_space import SearchSpace
from bench.schema.sweep import HalvingSpec, MethodEntry, StagesSpec, Sweep, TuneSpec
from bench.schema.trial import JsonDict, Stage, TrainSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.tuning.run import SearchRun
from bench.tuning.search import Search, first_settings


@dataclass(frozen=True)
class Round:
    """Trials that may run side by side, including those that have a record already."""

    stage: Stage
    trials: tuple[TrialSpec, ...]


@dataclass(frozen=True)
class Contender:
    """A method entry under one choice of the sweep's grid and of its own grid. Each contender is tuned by itself."""

    entry: MethodEntry
    where: str
    shared: JsonDict
    own: JsonDict
    final: TrialSpec  # the trial of the stage final, with the settings of the sweep file
    trains: bool
    search: Search | None = None  # None: the settings of the sweep file are final


class Stages:
    """The trials of a sweep, as far as they do not depend on results.

    Args:
        sweep: With or without stages.
        resolver: Finds the classes behind the names of methods and tasks.

    Attributes:
        without_settings: Methods whose tuning trials all failed, so that they have no final trial; known after the
            stage tune.

    Raises:
        ConfigError: A key or a combination of keys cannot work. Nothing has been started.
    """

    def __init__(self, sweep: Sweep, resolver: Resolver) -> None:
        self.sweep = sweep
        self.resolver = resolver
        self.without_settings: list[str] = []
        self.plain = expand(sweep, resolver) if sweep.stages is None else []
        self.contenders: list[Contender] = []
        if sweep.stages is not None:
            self.contenders = [self._with_search(contender) for contender in self._contenders()]
            self._check_effect()
            self._check_metric()

    def rounds(self, store: Store) -> Iterator[Round]:
        """All trials, round by round. The trials of a round need their records before the next round is asked for."""
        stages = self.sweep.stages
        if stages is None:
            yield Round("final", tuple(self.plain))
            return
        runs = [self._search_run(contender, store) for contender in self.contenders]
        for trials in _side_by_side([run.rounds() for run in runs if run is not None]):
            yield Round("tune", _unique(trials))
        chosen: list[tuple[Contender, TrialSpec]] = []
        self.without_settings = []
        for contender, name, run in zip(self.contenders, _names(self.contenders), runs, strict=True):
            settings = {} if run is None else run.chosen()
            if settings is None:
                self.without_settings.append(name)
            else:
                chosen.append((contender, self._configured(contender, settings)))
        yield from self._last_rounds(stages, chosen)

    def known_trials(self) -> list[TrialSpec]:
        """The trials that are known before any has run; those that depend on results are left out."""
        if self.sweep.stages is None:
            return self.plain
        first: list[TrialSpec] = []
        for contender in self.contenders:
            if (search := contender.search) is not None:
                steps = search.rungs[0] if search.rungs else None
                first += [
                    self._ask_trial(contender, search.tune, settings, steps) for settings in first_settings(search)
                ]
        later = [trial for one in self._settled_rounds(self.sweep.stages) for trial in one.trials]
        return [*_unique(first), *later]

    def to_come(self, past: Sequence[Round], used_seconds: Callable[[], float]) -> list[Later]:
        """The trials that a sweep will run after these rounds, for an estimate of the time that is left.

        Settings that a search has not chosen yet are taken from the sweep file, and a search is supposed to use up its
        budget.

        Args:
            past: All rounds so far, including the one that runs now.
            used_seconds: Tells the device-seconds that trials of the stage tune have taken.
        """
        stages = self.sweep.stages
        if stages is None or not past:
            return []
        later: list[Later] = []
        stage = past[-1].stage
        searches = [contender for contender in self.contenders if contender.search is not None]
        if stage == "tune" and stages.tune is not None and searches:
            later.append(self._rest_of_searches(stages.tune, searches, past, used_seconds))
        last = list(self._last_rounds(stages, [(contender, contender.final) for contender in self.contenders]))
        measured = sum(one.stage == "cost" for one in past)
        later += [Later(one.trials) for one in last if one.stage == "final" and stage == "tune"]
        later += [Later(one.trials) for one in [one for one in last if one.stage == "cost"][measured:]]
        return later

    def _rest_of_searches(
        self, tune: TuneSpec, searches: Sequence[Contender], past: Sequence[Round], used_seconds: Callable[[], float]
    ) -> Later:
        if tune.device_seconds is not None:
            # Searches run side by side, each one trial at a time.
            return Later((searches[0].final,), max(0.0, tune.device_seconds - used_seconds() / len(searches)))
        tuning_trials = [trial for one in past if one.stage == "tune" for trial in one.trials]
        spent = sum((trial.stop_after_steps or 0) / (trial.train.steps or 1) or 1.0 for trial in tuning_trials)
        rest = max(0, round((tune.trials or 0) * len(searches) - spent))
        whole = [
            self._ask_trial(one, tune, first_settings(one.search)[0], None)
            for one in searches
            if one.search is not None
        ]
        return Later(tuple(whole[number % len(whole)] for number in range(rest)))

    @property
    def targets(self) -> list[str]:
        """The classes of all methods and tasks, and of metrics of plugins."""
        trials = self.plain if self.sweep.stages is None else [contender.final for contender in self.contenders]
        return [part.target for trial in trials for _, part in trial.resolved]

    def outlook(self) -> list[str]:
        """A line for each stage that says which trials it will run; :meth:`known_trials` names the first ones."""
        stages, lines = self.sweep.stages, list[str]()
        if stages is None:
            return lines
        if (tune := stages.tune) is not None:
            searches = [contender.search for contender in self.contenders if contender.search is not None]
            budget = f"{tune.trials} trials" if tune.trials is not None else f"{tune.device_seconds:g} device-seconds"
            first = sum(len(first_settings(search)) for search in searches)
            lines.append(
                f"tune: {len(searches)} searches with {budget} each, sampler {tune.sampler}, chosen by {tune.metric}; "
                f"{first} trials come first, the others depend on their results"
            )
        settled = {"final": 0, "cost": 0}
        for one in self._settled_rounds(stages):
            settled[one.stage] += len(one.trials)
        if stages.final is not None:
            count = settled["final"] + len(self.searches) * len(stages.final.seeds)
            lines.append(f"final: {count} trials on the test split, with the settings chosen")
        if stages.cost is not None:
            most = settled["cost"] + len(self.searches) * stages.cost.repetitions
            lines.append(
                f"cost: at most {most} trials, one after the other, {stages.cost.repetitions} of each class in turns"
            )
        return lines

    def trains(self, trial: TrialSpec) -> bool:
        """Whether the method of a trial trains anything."""
        return self.resolver.trains(trial.method)

    @property
    def searches(self) -> list[str]:
        """Keys of all searches."""
        return [contender.search.key for contender in self.contenders if contender.search is not None]

    def _settled_rounds(self, stages: StagesSpec) -> Iterator[Round]:
        """Final and cost trials of what is not searched, which are known beforehand."""
        settled = [(contender, contender.final) for contender in self.contenders if contender.search is None]
        return self._last_rounds(stages, settled)

    def _last_rounds(self, stages: StagesSpec, chosen: Sequence[tuple[Contender, TrialSpec]]) -> Iterator[Round]:
        if stages.final is not None:
            # The stage cost compares merged decoding; without it the first seed does.
            first = stages.final.seeds[0] if stages.cost is None else None
            finals = [
                spec.model_copy(update={"seed": seed, "compares_merged": seed == first})
                for contender, spec in chosen
                # A method that trains nothing gives the same with every seed, unless the seed draws its texts.
                for seed in (stages.final.seeds if contender.trains or spec.draws_by_seed else stages.final.seeds[:1])
            ]
            yield Round("final", distinct(finals, self.trains))
        if stages.cost is not None:
            length = {"steps": stages.cost.steps, "epochs": None, "evaluate_every_steps": None}
            costs = [
                spec.model_copy(update={"stage": "cost", "train": spec.train.model_copy(update=length)})
                for _, spec in chosen
            ]
            # Methods take turns, so that a machine that slows down slows all of them.
            for repetition in range(stages.cost.repetitions):
                for spec in distinct(costs, self.trains):
                    again = spec.model_copy(update={"repetition": repetition})
                    yield Round("cost", (again,))  # alone, so that nothing else changes its time and memory

    def _search_run(self, contender: Contender, store: Store) -> SearchRun | None:
        search = contender.search
        return None if search is None else SearchRun(search, partial(self._ask_trial, contender, search.tune), store)

    def _contenders(self) -> Iterator[Contender]:
        for shared in combinations(self.sweep.grid):
            for number, entry in enumerate(self.sweep.methods):
                for own in combinations(entry.grid):
                    where = f"methods.{number}"
                    final = configure(self.sweep, entry, where, shared, own, self.resolver)
                    trains = self.resolver.trains(final.method)
                    yield Contender(entry, where, shared, own, final, trains)

    def _with_search(self, contender: Contender) -> Contender:
        """The contender with its search; unchanged where there is nothing to search."""
        tune = self.sweep.stages.tune if self.sweep.stages is not None else None
        entry, where, final = contender.entry, contender.where, contender.final
        if tune is None:
            return contender
        if entry.search and not contender.trains:
            raise ConfigError(f"{where}.search: {entry.name} trains nothing, so there is nothing to search")
        space = self.resolver.search_space(final.method) if entry.search is None else entry.search
        if not space:
            return contender
        _check_space(space, contender)
        if tune.device_seconds is not None and final.checkpoint_every_steps is not None:
            raise ConfigError(
                f"{where}.resources.checkpoint_every_steps: a budget in stages.tune.device_seconds counts whole "
                "trainings, and a continued one knows its last part only; set stages.tune.trials, or leave it out"
            )
        steps, rungs = _rungs(final.train, tune.halving, where)
        search = Search(
            key="", method=final.method.name, label=final.label, space=space, tune=tune, steps=steps, rungs=rungs
        )
        if tune.trials is not None and search.rungs and search.cost(1) > tune.trials:
            raise ConfigError(
                f"{where}: halving takes {search.cost(1):.3g} trainings of full length for one choice of settings, and "
                f"stages.tune.trials has {tune.trials}; raise it, or leave halving out"
            )
        try:
            first = [self._ask_trial(contender, tune, settings, None) for settings in first_settings(search)]
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{where}: {error}; raise stages.tune.trials or narrow what is searched") from error
        return replace(contender, search=search.model_copy(update={"key": _key(search, first[0])}))

    def _check_effect(self) -> None:
        if self.sweep.stages is None or self.sweep.stages.tune is None:
            return
        searches = [contender.search for contender in self.contenders if contender.trains]
        if not any(searches):
            raise ConfigError("stages.tune: no method of this sweep has anything to search")
        for name in sorted(self.sweep.train.model_fields_set):
            if all(search is not None and f"train.{name}" in search.space for search in searches):
                raise ConfigError(f"train.{name} has no effect: every method searches it; leave it out")

    def _check_metric(self) -> None:
        """Refuse a score that the task does not have, before anything is trained."""
        tune = None if self.sweep.stages is None else self.sweep.stages.tune
        if tune is None or tune.metric == "dev_loss":
            return
        for spec in {one.final.task.model_dump_json(): one.final.task for one in self.contenders}.values():
            known = ("dev_loss", *choosable(make_task(spec), metrics_of(spec)))
            if tune.metric not in known:
                known_scores = f"known: {', '.join(known)}{did_you_mean(tune.metric, known)}"
                raise ConfigError(f"stages.tune.metric: there is no score {in_brief(tune.metric)}; {known_scores}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The score that settings are chosen by; none where the dev loss decides."""
        tune = None if self.sweep.stages is None else self.sweep.stages.tune
        return () if tune is None or tune.metric == "dev_loss" else (tune.metric,)

    def _ask_trial(self, contender: Contender, tune: TuneSpec, settings: JsonDict, steps: int | None) -> TrialSpec:
        spec = self._configured(contender, settings)
        label = ",".join(f"{key.split('.', 1)[1]}={value}" for key, value in settings.items())
        return spec.model_copy(
            update={
                "stage": "tune",
                "seed": tune.seed,
                "stop_after_steps": steps,
                "scores_dev": tune.metric != "dev_loss",
                "label": ",".join(filter(None, [spec.label, label, f"stop={steps}" if steps else ""])),
            }
        )

    def _configured(self, contender: Contender, settings: JsonDict) -> TrialSpec:
        """The final trial of a contender with these settings. A sweep whose entry names them has the same trial."""
        own = {**contender.own, **settings}
        trial = configure(self.sweep, contender.entry, contender.where, contender.shared, own, self.resolver)
        return trial.model_copy(update={"label": contender.final.label})


def _check_space(space: SearchSpace, contender: Contender) -> None:
    entry, where = contender.entry, contender.where
    for key in space:
        part, _, name = key.partition(".")
        if part not in ("config", "train") or not name:
            raise ConfigError(
                f"{where}.search: {key!r} is not a key that can be searched; it starts with config. or train."
            )
        if entry.sets(key):
            raise ConfigError(f"{where}.{key} has no effect: it is searched; leave it out, or name another search")
        if key in contender.shared:
            raise ConfigError(
                f"grid.{key} has no effect on {entry.name}: it is searched; leave it out, or name another search in "
                f"{where}.search"
            )


def _rungs(train: TrainSpec, halving: HalvingSpec | None, where: str) -> tuple[int | None, list[int]]:
    """Steps of the full length, and the steps after which trials are cut."""
    if halving is None:
        return train.steps, []
    if train.steps is None:
        raise ConfigError(f"{where}: halving counts in steps; set train.steps instead of epochs")
    first_cut = halving.first_cut_steps or max(3 * train.warmup_steps_of(train.steps), math.ceil(train.steps / 9))
    rungs: list[int] = []
    steps = math.ceil(train.steps / halving.factor)
    while steps >= first_cut and (not rungs or steps < rungs[0]):
        rungs.insert(0, steps)
        steps = math.ceil(steps / halving.factor)
    if not rungs:
        raise ConfigError(
            f"{where}: halving has no room: the first cut is after {first_cut} of {train.steps} steps, and one in "
            f"{halving.factor} goes on; lower stages.tune.halving.first_cut_steps or leave halving out"
        )
    return train.steps, rungs


def _key(search: Search, first: TrialSpec) -> str:
    """A readable slug, and a hash of trial, budget and ranges: a search with another of these is another search."""
    content = {"trial": first.identity, "search": search.model_dump(mode="json", exclude={"key"})}
    digest = sha256_of_json(content)
    return f"{slug(search.method, search.label, length=60)}-{digest[:8]}"


def _names(contenders: Sequence[Contender]) -> list[str]:
    """Method and label of each contender. A label names the settings that differ and are not searched."""
    searched = [[] if one.search is None else list(one.search.space) for one in contenders]
    return names([one.final for one in contenders], ignored=searched)


def _side_by_side(searches: Sequence[Iterator[list[TrialSpec]]]) -> Iterator[list[TrialSpec]]:
    """Rounds with the next trials of all searches, until no search has any more."""
    running = list(searches)
    while running:
        trials: list[TrialSpec] = []
        for search in list(running):
            next_trials = next(search, None)
            if next_trials is None:
                running.remove(search)
            else:
                trials += next_trials
        if trials:
            yield trials


def _unique(trials: Iterable[TrialSpec]) -> tuple[TrialSpec, ...]:
    return tuple({trial.trial_id: trial for trial in trials}.values())
