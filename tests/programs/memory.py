"""How much memory of its own a rank takes, phase by phase, under ZeRO 0, 2 and 3 on one, two and four ranks.

``PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/memory.py`` trains and scores random Llamas
and writes a table with its figures to ``results/exhibits/memory/``. It takes half an hour on two cores and 12 GiB.

A rank's own memory is what it does not share with another process (``Private_Clean`` and ``Private_Dirty`` of
``/proc/self/smaps_rollup``), sampled twice a second in all phases, above what it has after its imports. The limits are
those of the table: a share of the model, the activations and logits that ``tuneoff plan`` names, and 350 MB. What is
planned is the largest phase of the plan, which aims at 15 % of what is measured. A case that needs more memory than is
free is left for another time. ``--plan`` plans the cases of the table anew, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.multiprocessing as mp
from table_page import table_page

OUT = Path(__file__).resolve().parents[2] / "results" / "exhibits" / "memory"
MB = 10**6
SAMPLE_SECONDS = 0.5
# What a rank may take beside its share of the model and the activations.
REST_MB = 350
# For the question whether there is room: of a model on a rank that trains by LoRA, and of one that trains all of it.
ROOM_OF_LORA, ROOM_OF_FULL, ROOM_OF_PROCESS_MB = 1.4, 6.0, 800
# Weights, gradients and two moments.
STATES_OF_FULL, OVER_STATES = 4, 1.3
SHARE_OF_LORA = {2: 0.6, 4: 0.35}


@dataclass(frozen=True)
class Size:
    """A Llama with random weights in fp32."""

    width: int
    layers: int
    inner: int
    vocabulary: int


SIZES = {
    "large": Size(1536, 12, 4096, 16000),  # 1.5 GB
    "middle": Size(1024, 8, 2816, 8000),  # 0.44 GB
    "small": Size(768, 6, 2048, 4000),  # 0.17 GB
}


@dataclass(frozen=True)
class Case:
    """One trial."""

    size: str
    method: str
    ranks: int
    stage: int
    precision: str = "fp32"


CASES = [
    Case("large", "lora", 2, 0),
    Case("large", "lora", 2, 3),
    Case("middle", "lora", 4, 3),
    Case("middle", "full", 2, 3),
    Case("middle", "full", 4, 3),
    Case("middle", "lora", 2, 3, "bf16"),
    Case("middle", "full", 2, 3, "bf16"),
    *(Case("small", name, ranks, stage) for name in ("lora", "full") for ranks in (1, 2, 4) for stage in (0, 2, 3)),
]


def main() -> None:
    """Entry of the program. Cases that the results have are not measured again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--most", type=int, default=len(CASES), help="how many cases to measure this time")
    parser.add_argument("--plan", action="store_true", help="plan what was measured anew")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "memory.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.is_file() else []
    left = [case for case in CASES if not any(asdict(case).items() <= row.items() for row in rows)]

    def keep() -> None:
        results.write_text(json.dumps(rows, indent=1) + "\n")
        (arguments.out / "memory.md").write_text(table(rows))

    with tempfile.TemporaryDirectory() as folder:
        if arguments.plan:
            for row in rows:
                row.update(planned_anew(row, Path(folder) / row["size"]))
            keep()
            return
        for case in left[: arguments.most]:
            if (needed := needed_mb(case)) > (free := psutil.virtual_memory().available / MB):
                sys.stdout.write(f"{case}: needs {needed:,.0f} MB, and {free:,.0f} are free; left out\n")
                continue
            rows.append({**asdict(case), **measured(case, SIZES[case.size], Path(folder) / case.size)})
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            keep()


def measured(case: Case, size: Size, folder: Path) -> dict[str, Any]:
    """What the ranks of a trial took, in MB."""
    if not folder.exists():
        make_surroundings(folder, size)
    out = Path(tempfile.mkdtemp(dir=folder))
    started = time.perf_counter()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(rank_main, (case, str(folder), port, str(out)), nprocs=case.ranks)
    ranks = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(case.ranks)]
    return {
        "model_mb": ranks[0]["model_bytes"] / MB,
        **in_plan(ranks[0]["predicted"] or {}),
        "baseline_mb": max(rank["baseline"] for rank in ranks) / MB,
        "peaks_mb": {
            phase: max(rank["peaks"].get(phase, 0) - rank["baseline"] for rank in ranks) / MB
            for phase in ranks[0]["peaks"]
        },
        "dev_loss": ranks[0]["dev_loss"],
        "stored_dev_loss": ranks[0]["stored_dev_loss"],
        "seconds": time.perf_counter() - started,
    }


def in_plan(forecast: dict[str, Any]) -> dict[str, Any]:
    """What a forecast says of memory, in MB."""
    parts, phases = forecast.get("memory_bytes", {}), forecast.get("phase_memory_bytes", {})
    return {
        "activations_mb": sum(parts.get(name, 0) for name in ("activations", "logits")) / MB,
        "planned_mb": {name: size / MB for name, size in phases.items()},
    }


def planned_anew(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The plan of a case that was measured before."""
    from bench.plan.cost_model import forecast_of
    from bench.plan.devices import measured_cpu
    from bench.plan.plan import planned_work

    case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
    if not folder.exists():
        make_surroundings(folder, SIZES[case.size], with_weights=False)
    trial = trial_of(case, folder)
    device = measured_cpu(1, trial.resources.precision)
    return in_plan(forecast_of(trial, planned_work(trial), device, device.name).model_dump())


def needed_mb(case: Case) -> float:
    """What all ranks together take, with room to spare; model files in the page cache included."""
    size = SIZES[case.size]
    attention = 3 * size.width * size.width  # half as many heads have keys and values
    model = 4 * (size.layers * (attention + 3 * size.width * size.inner) + 2 * size.vocabulary * size.width) / MB
    whole = 1 if case.stage == 3 else case.ranks
    states = ROOM_OF_FULL if case.method == "full" else ROOM_OF_LORA
    return model + states * model * whole + case.ranks * ROOM_OF_PROCESS_MB


def make_surroundings(folder: Path, size: Size, with_weights: bool = True) -> None:
    """A model folder, whose file of weights may be empty, and the files of a task."""
    from conftest import CITIES, NAMES, save_tokenizer, write_task
    from transformers import LlamaConfig, LlamaForCausalLM

    for part in ("model", "task"):
        (folder / part).mkdir(parents=True)
    tokenizer = save_tokenizer(folder / "model", ends_texts=False)
    write_task(folder / "task", [(name, city) for name in NAMES for city in CITIES])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=size.inner,
        vocab_size=max(size.vocabulary, len(tokenizer)),
        num_attention_heads=size.width // 64,
        num_key_value_heads=size.width // 128,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if with_weights:
        LlamaForCausalLM(config).save_pretrained(folder / "model", max_shard_size="400MB")
    else:
        config.save_pretrained(folder / "model")
        (folder / "model" / "model.safetensors").touch()


def rank_main(rank: int, case: Case, folder: str, port: int, out: str) -> None:
    """Run a rank of a trial, as a launcher does, and look at its memory."""
    from bench.rank.process import import_libraries

    torch.set_num_threads(1)
    import_libraries()
    from torch.distributed import TCPStore

    from bench.measure.provenance import sources_sha256
    from bench.rank.context import RankContext
    from bench.rank.trial import run_rank
    from bench.schema.record import Failed

    sampler = Sampler()
    outbox = Path(out) / f"outbox-{rank}"
    outbox.mkdir()
    context = RankContext(
        rank=rank,
        ranks=case.ranks,
        local_rank=0,
        store=TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False),
        outbox=outbox,
        driver_code_sha256=sources_sha256(),
        threads=1,
        progress=sampler.on_progress,
    )
    sampler.start()
    outcome: Any = run_rank(trial_of(case, Path(folder)), context).outcome
    sampler.stop()
    if isinstance(outcome, Failed):
        sys.exit(f"rank {rank}: {outcome.traceback}")
    predicted = getattr(outcome, "predicted", None)
    found = {
        "baseline": sampler.baseline,
        "peaks": sampler.peaks,
        "predicted": predicted.model_dump() if predicted is not None else None,
        "model_bytes": sum(path.stat().st_size for path in (Path(folder) / "model").glob("*.safetensors"))
        // (2 if case.precision == "bf16" else 1),
        "dev_loss": getattr(outcome, "dev_loss", None),
        "stored_dev_loss": getattr(outcome, "stored_dev_loss", None),
    }
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(found))


def trial_of(case: Case, folder: Path) -> Any:
    """Eight steps with two evaluations, then scoring."""
    from bench.config.load import expand, load_sweep
    from bench.config.resolver import RegistryResolver

    sweep = {
        "name": "memory",
        "model": str(folder / "model"),
        "task": {"name": "jsonl", "path": str(folder / "task")},
        "decode": {"max_new_tokens": 8},
        "train": {
            "steps": 8,
            "batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 1e-4,
            "evaluate_every_steps": 4,
            "adam_epsilon": 1e-6,
        },
        "resources": {"ranks": case.ranks, "zero_stage": case.stage, "precision": case.precision, "device": "cpu"},
        "methods": [case.method],
    }
    path = folder / f"{case}.yaml".replace("'", "")
    path.write_text(json.dumps(sweep))
    (trial,) = expand(load_sweep(path), RegistryResolver())
    return trial


class Sampler:
    """Looks twice a second, and as a phase begins, at what this process has for itself; keeps each phase's peak."""

    def __init__(self) -> None:
        self.baseline = private_bytes()
        self.peaks: dict[str, int] = {}
        self._phase = "start"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def on_progress(self, event: dict[str, Any]) -> None:
        """Hear of a trial's progress, and look at the memory where a phase begins."""
        if "phase" in event:
            self._look()
            self._phase = event["phase"]

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), private_bytes())


def private_bytes() -> int:
    """What this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def limit_mb(row: dict[str, Any]) -> float | None:
    """What a rank may take at most under ZeRO 3; None where nothing is promised."""
    if row["stage"] != 3 or row["ranks"] == 1:
        return None
    share = SHARE_OF_LORA[row["ranks"]]
    if row["method"] == "full":
        share = OVER_STATES * STATES_OF_FULL / row["ranks"]
    in_fp32 = 2 if row["precision"] == "bf16" and row["method"] == "full" else 1
    return float(share * in_fp32 * row["model_mb"] + row["activations_mb"] + REST_MB)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    peaks = {phase: peak for phase, peak in row["peaks_mb"].items() if phase != "plan"}
    limit = limit_mb(row)
    most = max(peaks.values())
    verdict = "" if limit is None else f"{limit:,.0f} ({'held' if most <= limit else 'missed'})"
    planned = max(row["planned_mb"].values(), default=0.0)
    plan = f"{planned:,.0f} ({planned / most - 1:+.0%})" if planned else ""
    cells = [f"{peaks.get(phase, 0):,.0f}" for phase in PHASES]
    name = row["method"] + (" in bf16" if row["precision"] == "bf16" else "")
    head = [name, f"{row['model_mb']:,.0f}", str(row["ranks"]), str(row["stage"])]
    return "| " + " | ".join([*head, *cells, f"{most:,.0f}", plan, verdict, f"{row['seconds']:.0f}"]) + " |"


PHASES = ("load", "patch", "initialise", "train", "validate", "save", "decode")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The page."""
    head = ["method", "model MB", "ranks", "ZeRO", *PHASES, "most", "planned", "limit", "seconds"]
    title = "Memory of a rank's own, in MB above its state after imports, worst rank"
    return table_page(title, __doc__, head, map(line, rows))


if __name__ == "__main__":
    main()
