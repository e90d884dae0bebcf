"""One contender in a process of its own: ``python -m race.contender``, with a job on standard input."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.schema.trial import Precision
from race.pacer import Pacer

# Attention on a CPU that copies no keys and values for the heads that share them, as ours does.
BEST_ENVIRONMENT = {"TRANSFORMERS_SDPA_FORCE_GQA": "1"}

Contender = Literal["tuneoff", "trainer", "trainer_best", "accelerate"]


@dataclass(frozen=True)
class Job:
    """What a contender trains, as JSON."""

    contender: Contender
    model: str  # folder
    method: str
    config: dict[str, Any]
    adapter: str | None  # folder with the start of the adapter, in our terms and in peft's; None trains all weights
    batches: str  # file with the pairs and the orders
    order: Literal["random", "grouped"]
    batch_size: int
    learning_rate: float
    bursts: list[int]
    threads: int
    lever_off: str | None = None  # one of race.ours.LEVERS
    compile: bool = False  # Tuneoff only
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """Of its row."""
        if self.precision != "fp32":
            return f"{self.contender} in {self.precision}"
        if self.compile:
            return f"{self.contender} with resources.compile"
        return self.contender if self.lever_off is None else f"{self.contender} without {self.lever_off}"

    def dumps(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Train as the first line of standard input says, at the pace that the other lines set."""
    job = Job(**json.loads(sys.stdin.readline()))
    if job.contender == "trainer_best":
        os.environ.update(BEST_ENVIRONMENT)  # of this process, which has no other job
    with os.fdopen(os.dup(1), "w") as reports:
        os.dup2(2, 1)  # What libraries print is no report.
        pacer = Pacer(job.bursts, sys.stdin, reports)
        pacer.report(losses=run(job, pacer))


def run(job: Job, pacer: Pacer) -> list[float]:
    """Train, and return the mean loss of each step."""
    import torch

    torch.set_num_threads(job.threads)
    batches = json.loads(Path(job.batches).read_text())
    pairs, order = batches["pairs"], batches[job.order][: pacer.steps]
    if job.contender == "tuneoff":
        from race import ours

        return ours.train(job, pairs, order, pacer)
    from transformers import AutoTokenizer

    from race import peers

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    best = job.contender == "trainer_best"
    model = peers.load(job.model, None if job.adapter is None else Path(job.adapter), job.precision if best else "fp32")
    pacer.loaded(model)
    data = peers.rows(pairs, order)
    if job.contender == "accelerate":
        return peers.train_with_accelerate(model, tokenizer, data, job, pacer)
    flags = {"bf16": job.precision == "bf16"}
    if best:
        flags |= peers.BEST_FLAGS
    return peers.train_with_trainer(model, tokenizer, data, job, pacer, flags)


if __name__ == "__main__":
    main()
