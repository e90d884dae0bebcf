"""On two ranks every optimiser trains what it trains on one: elementwise ones under each ZeRO stage, others without.

On one rank it is the class that it wraps (test_optimizers.py).
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest
import torch
from one_rank import CPU
from test_optimizers import NADAM, NEEDS_APOLLO, lane_of, losses_of, train

ELEMENTWISE = ("adamw_8bit", "lion", NADAM)
WHOLE_MATRICES = ("adafactor", "muon", "schedule_free", "galore", "apollo")
CASES = [*((name, stage) for name in ELEMENTWISE for stage in range(4)), *((name, 0) for name in WHOLE_MATRICES)]
OPTIONS = {
    "adamw_8bit": {"min_8bit_size": 512},
    "galore": {"rank": 4, "update_proj_gap": 2},
    "apollo": {"rank": 4, "update_proj_gap": 2},
}
# Where moments are cut into eight bits, ranks cut other blocks; Muon makes its steps in bf16.
TOLERANCES = {"adamw_8bit": 1e-2, "muon": 1e-3}


def trained_losses(name: str, stage: int, ranks: int, rank: int) -> list[float]:
    lane = lane_of(name, optimizer_options=OPTIONS.get(name, {}))
    (trained,) = train([lane], rank, zero_stage=stage, ranks=ranks)
    return losses_of(trained)


def rank_main(rank: int, names: list[str], port: int, out: str) -> None:
    from torch.distributed import TCPStore

    from bench.rank.context import RankContext, join_process_group

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    join_process_group(RankContext(rank, 2, 0, store, Path(out), "", 1), CPU)
    found = {f"{name} {stage}": trained_losses(name, stage, 2, rank) for name, stage in CASES if name in names}
    (Path(out) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    """The losses that each of two ranks saw."""
    out = tmp_path_factory.mktemp("ranks")
    names = [name for name, _ in CASES if name != "apollo" or importlib.util.find_spec("apollo_torch") is not None]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, args=(names, port, str(out)), nprocs=2)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("name", "stage"), [pytest.param(*case, marks=NEEDS_APOLLO if case[0] == "apollo" else ()) for case in CASES]
)
def test_two_ranks_train_what_one_trains(name: str, stage: int, on_two_ranks: list[dict[str, list[float]]]) -> None:
    alone = trained_losses(name, 0, 1, 0)
    assert abs(alone[-1] - alone[0]) > 10 * TOLERANCES.get(name, 1e-5), "nothing was learnt that could differ"
    for found in on_two_ranks:
        assert found[f"{name} {stage}"] == pytest.approx(alone, abs=TOLERANCES.get(name, 1e-5))
