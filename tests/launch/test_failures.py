"""The reason of a failed trial: that of the rank that reports it, or that of another rank that is gone."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from bench.rank.context import failure, failure_reason
from bench.schema.record import Failed, RankReport
from bench.store.outbox import merged
from bench.train.loop import Diverged

PEER_GONE = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:40967"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(PEER_GONE), "worker_lost"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "worker_lost"),
        (dist.DistBackendError("NCCL error: ncclRemoteError: a remote process exited prematurely"), "worker_lost"),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), "error"),
        (MemoryError(), "out_of_memory"),
        (Diverged("the loss is nan"), "diverged"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_reasons(error: Exception, reason: str) -> None:
    assert failure_reason(error) == reason


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_s_own_mistake_explains_what_the_others_saw(first: int) -> None:
    errors = (RuntimeError(PEER_GONE), KeyError("the method's own mistake"))
    reports = {
        rank: RankReport(outcome=failure(errors[rank], "train", rank), provenance=None) for rank in (first, 1 - first)
    }
    outcome = merged(reports).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.rank) == ("error", 1)
