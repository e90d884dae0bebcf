"""What oneDNN keeps of products in half precision: code for each shape, so that memory grows with distinct lengths.

PyTorch multiplies bf16 and fp16 on CPUs through oneDNN, which compiles code for each shape of a product and keeps it.
Products in fp32 go to MKL, which keeps nothing. As batches have many lengths, a training of some hundred steps comes to
the limit, and a short one does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bench.decode.batched import IDLE_FRACTION, READ_TOKENS, REFILL_FRACTION
from bench.plan.step_costs import StepCosts
from bench.plan.workload import MicroBatch, Workload
from bench.schema.trial import TrialSpec

# Of a product in bf16: torch 2.13 on a Xeon with AMX, by tests/programs/kernel_memory.py.
PRIMITIVE_BYTES = round(0.73 * 2**20)
# Of which oneDNN keeps those that were used last.
MOST_PRIMITIVES = 1024


class Kernels:
    """The bytes that are kept as a trial on a CPU goes on; they only grow.

    Args:
        spec: Of the trial, with the number of sources that are decoded at once.
        work: Its sizes.
        costs: Of its steps.
    """

    def __init__(self, spec: TrialSpec, work: Workload, costs: StepCosts) -> None:
        self._products = costs.products if _multiplied_by_onednn(spec) else None
        self._spec, self._work = spec, work
        ranks = spec.resources.ranks
        steps = range(0, len(work.micro_batches), work.accumulation)
        own = [micro for at in steps[::ranks] for micro in work.micro_batches[at : at + work.accumulation]]
        self._trained, self._trained_targets = _sizes(own)
        self._dev, self._test = work.dev_batches[::ranks], work.test_batches[::ranks]

    @property
    def in_training(self) -> float:
        """At the last step; dev losses are taken in between if they are taken more than once."""
        return self._bytes(self._dev if self._work.evaluations > 1 else ())

    @property
    def after_training(self) -> float:
        """With the last dev loss."""
        return self._bytes(self._dev)

    @property
    def with_test_loss(self) -> float:
        """Once the stored adapter's losses were taken."""
        return self._bytes((*self._dev, *self._test))

    @property
    def in_scoring(self) -> float:
        """Once the sources were decoded."""
        return self._bytes((*self._dev, *self._test), _calls_of_decoding(self._spec, self._work))

    def _bytes(self, evaluated: Iterable[MicroBatch], calls_of_decoding: int = 0) -> float:
        found = self._products
        if found is None:
            return 0.0
        lengths, targets = _sizes(evaluated)
        count = found.fixed
        count += found.of_length * len(self._trained) + found.of_targets * len(self._trained_targets)
        count += found.forward * len(lengths - self._trained)
        count += len(targets - self._trained_targets) + (found.forward + 1) * calls_of_decoding
        return float(PRIMITIVE_BYTES * min(MOST_PRIMITIVES, count))


def _multiplied_by_onednn(spec: TrialSpec) -> bool:
    """Whether this processor multiplies in a half precision of the trial through oneDNN."""
    used, onednn = {spec.resources.precision, spec.model.quantization_compute}, torch.ops.mkldnn
    in_bf16 = "bf16" in used and onednn._is_mkldnn_bf16_supported()
    return bool(in_bf16 or ("fp16" in used and onednn._is_mkldnn_fp16_supported()))


def _sizes(batches: Iterable[MicroBatch]) -> tuple[set[int], set[int]]:
    """The distinct numbers of tokens, and of target tokens."""
    batches = list(batches)
    return {batch.padded_tokens for batch in batches}, {batch.target_tokens for batch in batches}


def _calls_of_decoding(spec: TrialSpec, work: Workload) -> int:
    """How many calls of the model have another number of tokens: to read sources, and to go on with fewer rows."""
    sources = -(-work.decoded_sources // spec.resources.ranks)
    rows = min(sources, spec.decode.padded_batch_size)
    if not rows:
        return 0
    calls = -(-round(rows * work.source_tokens) // READ_TOKENS)
    calls += -(-(sources - rows) // max(1, round(REFILL_FRACTION * rows)))
    while rows:
        calls += 1
        rows -= int(IDLE_FRACTION * rows) + 1
    return calls
