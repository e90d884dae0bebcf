"""Two ranks read a checkpoint: in pieces from rank 0, and each rank hashes a share of the files beside it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import run_ranks

from bench.schema.digests import sha256_of
from bench.train import checkpoint
from bench.train.checkpoint import Checkpoint, Checkpoints, gathered_values

CPU = torch.device("cpu")
SIZES = (0, 999, 1000, 1001)
FOLDER = "engine-00000002"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks have found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "checkpoints" / FOLDER).mkdir(parents=True)
    for number in range(4):
        (folder / "checkpoints" / FOLDER / f"{number}.pt").write_bytes(bytes([number]) * 100)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(rank_main, (str(folder), port), ranks=2)
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


def rank_main(rank: int, folder: str, port: int) -> None:
    from torch.distributed import TCPStore

    from bench.rank.context import RankContext, join_process_group

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    join_process_group(RankContext(rank, 2, 0, store, Path(folder), "", 1), CPU)
    checkpoint.PIECE = 1000
    contents = [bytes(index % 251 for index in range(size)) for size in SIZES]
    found: dict[str, Any] = {
        "arrived": [checkpoint._from_rank_0(data if rank == 0 else b"", CPU) == data for data in contents],
        "values": gathered_values({"rank": rank, "long": "x" * 50 * rank}, CPU),
    }
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    checkpoint.sha256_of = noted  # type: ignore[attr-defined]
    places = Checkpoints(Path(folder) / "checkpoints", 2, {"trial": "a"})
    files = {f"{FOLDER}/{path.name}": sha256_of(path) for path in (places.folder / FOLDER).iterdir()}
    if rank == 0:
        places.save(Checkpoint(2, {"a": torch.arange(600.0)}, {"files": files}))
    torch.distributed.barrier()
    latest = places.latest(CPU)
    found |= {"step": latest and latest.step, "sum": latest and float(latest.tensors["a"].sum()), "hashed": [*hashed]}
    torch.distributed.barrier()
    if rank == 0:
        (places.folder / FOLDER / "1.pt").write_bytes(b"no pickle")  # which rank 1 reads
    torch.distributed.barrier()
    found["damaged"] = places.latest(CPU)
    found["left"] = sorted(path.suffix for path in places.folder.glob("step-*"))
    (Path(folder) / f"results-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_bytes_arrive_in_pieces(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["arrived"] == [True] * len(SIZES)
        assert rank["values"] == [{"rank": 0, "long": ""}, {"rank": 1, "long": "x" * 50}]


def test_each_rank_hashes_a_share_and_all_take_the_checkpoint(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert (rank["step"], rank["sum"]) == (2, sum(range(600)))
    assert [rank["hashed"] for rank in results] == [["0.pt", "2.pt"], ["1.pt", "3.pt"]]


def test_what_one_rank_finds_damaged_no_rank_takes(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["damaged"] is None
    assert results[0]["left"] == [".damaged"]
