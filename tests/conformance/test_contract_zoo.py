"""The contract finds the mistake of each broken method, and no mistake in unusual ones."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
from broken_methods import BROKEN, LeavesThroughTheBackDoor, Offset, StartsByTheHash
from unusual_methods import (
    UNUSUAL,
    AddsABiasToTheHead,
    AddsALayer,
    DropsPathsInTraining,
    InDecodersOnly,
    StoresABuffer,
    TiesItsParts,
    TrainsFewEntries,
    Wraps,
)

from bench.conformance import Verdict, keeps_contract, verdicts
from bench.conformance.method_checks import CHECKS, Subject
from bench.conformance.method_checks import PROCESS_CHECK as PROCESS
from bench.conformance.process import OtherProcesses
from bench.conformance.subject import ContractError
from bench.conformance.surroundings import put_back
from bench.conformance.tiny_models import CORE_FAMILIES
from bench.method import Method, MethodError

QUICK_ON = "llama"
# The unusual methods that `make test` runs all checks on.
OFTEN = (AddsABiasToTheHead, InDecodersOnly, StoresABuffer, DropsPathsInTraining, TrainsFewEntries, TiesItsParts, Wraps)


def subject(method_class: type[Method], family: str = QUICK_ON) -> Subject:
    return Subject(method_class, method_class.Config(), family)


@pytest.fixture
def undone() -> Iterator[None]:
    """Changes that a broken method makes to this process are undone."""
    with put_back(subject(Offset).base_model()), warnings.catch_warnings():
        yield


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("broken", [each for each, check in BROKEN.items() if check != PROCESS])
def test_a_broken_method_is_caught(broken: type[Method]) -> None:
    with pytest.raises((ContractError, SystemExit)) as caught:
        CHECKS[BROKEN[broken]](subject(broken))
    assert "\n" not in str(caught.value), "what is wrong is one line"


@pytest.fixture(scope="module")
def other_processes() -> Iterator[tuple[OtherProcesses, dict[type[Method], Subject]]]:
    """One start of a process for all methods that are tried in another."""
    broken = [each for each, check in BROKEN.items() if check == PROCESS]
    subjects = {each: subject(each) for each in (*broken, *UNUSUAL)}
    started = OtherProcesses(list(subjects.values()), count=1)
    yield started, subjects
    started.close()


@pytest.mark.parametrize("broken", [each for each, check in BROKEN.items() if check == PROCESS])
def test_what_depends_on_the_process_is_caught(
    broken: type[Method], other_processes: tuple[OtherProcesses, dict[type[Method], Subject]]
) -> None:
    started, subjects = other_processes
    with pytest.raises(ContractError, match="another process"):
        started.check(subjects[broken])


@pytest.mark.parametrize("right", UNUSUAL)
def test_an_unusual_method_is_the_same_in_another_process(
    right: type[Method], other_processes: tuple[OtherProcesses, dict[type[Method], Subject]]
) -> None:
    started, subjects = other_processes
    started.check(subjects[right])


@pytest.mark.parametrize(
    ("right", "family"),
    [
        pytest.param(right, family, marks=[] if right in OFTEN and family == QUICK_ON else pytest.mark.full)
        for right in UNUSUAL
        for family in CORE_FAMILIES
    ],
)
def test_an_unusual_method_passes(right: type[Method], family: str) -> None:
    all_verdicts = list(verdicts(right, right.Config(), [family], processes=0))
    assert [verdict for verdict in all_verdicts if verdict.outcome == "fail"] == []


@pytest.mark.full
@pytest.mark.parametrize("broken", BROKEN)
def test_every_check_runs_on_a_broken_method(broken: type[Method]) -> None:
    """A broken method does not keep other checks from running: each has a verdict, and the process is as before."""
    verdicts_by_check = {each.check: each for each in verdicts(broken, broken.Config(), [QUICK_ON], processes=1)}
    assert verdicts_by_check.keys() == CHECKS.keys()
    assert verdicts_by_check[BROKEN[broken]].outcome == "fail"


def test_a_method_that_ends_the_process_fails() -> None:
    all_verdicts = list(verdicts(LeavesThroughTheBackDoor, LeavesThroughTheBackDoor.Config(), [QUICK_ON], processes=0))
    assert [each.check for each in all_verdicts if each.outcome == "fail"] == ["counts"]
    assert next(each for each in all_verdicts if each.check == "counts").reason == "SystemExit: 0"


class RefusesAll(Offset):
    def patch(self, model: object) -> None:  # type: ignore[override]
        raise MethodError("this method is for other models")


def test_a_method_that_every_family_refuses_does_not_pass() -> None:
    all_verdicts = list(verdicts(RefusesAll, RefusesAll.Config(), CORE_FAMILIES))
    assert {each.outcome for each in all_verdicts} == {"refused"}
    assert not keeps_contract(all_verdicts)


def test_a_method_that_one_family_refuses_passes_with_the_others() -> None:
    all_verdicts = list(verdicts(AddsALayer, AddsALayer.Config(), ["llama", "t5"], processes=0))
    assert {(each.family, each.outcome) for each in all_verdicts} == {("llama", "pass"), ("t5", "refused")}
    assert keeps_contract(all_verdicts)
    assert {each.reason for each in all_verdicts if each.family == "t5"} == {
        "T5ForConditionalGeneration has an encoder; this is for decoders alone"
    }


def test_a_class_that_no_other_process_can_import_is_said_to_be_out_of_reach() -> None:
    class Local(Offset):
        pass

    some_verdicts = [each for each in verdicts(Local, Local.Config(), [QUICK_ON]) if each.check == PROCESS]
    assert [each.outcome for each in some_verdicts] == ["refused"]
    assert "another process cannot import" in some_verdicts[0].reason
    assert isinstance(some_verdicts[0], Verdict)
    assert StartsByTheHash.__module__ in sys.modules
