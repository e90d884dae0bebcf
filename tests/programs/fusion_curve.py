"""How much faster K trials train in one pass than one after the other: a curve over K, for several batch sizes.

``PYTHONPATH=.:tests/support python tests/programs/fusion_curve.py`` prints a table and writes it, with all figures, to
``results/fusion/report/``. It takes about two minutes on a quiet machine. The model is shaped like a small Llama and
has random weights; the lengths of its texts spread like those of E2E. What is compared are useful tokens per second
over all trials, in the training loop alone: the start of processes and loading, which trials in one pass share as
well, are left out.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from one_rank import join_alone, training_alone

from bench.measure.provenance import cpu_name
from bench.models.architecture import Pair
from bench.plugins.registry import load_method, targets
from bench.schema.trial import TrainSpec
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Lane

OUT = Path(__file__).resolve().parents[2] / "results" / "fusion" / "report"
COUNTS = (1, 2, 4, 8)
STEPS = 8  # the first four are warm-up
REPETITIONS = 3
VOCABULARY = 4096
# Data order of the trials (equal seeds have equal batches, which need no more padding together than alone), batch size.
CASES = (("the same", 1), ("the same", 2), ("the same", 8), ("their own", 2))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def base_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def pairs(count: int) -> list[Pair]:
    """Texts of 57 tokens on average, 12 of spread, two fifths of them targets."""
    generator = random.Random(0)

    def ids(mean: float, spread: float) -> list[int]:
        return [generator.randrange(2, VOCABULARY) for _ in range(max(4, round(generator.gauss(mean, spread))))]

    return [Pair(ids(32, 8), ids(25, 9)) for _ in range(count)]


def tokens_per_second(count: int, batch_size: int, own_orders: bool, data: list[Pair]) -> float:
    """Useful tokens of all trials, in the steady steps."""
    method_class = load_method(targets("method")["prefix_tuning"])
    train = TrainSpec(learning_rate=1e-3, steps=STEPS, batch_size=batch_size)
    lanes = []
    for number, model in enumerate(copies_sharing_weights(base_model(), count)):
        method = method_class(method_class.Config(num_prompt_tokens=5, init="normal"))
        seed = number if own_orders else 0
        lanes.append(Lane(method, method.patch(model), train, seed, lambda event: None))
    training = training_alone(lanes, device())
    rates = [result.cost.tokens_per_second for result in training.run(data, data[:2])]  # type: ignore[union-attr]
    return sum(rate for rate in rates if rate is not None)


def main() -> None:
    join_alone(Path(tempfile.mkdtemp(prefix="fusion-curve-")), device())
    data = pairs(8 * STEPS)
    found: dict[tuple[str, int, int], list[float]] = {}
    begun = time.perf_counter()
    for _ in range(REPETITIONS):
        for order, batch_size in CASES:
            for count in COUNTS:
                rate = tokens_per_second(count, batch_size, order == "their own", data)
                found.setdefault((order, batch_size, count), []).append(rate)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    lines = [
        f"{name}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; useful "
        f"tokens per second of K trials together over those of one, medians of {REPETITIONS}",
        "",
        f"| data order of the trials | batch size | {' | '.join(f'K = {count}' for count in COUNTS)} |",
        f"|---|---|{'---|' * len(COUNTS)}",
    ]
    for order, batch_size in CASES:
        rates = [statistics.median(found[order, batch_size, count]) for count in COUNTS]
        gains = " | ".join(f"{rate / rates[0]:.2f}" for rate in rates)
        lines.append(f"| {order} | {batch_size} | {gains} |")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "curve.md").write_text("\n".join(lines) + "\n")
    figures = [
        {"order": order, "batch_size": batch_size, "trials": count, "tokens_per_second": rates}
        for (order, batch_size, count), rates in found.items()
    ]
    (OUT / "curve.json").write_text(json.dumps({"device": name, "measured": figures}, indent=1) + "\n")
    lines.append(f"\n{time.perf_counter() - begun:.0f} s")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
