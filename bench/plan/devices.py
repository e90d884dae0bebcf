"""Devices that a sweep can be planned for: a small table, and the processor at hand, which is measured.

Numbers are those of the makers' data sheets: dense (without sparsity), at the boost clock.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench.measure.device_memory import host_memory
from bench.measure.provenance import cpu_name, usable_cores
from bench.models.base import weights_dtype
from bench.schema.trial import Precision, TrialSpec

GIB = 2**30
PLAIN: Precision = "fp32"
# The rest of the memory is for workspaces of libraries and gaps of the allocator.
MOST_USED_FRACTION = 0.9
# Of every process that computes on a GPU: the driver's context and the kernels that torch loads. Of one that exchanges
# messages besides: the buffers of NCCL, 4 MiB for each of up to 32 channels, both ways and for two protocols. Both are
# assumptions for torch 2.13 on recent GPUs; `tuneoff doctor --measure` says what they are on yours.
CONTEXT_BYTES, MESSAGE_BYTES = 600 * 2**20, 512 * 2**20


@dataclass(frozen=True)
class Device:
    """What the planner knows of a device.

    ``efficiency`` is the share of the peak that the matrix products of a training step reach, ``kernel_seconds`` what
    one operation costs the host in eager mode. For GPUs both are assumptions, which ``--calibrate`` replaces.
    """

    name: str
    kind: str  # cuda or cpu
    flops_per_second: dict[str, float]  # by precision
    bytes_per_second: float
    memory_bytes: int
    source: str
    efficiency: float = 0.4
    kernel_seconds: float = 15e-6
    step_seconds: float = 3e-3  # of the DeepSpeed engine, whatever the model
    start_seconds: float = 20.0  # processes, imports, weights
    link_bytes_per_second: float = 1e9  # to and from another rank of the same machine, each way; gloo's on CPUs
    host_bytes_per_second: float = 25e9  # to and from the host's memory, each way: PCIe 4 or 5, in practice
    cores: int = 1  # of a CPU

    def share_bytes(self, spec: TrialSpec) -> float:
        """What one rank may use of its memory.

        The ranks of all trials that run at once share that of a machine, and trials that of a GPU if they say so.
        """
        resources = spec.resources
        on_gpu = self.kind == "cuda"
        share = resources.gpus_per_rank if on_gpu else 1 / (resources.ranks * self.trials_at_once(spec))
        return MOST_USED_FRACTION * share * self.memory_bytes

    def trials_at_once(self, spec: TrialSpec) -> int:
        """How many trials like this one a CPU runs side by side, as :mod:`bench.launch.capacity` seats them."""
        resources = spec.resources
        alone = resources.cpus_per_rank is None or resources.exclusive == "node" or spec.stage == "cost"
        return 1 if alone else max(1, self.cores // (resources.ranks * (resources.cpus_per_rank or 1)))

    def taken_bytes(self, ranks: int) -> int:
        """Of its memory what is no tensor: the context, and buffers for messages if a trial has several ranks."""
        if self.kind != "cuda":
            return 0
        return CONTEXT_BYTES + (MESSAGE_BYTES if ranks > 1 else 0)


def _gpu(
    name: str, bf16: float, fp32: float, terabytes_per_second: float, gibibytes: int, link: float, source: str
) -> Device:
    peak = {"bf16": bf16 * 1e12, "fp16": bf16 * 1e12, "fp32": fp32 * 1e12}
    bandwidth = terabytes_per_second * 1e12
    return Device(
        name, "cuda", peak, bandwidth, gibibytes * GIB, source, link_bytes_per_second=LINK_EFFICIENCY * link * 1e9
    )


# The share of a link's rate that collective operations on large messages reach: an assumption, as `efficiency` is.
LINK_EFFICIENCY = 0.7

# Teraflops in bf16 or fp16 with fp32 accumulation and in plain fp32 (TF32 is off by default in PyTorch), terabytes per
# second, GiB, gigabytes per second to a neighbour each way (NVLink, or PCIe where there is none).
DEVICES = {
    device.name: device
    for device in (
        _gpu("h200", 989, 67, 4.8, 141, 450, "NVIDIA H200 data sheet, SXM"),
        _gpu("h100", 989, 67, 3.35, 80, 450, "NVIDIA H100 data sheet, SXM5"),
        _gpu("a100-80gb", 312, 19.5, 2.04, 80, 300, "NVIDIA A100 data sheet, SXM4 80 GB"),
        _gpu("a100-40gb", 312, 19.5, 1.56, 40, 300, "NVIDIA A100 data sheet, SXM4 40 GB"),
        _gpu("l40s", 362, 91.6, 0.864, 48, 32, "NVIDIA L40S data sheet"),
        _gpu("l4", 121, 30.3, 0.3, 24, 32, "NVIDIA L4 data sheet"),
        _gpu("a10g", 70, 35, 0.6, 24, 32, "AWS G5 and NVIDIA A10 data sheets"),
        _gpu("rtx4090", 165, 82.6, 1.01, 24, 32, "NVIDIA Ada GPU architecture white paper"),
    )
}


def find_device(name: str) -> Device:
    """A device of the table.

    Raises:
        ValueError: It is not there.
    """
    try:
        return DEVICES[name.lower()]
    except KeyError as error:
        raise ValueError(f"--device {name}: not in the table; known: {', '.join(DEVICES)}, or local") from error


# The rate of a CPU's products is the best of so many windows, or of as many as take so long.
WINDOWS, WINDOW_SECONDS, MOST_SECONDS = 10, 0.02, 2.0
# Tokens of the products that are timed are a multiple of the first.
PROBED_TOKENS, MOST_PROBED_TOKENS = 64, 4096

# Words in the names of GPUs that have less than the GPU of the table: slices, and chips of portable computers.
LESSER = {"mig", "laptop", "mobile"}


def known_gpu(name: str) -> Device | None:
    """The entry of the table that a GPU's own name fits, e.g. ``NVIDIA H100 80GB HBM3``.

    A name fits by whole words: an L40 is no L4, and a GH200 no H200.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    if LESSER.intersection(words):
        return None
    joined = {*words, *map("".join, itertools.pairwise(words))}  # GeForce RTX 4090
    fitting = [device for device in DEVICES.values() if device.name in joined]
    if not fitting and "a100" in words:
        fitting = [DEVICES["a100-80gb" if "80gb" in words else "a100-40gb"]]
    return next(iter(fitting), None)


def this_cpu() -> Device:
    """This machine's processor, whose rates are not known."""
    return Device(
        name=cpu_name(),
        kind="cpu",
        flops_per_second={},
        bytes_per_second=math.inf,
        memory_bytes=host_memory(),
        source="not measured",
        kernel_seconds=10e-6,
        cores=usable_cores(),
    )


def measured_cpu(threads: int, *precisions: Precision, tokens: int = 512) -> Device:
    """This machine's processor: rate of matrix products and of copies, measured with so many threads.

    Args:
        threads: How many.
        precisions: Those that something is computed in, each of which takes its time to measure; fp32 if none is named.
        tokens: Of a micro-batch, rounded so that trials of about the same length share a measurement.
    """
    rounded = PROBED_TOKENS * max(1, round(min(tokens, MOST_PROBED_TOKENS) / PROBED_TOKENS))
    return _measured_cpu(threads, precisions or (PLAIN,), rounded)


@functools.cache
def _measured_cpu(threads: int, precisions: Sequence[Precision], tokens: int) -> Device:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # A processor without units for bf16 or fp16 is far slower in it than in fp32, and one with them faster.
        flops: dict[str, float] = {
            precision: _matrix_rate(weights_dtype(precision), tokens) for precision in precisions
        }
        bandwidth = _copy_rate()
    finally:
        torch.set_num_threads(before)
    # Shapes of a training step reach less than the probe; the host's own work hides behind nothing.
    return replace(
        this_cpu(), flops_per_second=flops, bytes_per_second=bandwidth, source="measured here", efficiency=0.75
    )


def _matrix_rate(dtype: torch.dtype, tokens: int) -> float:
    """FLOPs per second of the products of a small model's layer, forward and back to its input.

    The best of several short windows: what else runs on the machine slows most of them.
    """
    width, inner = 768, 2048
    weight = torch.full((inner, width), 0.5, dtype=dtype)
    states, gradient = torch.full((tokens, width), 0.5, dtype=dtype), torch.full((tokens, inner), 0.5, dtype=dtype)
    best, begun = 0.0, time.perf_counter()
    for window in range(1 + WINDOWS):  # the first compiles and warms up
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < WINDOW_SECONDS or not done:
            torch.mm(states, weight.T)
            torch.mm(gradient, weight)
            done += 1
        if window:
            best = max(best, done * 4.0 * tokens * width * inner / elapsed)
            if time.perf_counter() - begun > MOST_SECONDS:
                break
    return best


def _copy_rate() -> float:
    """Bytes read and written per second."""
    source = torch.zeros(16 * 2**20)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    for _ in range(3):
        target.copy_(source)
    return 3 * 2.0 * source.nbytes / (time.perf_counter() - started)
