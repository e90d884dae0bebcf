"""Tries faults by the tests of a package: those that reach a fault's line, the quickest first, until one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import coverage
import pytest
from hypothesis import Phase, settings

from mutants.children import Tell, in_fork
from mutants.mutations import Mutant
from mutants.replaced_code import LiveFunctions, forget_what_was_cached, import_with
from mutants.targets import ROOT, Target

Outcome = Literal["killed", "hung", "survived", "not reached"]

_BASELINE_SECONDS = 1800.0
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Tried:
    """What became of a mutant."""

    number: int  # in the list of mutants
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class KnownTest:
    """A test that passes without a fault."""

    name: str
    seconds: float


def try_all(
    target: Target,
    mutants: Sequence[Mutant],
    folder: Path,
    longest_seconds: float,
    tried: Callable[[Tried], None],
    note: Callable[[str], None],
) -> None:
    """Try mutants of a package.

    Args:
        target: The package.
        mutants: Faults in its files.
        folder: For what the tests write.
        longest_seconds: Tests that take longer are left out.
        tried: Gets each mutant with its outcome.
        note: Gets a line about each test that is left out.

    Raises:
        RuntimeError: The tests cannot be run without a fault.
    """
    for name in target.imports:
        import_module(name)
    tests: list[KnownTest] = []
    imported: list[tuple[int, list[str]]] = []

    def hear(value: Any) -> None:
        match value:
            case {"test": name, "seconds": seconds}:
                tests.append(KnownTest(name, seconds))
            case {"left_out": name, "why": why}:
                note(f"{name}: left out: {why}")
            case {"number": number, "outcome": outcome, "seconds": seconds}:
                tried(Tried(number, outcome, seconds))
            case {"imported": number, "first": first}:
                imported.append((number, first))

    within = _BASELINE_SECONDS * (1 + len(mutants))
    session = _Session(mutants, longest_seconds)
    ended = in_fork(lambda tell: session.run(target, folder / "session", tell), within, hear)
    if ended.code != 0:
        raise RuntimeError(f"{target.name}: the tests ended with code {ended.code}: {ended.messages[-1:]}")
    for number, first in imported:
        order = sorted(tests, key=lambda test: (test.name not in first, test.seconds))
        tried(_tried_by_import(number, mutants[number], target, order, folder / "import"))


def _limit(seconds: float) -> float:
    return 5.0 + 5.0 * seconds


def _outcome(code: int | None) -> Outcome:
    return "hung" if code is None else "survived" if code == 0 else "killed"


def _tried_by_import(number: int, mutant: Mutant, target: Target, tests: Sequence[KnownTest], folder: Path) -> Tried:
    """A fault in what runs when a module is imported: the tests begin anew, in a process that has not imported it."""
    begun = time.monotonic()

    def work(tell: Tell) -> int:
        import_with(ROOT, mutant)
        return int(pytest.main([*_options(target, folder), "-x"], plugins=[_InThisOrder(tests)]))

    ended = in_fork(work, _START_SECONDS + _limit(sum(test.seconds for test in tests)))
    return Tried(number, _outcome(ended.code), time.monotonic() - begun)


def _options(target: Target, folder: Path) -> list[str]:
    return ["-q", f"--rootdir={ROOT}", "-p", "no:cacheprovider", f"--basetemp={folder}", *target.tests]


class _Quick:
    """Tests with made-up examples try as many, but do not look for the smallest that fails, nor remember it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        settings.register_profile(
            "mutants", settings(), phases=(Phase.explicit, Phase.generate), database=None, derandomize=True
        )
        settings.load_profile("mutants")


class _InThisOrder(_Quick):
    def __init__(self, tests: Sequence[KnownTest]) -> None:
        self._places = {test.name: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._places), key=lambda item: self._places[item.nodeid]
        )


class _Session(_Quick):
    """Runs all tests once, to see which lines each reaches, and then forks for each mutant."""

    def __init__(self, mutants: Sequence[Mutant], longest_seconds: float) -> None:
        self._mutants, self._longest_seconds = mutants, longest_seconds
        self._failed: set[str] = set()
        self._ends_with_a_failure = False

    def run(self, target: Target, folder: Path, tell: Tell) -> int:
        files = sorted({mutant.file for mutant in self._mutants})
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(ROOT / file) for file in files], messages=False
        )
        self._files, self._tell = files, tell
        self._coverage.start()
        return int(pytest.main(_options(target, folder), plugins=[self]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = session.items
        for number, item in enumerate(items):
            self._coverage.switch_context(str(number))
            self._run(item)
        self._coverage.stop()
        reached = self._reached()
        forget_what_was_cached()
        live = LiveFunctions(ROOT, self._files)
        seconds = self._steady_tests(items)
        for number, mutant in enumerate(self._mutants):
            self._try(number, mutant, items, seconds, reached, live)
        session.testsfailed = 0
        return True

    def _run(self, item: pytest.Item) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=_KeepsTheSession(item.session))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            if self._ends_with_a_failure:
                raise _Failed
            self._failed.add(report.nodeid)

    def _reached(self) -> dict[str, dict[int, set[int | None]]]:
        """Of each file and line: the tests that run it, by number; None is the time before the first test."""
        data = self._coverage.get_data()
        found: dict[str, dict[int, set[int | None]]] = {}
        for file in self._files:
            contexts = data.contexts_by_lineno(str(ROOT / file))
            found[file] = {
                line: {int(context) if context else None for context in names} for line, names in contexts.items()
            }
        return found

    def _steady_tests(self, items: Sequence[pytest.Item]) -> dict[int, float]:
        """Seconds of each test that passes, also in a fork, and is quick enough."""

        def work(tell: Tell) -> int:
            for number, item in enumerate(items):
                if item.nodeid not in self._failed:
                    begun = time.monotonic()
                    self._run(item)
                    if item.nodeid not in self._failed:
                        tell([number, time.monotonic() - begun])
            return 0

        seconds: dict[int, float] = dict(in_fork(work, _BASELINE_SECONDS / 2).messages)
        for number, item in enumerate(items):
            if item.nodeid in self._failed or number not in seconds:
                self._tell({"left_out": item.nodeid, "why": "it fails without a fault, or in a fork"})
            elif seconds[number] > self._longest_seconds:
                self._tell({"left_out": item.nodeid, "why": f"it takes {seconds.pop(number):.0f} s"})
            else:
                self._tell({"test": item.nodeid, "seconds": seconds[number]})
        return seconds

    def _try(
        self,
        number: int,
        mutant: Mutant,
        items: Sequence[pytest.Item],
        seconds: dict[int, float],
        reached: dict[str, dict[int, set[int | None]]],
        live: LiveFunctions,
    ) -> None:
        lines = reached[mutant.file]
        tests: set[int | None] = set().union(*(lines.get(line, set()) for line in mutant.lines))
        begun = time.monotonic()

        def work(tell: Tell) -> int:
            if not live.replaced(mutant):
                tell("imported")
                return 0
            self._ends_with_a_failure = True
            try:
                for test in order:
                    self._run(items[test])
            except _Failed:
                return 1
            return 0

        order = sorted((test for test in tests if test in seconds), key=lambda test: seconds[test])
        ended = None if None in tests else in_fork(work, _limit(sum(seconds[test] for test in order)))
        if ended is None or ended.messages == ["imported"]:
            of_file = {test for those in lines.values() for test in those if test in seconds}
            self._tell({"imported": number, "first": [items[test].nodeid for test in of_file if test is not None]})
            return
        outcome = _outcome(ended.code) if order else "not reached"
        self._tell({"number": number, "outcome": outcome, "seconds": time.monotonic() - begun})


class _Failed(BaseException):
    """A test has failed, which is enough."""


class _KeepsTheSession:
    """Stands for the next test: what a session shares is kept, and what a module or a class shares is not."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session

    def listchain(self) -> list[Any]:
        return [self._session]
