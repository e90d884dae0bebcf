"""Runs one search: its asks become trials, and the records of these trials decide what comes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.schema.record import Probed, TrialResult
from bench.schema.trial import JsonDict, TrialSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.tuning.rows import SearchStore
from bench.tuning.search import Ask, AskResult, Cut, Origin, Search, best, cut, first_settings, next_settings, value_of

# Makes the trial of some settings. The second argument is the step after which it ends; None: at full length.
MakeTrial = Callable[[JsonDict, int | None], TrialSpec]


class SearchRun:
    """Runs a search from its first ask, or continues from the rows that an earlier driver has written.

    Args:
        search: The search.
        make_trial: Turns settings into a trial.
        store: Of the sweep's records; the rows of the search lie beside them.
    """

    def __init__(self, search: Search, make_trial: MakeTrial, store: Store) -> None:
        self.search = search
        self.make_trial = make_trial
        self.store = store
        self.rows = SearchStore(store.root, search)

    def rounds(self) -> Iterator[list[TrialSpec]]:
        """Trials that may run side by side, round by round. A round needs its records before the next is asked for."""
        written = {ask.number: ask for ask in self.rows.asks()}
        first = [
            written.get(number) or self._ask(number, settings, "sampler")
            for number, settings in enumerate(first_settings(self.search))
        ]
        yield from self._first_rounds(first)
        earlier = [ask for ask in self.rows.asks() if ask.number >= len(first)]
        if earlier:
            yield [self._trial(ask) for ask in earlier]
        while (ask := self._next_ask()) is not None:
            yield [self._trial(ask)]

    def chosen(self) -> JsonDict | None:
        """The settings with the best value at full length; None if every trial failed."""
        chosen = best(self._results())
        return None if chosen is None else chosen.ask.settings

    def _first_rounds(self, first: Sequence[Ask]) -> Iterator[list[TrialSpec]]:
        alive, audited = list(first), list[Ask]()
        for rung, steps in enumerate(self.search.rungs):
            yield [self._trial(ask, steps) for ask in alive]
            made = self.rows.cut(rung) or self.rows.add_cut(self._cut(rung, steps, alive))
            audited += [ask for ask in alive if ask.number in made.audited]
            alive = [ask for ask in alive if ask.number in made.kept]
        yield [self._trial(ask) for ask in [*alive, *audited]]

    def _cut(self, rung: int, steps: int, alive: Sequence[Ask]) -> Cut:
        records = {ask.number: self._record(self._trial(ask, steps)) for ask in alive}
        metric = self.search.tune.metric
        return cut(self.search, rung, {number: value_of(record, metric) for number, record in records.items()})

    def _next_ask(self) -> Ask | None:
        asks = self.rows.asks()
        used, each = self._used(asks)
        budget = self.search.tune.trials or self.search.tune.device_seconds or 0.0
        # Trials that no machine holds take no time at all, so that no number of them would use a budget in seconds up.
        if not each or used + each > budget * (1 + 1e-9):
            return None
        proposed = next_settings(self.search, asks, self._results(), used / budget, self._allowed)
        return None if proposed is None else self._ask(len(asks), *proposed)

    def _allowed(self, settings: JsonDict) -> bool:
        try:
            self.make_trial(settings, None)
        except ConfigError:
            return False
        return True

    def _used(self, asks: Sequence[Ask]) -> tuple[float, float]:
        """How much of its budget the search has used, and how much one more ask will use.

        In seconds, an ask is expected to take as long as the longest one so far, so that the budget is not overspent.
        """
        if self.search.tune.trials is not None:
            first = len(first_settings(self.search))
            return self.search.cost(first) + len(asks) - first, 1.0
        records = {record.trial_id: record for record in (self._record(self._trial(ask)) for ask in asks)}
        seconds = [record.device_seconds for record in records.values()]
        whole = [record.device_seconds for record in records.values() if isinstance(record.outcome, Probed)]
        return sum(seconds), max(whole or seconds)

    def _results(self) -> list[AskResult]:
        """The values of the asks that were trained to the end."""
        records = [(ask, self.store.read(self._trial(ask).trial_id)) for ask in self.rows.asks()]
        metric = self.search.tune.metric
        return [AskResult(ask, value_of(record, metric)) for ask, record in records if record is not None]

    def _ask(self, number: int, settings: JsonDict, origin: Origin) -> Ask:
        lengths: list[int | None] = [*self.search.rungs, None]
        trial_ids = [self.make_trial(settings, steps).trial_id for steps in lengths]
        return self.rows.add_ask(Ask(number=number, settings=settings, origin=origin, trial_ids=trial_ids))

    def _trial(self, ask: Ask, stop_after_steps: int | None = None) -> TrialSpec:
        return self.make_trial(ask.settings, stop_after_steps)

    def _record(self, trial: TrialSpec) -> TrialResult:
        record = self.store.read(trial.trial_id)
        if record is None:
            raise RuntimeError(f"{trial.trial_id} has no record, which the search needs to go on")
        return record
