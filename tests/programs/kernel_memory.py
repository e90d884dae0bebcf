"""What oneDNN keeps of a product in half precision on this CPU: bench.plan.kernels.PRIMITIVE_BYTES comes from here.

``OMP_NUM_THREADS=1 python tests/programs/kernel_memory.py [bf16|fp16|fp32]``, on Linux, some seconds: products of a
small model's layers at many lengths, forward and backward. Prints how much memory stays of each.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

LAYERS = ((576, 576), (192, 576), (1536, 576), (576, 1536))  # out and in of SmolLM2-135M
TOKENS = range(160, 400, 4)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resident_bytes() -> int:
    """Of this process, without what glibc can give back."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def kept_bytes(dtype: torch.dtype) -> float:
    """Of one product."""
    weights = [torch.randn(shape).to(dtype) for shape in LAYERS]
    before = 0
    for tokens in (8, *TOKENS):
        for weight in weights:
            torch.mm(torch.randn(tokens, weight.shape[1]).to(dtype), weight.T)
            torch.mm(torch.randn(tokens, weight.shape[0]).to(dtype), weight)
        before = before or resident_bytes()
    return (resident_bytes() - before) / (2 * len(LAYERS) * len(TOKENS))


if __name__ == "__main__":
    dtype = DTYPES[sys.argv[1] if len(sys.argv) > 1 else "bf16"]
    print(f"{kept_bytes(dtype) / 2**20:.3f} MiB per product in {dtype}, torch {torch.__version__}")  # noqa: T201
