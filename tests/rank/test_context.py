"""Ranks wait for one another as long as one of them works."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import torch

from bench.rank.context import RankContext, share_json


def test_ranks_wait_for_a_value_for_longer_than_the_store_s_own_timeout(tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    late = threading.Timer(0.5, lambda: store.set("costs/1", '{"rank": 1}'))
    late.start()
    found = share_json(RankContext(0, 2, 0, store, tmp_path, "", 1), "costs", {"rank": 0})
    assert found == [{"rank": 0}, {"rank": 1}]
    late.join()
