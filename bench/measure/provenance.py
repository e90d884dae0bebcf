"""What made a record: revisions, versions, devices. Imports neither torch nor ray."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.schema.record import Provenance

# The sources that make the numbers of a record from its specification. Left out are those that decide which trials run,
# where and when (config, driver, launch, tuning), those that read or write records (store, report, statistics), and the
# forecast, which is no part of an answer (plan).
ANSWERING = (
    "bench/decode",
    "bench/lane_rows.py",
    "bench/measure",
    "bench/method.py",
    "bench/metrics",
    "bench/models",
    "bench/optimizers",
    "bench/plugins",
    "bench/quantized",
    "bench/rank",
    "bench/schema",
    "bench/shards",
    "bench/task.py",
    "bench/tasks",
    "bench/train",
    "methods",
)
SOURCE_ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "ray",
    "datasets",
    "sacrebleu",
    "rouge-score",
    "numpy",
    "safetensors",
)
# Variables that change speed, memory or the visible devices and cannot hold a secret. No others are recorded.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "GLOO_SOCKET_IFNAME",
    "HF_HUB_OFFLINE",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
)


def installed_version(package: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_sha256() -> str:
    """Hash of the Python sources that change an answer or its cost, see :data:`ANSWERING`."""
    return sources_sha256(*ANSWERING)


@functools.cache
def sources_sha256(*places: str) -> str:
    """Hash of Python sources: their content and their paths below the folder that holds the package.

    Args:
        places: Files and folders such as ``bench/train``. None given: all of ``bench`` and ``methods``, on which driver
            and ranks must agree.

    Raises:
        FileNotFoundError: There is no such file or folder.
    """
    digest = hashlib.sha256()
    for place in sorted(places) or ("bench", "methods"):
        # On a cluster the two packages may have come separately, and lie in folders of their own.
        root = Path(next(iter(importlib.import_module(place.partition("/")[0]).__path__))).parent
        if not (root / place).exists():
            raise FileNotFoundError(f"{root / place}: sources of Tuneoff are missing; install it again")
        files = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py"))
        for path in files:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def collect(device: str, threads: int | None, packages: Sequence[str] = ()) -> Provenance:
    """Provenance as seen from this process.

    Args:
        device: Its name.
        threads: Of a rank.
        packages: Of which the version counts beside those that every trial uses.
    """
    # Sources in an environment that lies in somebody's repository are of no commit of it, and git then fails.
    of_sources = _git("rev-parse", "HEAD", "HEAD:./bench/measure/provenance.py")
    revision = None if of_sources is None else of_sources.split()[0]
    status = _git("status", "--porcelain", "--", *ANSWERING)
    found = {package: installed_version(package) for package in (*PACKAGES, *packages)}
    return Provenance(
        tuneoff_version=installed_version("tuneoff") or "not installed",
        code_sha256=code_sha256(),
        git_revision=revision,
        git_dirty=bool(status) if revision is not None and status is not None else None,
        python_version=platform.python_version(),
        package_versions={package: text for package, text in found.items() if text is not None},
        device=device,
        cpu_cores=os.cpu_count() or 1,
        threads_per_rank=threads,
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Model name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(SOURCE_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
