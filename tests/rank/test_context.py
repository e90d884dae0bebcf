"""Ranks wait for one another as long as one of them works."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
from fakes import trial
from one_rank import CPU

from bench.measure.phases import PhaseMeter
from bench.models import base
from bench.rank.context import RankContext, share_json
from bench.rank.trial import _Trial


def test_ranks_wait_for_a_value_for_longer_than_the_store_s_own_timeout(tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    late = threading.Timer(0.5, lambda: store.set("costs/1", '{"rank": 1}'))
    late.start()
    found = share_json(RankContext(0, 2, 0, store, tmp_path, "", 1), "costs", {"rank": 0})
    assert found == [{"rank": 0}, {"rank": 1}]
    late.join()


@pytest.mark.parametrize("purpose", ["train", "score"])
def test_a_rank_that_has_loaded_its_model_waits_for_ranks_that_still_load(
    purpose: Literal["train", "score"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, others_loaded = object(), threading.Event()
    monkeypatch.setattr(base, "load_model", lambda *_: model)
    store = torch.distributed.HashStore()

    def load_on_rank_1() -> None:
        others_loaded.set()
        store.set(f"loaded to {purpose}/1", "")

    late = threading.Timer(0.3, load_on_rank_1)
    late.start()
    context = RankContext(0, 2, 0, store, tmp_path, "", 1)
    assert _Trial(trial(), context, CPU, PhaseMeter(CPU)).base_model(purpose) is model
    assert others_loaded.is_set()
    late.join()
