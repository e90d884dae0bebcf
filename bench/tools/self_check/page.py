"""Runs the self-check of a device and writes the results as JSON and as a Markdown table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.measure.provenance import cpu_name, sources_sha256
from bench.plan.devices import CONTEXT_BYTES, known_gpu
from bench.schema.digests import slug
from bench.schema.record import TrialResult
from bench.schema.validation import ConfigError
from bench.tools.self_check.ground import SIZES
from bench.tools.self_check.trials import DeviceKind, Trials, variants
from bench.tools.self_check.verdicts import Shown, shown


def kind_of(device: str) -> DeviceKind:
    """The kind of device to measure: for ``auto`` a GPU if there is one, else the CPU.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise ConfigError(f"--device {device}: give auto, cuda or cpu")
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; `tuneoff doctor` says why, --device cpu tries a CPU")
    return "cuda"


def device_name(kind: DeviceKind) -> str:
    """The name that its maker gives it."""
    return torch.cuda.get_device_name(0) if kind == "cuda" else cpu_name()


def folder_name(kind: DeviceKind) -> str:
    """``measure-h200``, ``measure-cpu``."""
    if kind == "cpu":
        return "measure-cpu"
    known = known_gpu(device_name(kind))
    return f"measure-{known.name if known is not None else slug(device_name(kind), length=40).lower()}"


def measure(kind: DeviceKind, folder: Path, tell: Callable[[Shown], None], only: Container[str] | None = None) -> bool:
    """Measure everything and write ``measure.json`` and ``measure.md``.

    Args:
        kind: Of device.
        folder: Where the files go.
        tell: Gets each result as soon as it is known.
        only: Names of variants; None: all.

    Returns:
        Whether everything works as it should.
    """
    lines: list[Shown] = []
    records: dict[str, list[TrialResult]] = {}
    began = time.monotonic()

    def add(line: Shown) -> None:
        lines.append(line)
        tell(line)

    trials = Trials(kind, SIZES[kind])
    try:
        if kind == "cuda":
            add(_context())
        for variant in variants(kind, trials.devices, trials.size):
            if only is not None and variant.name not in only:
                continue
            if not variant.without:
                records[variant.name] = trials.run(variant)
            for line in shown(variant, records):
                add(line)
    finally:
        trials.close()
    _write(kind, folder, lines, time.monotonic() - began)
    return not any(line.is_bad for line in lines)


def _context() -> Shown:
    """The GPU memory that is in use beside tensors, while this process alone computes there."""
    torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    taken = total - free - torch.cuda.memory_reserved()
    found = f"{taken / 2**20:,.0f} MiB are taken beside tensors; plans count {CONTEXT_BYTES / 2**20:,.0f} MiB"
    return Shown(what="context", verdict="measured", found=found, numbers={"bytes": taken})


def _write(kind: DeviceKind, folder: Path, lines: list[Shown], seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "device": device_name(kind),
        "devices": torch.cuda.device_count() if kind == "cuda" else 1,
        "torch": torch.__version__,
        "sources_sha256": sources_sha256(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
    }
    document = {**about, "size": vars(SIZES[kind]), "shown": [line.model_dump() for line in lines]}
    (folder / "measure.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    head = [
        f"# {about['device']}: what trials on it show",
        "",
        f"Made by `tuneoff doctor --measure --device {kind}` on {about['date']} in {seconds:.0f} s, "
        f"torch {torch.__version__}.",
        "",
        "| what | verdict | found |",
        "|---|---|---|",
    ]
    rows = [f"| {line.what} | {line.verdict} | {line.found.replace('|', '/')} |" for line in lines]
    (folder / "measure.md").write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
