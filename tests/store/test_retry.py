"""One rule decides which failures are tried again."""

from __future__ import annotations

from typing import get_args

import pytest
from fakes import completed

from bench.schema.record import REASONS, Failed, Outcome, Reason
from bench.store.retry import RetryPolicy

POLICY = RetryPolicy()


def failed(reason: Reason) -> Outcome:
    return Failed(reason=reason, phase=None, rank=None, message="")


def test_every_reason_has_its_traits() -> None:
    assert REASONS.keys() == set(get_args(Reason))
    symptoms = {reason for reason, traits in REASONS.items() if traits.is_symptom}
    assert symptoms == {"worker_lost", "hung", "start_timed_out", "node_lost", "preempted", "driver_lost"}
    assert {reason for reason, traits in REASONS.items() if not traits.counts} == {
        "cancelled",
        "node_lost",
        "preempted",
        "driver_lost",
    }


@pytest.mark.parametrize("reason", REASONS)
def test_a_symptom_is_tried_again_and_in_company_everything_is(reason: Reason) -> None:
    assert POLICY.tries_again(failed(reason), (), was_fused=False) == REASONS[reason].is_symptom
    assert POLICY.tries_again(failed(reason), (), was_fused=True)
    assert not POLICY.tries_again(completed(), (), was_fused=True)


def test_the_third_lost_worker_and_the_twentieth_lost_node_are_the_last() -> None:
    worker, node = failed("worker_lost"), failed("node_lost")
    assert POLICY.tries_again(worker, ("hung",), was_fused=False)
    assert not POLICY.tries_again(worker, ("hung", "worker_lost"), was_fused=False)
    assert POLICY.tries_again(worker, ("hung", *["node_lost"] * 18), was_fused=False)
    assert POLICY.tries_again(node, ("node_lost",) * 18, was_fused=False)
    assert not POLICY.tries_again(node, ("node_lost",) * 19, was_fused=False)
    assert POLICY.tries_again(failed("driver_lost"), ("driver_lost",) * 30, was_fused=False), "a command for each"


def test_it_waits_longer_for_each_symptom_of_a_kind_and_not_after_company() -> None:
    assert POLICY.wait_seconds(["worker_lost"]) == 1
    assert POLICY.wait_seconds(["worker_lost", "hung", "worker_lost"]) == 4
    assert POLICY.wait_seconds(["node_lost"] * 3) == 16
    assert POLICY.wait_seconds(["node_lost"] * 9) == 60
    assert POLICY.wait_seconds(["worker_lost", "error"]) == 0
