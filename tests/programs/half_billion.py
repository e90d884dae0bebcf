"""Half a billion weights through Ray: two ranks, ZeRO 3, bf16, killed and continued, scored and reported.

``PYTHONPATH=.:tests:tests/support:tests/programs OMP_NUM_THREADS=1 python tests/programs/half_billion.py`` makes a
random Llama, compares five methods on it, and writes ``results/exhibits/half_billion/half_billion.md``. It takes some
twenty minutes on two cores and 16 GiB.

In every training the last rank kills itself after its fourth step, and the retry continues from the checkpoint of the
third. The driver is killed once as well, when it has its first record, and the same command is issued again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memory import SIZES, Size, make_surroundings
from table_page import table_page

from bench.measure.provenance import cpu_name
from bench.store.records import Store

OUT = Path(__file__).resolve().parents[2] / "results" / "exhibits" / "half_billion"
HALF_BILLION = Size(width=1024, layers=24, inner=4096, vocabulary=32_000)
STEPS, EVERY, KILLED_AFTER = 6, 3, 4
CRASH = {"TUNEOFF_CRASH_AT": f"rank.after_step:{KILLED_AFTER}"}
METHODS = ["lora", {"name": "prefix_tuning", "config": {"num_prompt_tokens": 10}}, "prompt_tuning", "full"]
POLL_SECONDS = 0.2


def main() -> None:
    """Entry of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--size", choices=SIZES, help="one of memory.py's, to try the program")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_surroundings(folder, SIZES.get(arguments.size, HALF_BILLION))
        plain = write_sweep(folder, "bf16", METHODS, {})
        killed_driver(plain)
        run(plain)
        run(write_sweep(folder, "nf4", ["lora"], {"quantization": "nf4"}))
        rows = [row(record) for sweep in ("bf16", "nf4") for record in records(folder / "results" / sweep)]
        reported = (folder / "results" / "bf16" / "report" / "report.md").is_file()
    if not reported:
        sys.exit("the sweep has no report")
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = page(rows, time.monotonic() - started)
    (arguments.out / "half_billion.md").write_text(text)
    sys.stdout.write(text)


def write_sweep(folder: Path, name: str, methods: list[Any], model: dict[str, str]) -> Path:
    """A sweep of one seed, whose results lie in ``folder/results/name``."""
    sweep = {
        "name": name,
        "model": {"path": str(folder / "model"), **model},
        "task": {"name": "jsonl", "path": str(folder / "task"), "test_examples": 4, "dev_examples": 6},
        "decode": {"max_new_tokens": 8},
        "train": {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-4},
        "resources": {
            "ranks": 2,
            "cpus_per_rank": 1,
            "zero_stage": 3,
            "precision": "bf16",
            "device": "cpu",
            "checkpoint_every_steps": EVERY,
            "hang_seconds": 600,
        },
        "methods": methods,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(sweep))
    return path


def command(sweep: Path) -> list[str]:
    """``tuneoff run`` on a cluster of Ray that it starts."""
    results = sweep.parent / "results"
    return [sys.executable, "-m", "bench.cli", "run", str(sweep), "--launcher", "ray", "--results", str(results)]


def run(sweep: Path) -> None:
    """To the end."""
    subprocess.run(command(sweep), check=True, env={**os.environ, **CRASH})


def killed_driver(sweep: Path) -> None:
    """A driver that is killed as soon as it has a record."""
    driver = subprocess.Popen(command(sweep), env={**os.environ, **CRASH})
    trials = sweep.parent / "results" / sweep.stem / "trials"
    while driver.poll() is None and not any(trials.glob("*/result.json")):
        time.sleep(POLL_SECONDS)
    driver.send_signal(signal.SIGKILL)
    if driver.wait() != -signal.SIGKILL:
        sys.exit("the driver ended before it could be killed")


def records(results: Path) -> Iterator[Any]:
    """Those of completed trials; the program ends where there is another one."""
    store = Store(results)
    for folder in sorted(store.trials.iterdir()):
        record = store.read(folder.name)
        if record is None or record.outcome.status != "completed":
            sys.exit(f"{folder.name}: {record.outcome if record else 'no record'}")
        yield record


def row(record: Any) -> str:
    """A line of the table."""
    train = record.outcome.train
    if not train.continued_after_steps:
        sys.exit(f"{record.trial_id}: its training was not continued")
    losses = [point.loss for point in record.outcome.train_curve]
    cells = (
        record.spec.method.name + (" on nf4" if record.spec.model.quantization else ""),
        f"{record.outcome.parameters.trained:,} of {record.outcome.parameters.total:,}",
        ", ".join(record.attempt.earlier_reasons),
        ", ".join(map(str, train.continued_after_steps)),
        f"{losses[0]:.3f}, {losses[-1]:.3f}",
        f"{record.outcome.dev_loss:.4f}, {record.outcome.stored_dev_loss:.4f}",
        f"{record.outcome.scores.values['bleu']:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def page(rows: list[str], seconds: float) -> str:
    """The page."""
    head = (
        "method",
        "trained",
        "attempts lost",
        "continued after step",
        "first and last loss",
        "dev loss, of the stored state",
        "BLEU",
    )
    note = (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {seconds / 60:.0f} minutes. BLEU of random weights after "
        f"{STEPS} steps says that texts were written and scored, and nothing else."
    )
    return table_page(str(__doc__).split("\n", 1)[0], __doc__, head, rows, note)


if __name__ == "__main__":
    main()
