"""DeepSpeed as ranks use it, the compiler, and devices. Looked at in a process of its own, as ranks are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.doctor.finding import Finding, ok, problem, warning
from bench.launch.rank_host import clean_environment
from bench.measure.provenance import cpu_flags, cpu_name, usable_cores
from bench.schema.trial import JsonDict

LOOK_TIMEOUT_SECONDS = 180.0
# Flags of a CPU that multiplies matrices in bf16, with what people call the units.
BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
# The lock of a build that is older than this was left by a process that was killed.
STALE_LOCK_SECONDS = 1800.0

# The printed line is the last one: libraries print while they are imported.
LOOK = """
import json, os, sys, torch
found = {"torch": torch.__version__, "cuda_build": torch.version.cuda, "devices": [], "gloo": False, "nccl": False}
for index in range(torch.cuda.device_count()):
    try:
        (torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 64, device=f"cuda:{index}")).sum().item()
        free, total = torch.cuda.mem_get_info(index)
        device = {"free": free, "total": total, "bf16": torch.cuda.is_bf16_supported(), "error": None}
    except RuntimeError as error:
        device = {"error": str(error).splitlines()[0]}
    found["devices"].append({"name": torch.cuda.get_device_name(index), **device})
found["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
found["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
if not found["devices"]:
    os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.all_ops import ALL_OPS
found["accelerator"] = get_accelerator().device_name()
found["ops"] = sorted(ALL_OPS)
print("\\n" + json.dumps(found))
"""


def look(command: str = LOOK) -> JsonDict | str:
    """What a fresh process with the variables of a rank sees of torch and DeepSpeed, or how it failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", command],
            env=clean_environment({}),
            capture_output=True,
            text=True,
            timeout=LOOK_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not finish within {LOOK_TIMEOUT_SECONDS:g} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1]
    seen: JsonDict = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


def check_deepspeed(seen: JsonDict | str) -> list[Finding]:
    """It can be imported, and works on the device that torch sees."""
    if isinstance(seen, str):
        return [
            problem("DeepSpeed", f"importing torch and deepspeed: {seen}", "install both again in this environment")
        ]
    device = "cuda" if seen["devices"] else "cpu"
    if seen["accelerator"] != device:
        found = f"works on {seen['accelerator']}, while torch has {device}"
        return [problem("DeepSpeed", found, "unset DS_ACCELERATOR")]
    if not seen["gloo"] or (device == "cuda" and not seen["nccl"]):
        missing = "gloo" if not seen["gloo"] else "NCCL"
        return [problem("DeepSpeed", f"this build of torch has no {missing}", "install the build of torch from PyPI")]
    return [ok("DeepSpeed", f"works on {device}; none of its {len(seen['ops'])} compiled ops is needed")]


def check_compile_locks(folder: Path | None = None, now: Callable[[], float] = time.time) -> list[Finding]:
    """Locks of builds whose process was killed: whoever builds next waits for them without end."""
    folder = folder or extensions_folder()
    stale = [path for path in folder.glob("*/**/lock") if now() - path.stat().st_mtime > STALE_LOCK_SECONDS]
    if stale:
        names = " ".join(map(str, stale))
        return [warning("DeepSpeed ops", f"abandoned locks of builds: {names}", f"rm {names}")]
    return [ok("DeepSpeed ops", f"no abandoned lock of a build in {folder}")]


def extensions_folder() -> Path:
    """The folder of torch's compiled extensions."""
    override = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(override) if override else Path("~/.cache/torch_extensions").expanduser()


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> list[Finding]:
    """A C++ compiler, which ``resources.compile`` needs, and ninja: a plugin may need both."""
    compiler = os.environ.get("CXX") or "g++"
    missing = [name for name in (compiler, "ninja") if which(name) is None]
    if missing:
        remedy = (
            "install g++ and ninja (Debian: g++, ninja-build): resources.compile needs the compiler, and a plugin "
            "may need both; nothing else does"
        )
        return [warning("compiler", f"not found: {', '.join(missing)}", remedy)]
    return [ok("compiler", f"{which(compiler)}, {which('ninja')}")]


def check_devices(seen: JsonDict | str, which: Callable[[str], str | None] = shutil.which) -> list[Finding]:
    """Each GPU computes and is free; without one, the CPU."""
    if isinstance(seen, str):
        return []  # check_deepspeed has said why
    if not seen["devices"]:
        if which("nvidia-smi") is not None:
            build = f"was built for CUDA {seen['cuda_build']}" if seen["cuda_build"] else "was built without CUDA"
            remedy = "install the CUDA build of torch that fits the driver: nvidia-smi prints its version"
            return [
                warning("devices", f"there is nvidia-smi, but torch {seen['torch']} {build} and sees no GPU", remedy)
            ]
        return [ok("devices", f"no GPU; {usable_cores()} CPU cores, {cpu_name()}; {_bf16_units(cpu_flags())}")]
    return [_device(index, device) for index, device in enumerate(seen["devices"])]


def _bf16_units(flags: frozenset[str]) -> str:
    """Whether a CPU multiplies in bf16 itself, without which that precision is slower than fp32."""
    units = [name for flag, name in BF16_UNITS.items() if flag in flags]
    if units:
        return f"units for bf16: {', '.join(units)}"
    return "no units for bf16 (AMX, AVX512-BF16), so that precision: bf16 saves memory and no time"


def _device(index: int, device: JsonDict) -> Finding:
    name = f"device cuda:{index}"
    if device["error"] is not None:
        return problem(
            name, f"{device['name']}: {device['error']}", "see what nvidia-smi says; reset or exclude the GPU"
        )
    used, total = (device["total"] - device["free"]) / 2**30, device["total"] / 2**30
    # The context of the process that looked takes some hundred MiB.
    if used > 1.5 and used / total > 0.02:
        remedy = "end what nvidia-smi shows on it: other programs distort times and take memory"
        return warning(name, f"{device['name']}: {used:.1f} of {total:.0f} GiB are taken", remedy)
    if not device["bf16"]:
        return warning(name, f"{device['name']}: {total:.0f} GiB, no bf16", "set resources.precision: fp32")
    return ok(name, f"{device['name']}: {total - used:.0f} of {total:.0f} GiB free")
