"""Base models load safely and once; time and memory land in the phase that spent them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.measure.phases import PhaseMeter, StepClock, percentile, steady_start
from bench.models.base import ModelError, empty_model, load_model, load_tokenizer, weights_sha256
from bench.rank.context import RankContext, failure_reason
from bench.rank.trial import run_rank
from bench.schema.record import Failed
from bench.schema.trial import ModelSpec

CPU = torch.device("cpu")
MEBIBYTE = 2**20

CONVERT = """
import gguf
from bench.models.base import embedded_model, load_config
from bench.schema.trial import ModelSpec
read, parse = [], gguf.GGUFReader
def counted(path):
    read.append(path)
    return parse(path)
gguf.GGUFReader = counted
assert load_config(ModelSpec()) == load_config(ModelSpec()) is not load_config(ModelSpec())
assert len(read) <= 1, "of a file that takes seconds, for each method of a sweep and more than once"
read.clear()
print(embedded_model())
assert len(read) <= 1 and gguf.GGUFReader is counted, read
"""
SPEAK = """
import torch
from bench.models.base import load_model, load_tokenizer
from bench.schema.trial import ModelSpec
model, tokenizer = load_model(ModelSpec(), torch.float32), load_tokenizer(ModelSpec())
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=3, do_sample=False)[0]))
"""


def test_the_embedded_model_is_converted_once_though_two_processes_race(tmp_path: Path) -> None:
    environment = {**os.environ, "TUNEOFF_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen([sys.executable, "-c", task], env=environment, stdout=subprocess.PIPE, text=True)
        for task in (CONVERT, CONVERT + SPEAK)
    ]
    for racer in racers:
        output, _ = racer.communicate(timeout=280)
        assert racer.returncode == 0
        assert Path(output.splitlines()[0]).parent == tmp_path / "models"
    assert "The capital of France is Paris" in output, "of the one that speaks"
    (converted,) = (tmp_path / "models").iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in converted.iterdir()}
    assert "quantization_config" not in (converted / "config.json").read_text()


def test_a_local_folder_loads_frozen_and_is_known_by_its_content(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    spec = ModelSpec(path=str(tiny_models["llama"]))
    model = load_model(spec, torch.float32)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_tokenizer(spec).pad_token_id == 0
    assert weights_sha256(spec) != weights_sha256(ModelSpec(path=str(tiny_models["gpt2"])))
    assert sum(p.numel() for p in empty_model(spec).parameters()) == sum(p.numel() for p in model.parameters())


def test_a_tokenizer_without_an_end_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    for path in tiny_models["llama"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "<end>"', '"eos_token": null'))
    with pytest.raises(ModelError, match="has no end token"):
        load_tokenizer(ModelSpec(path=str(tmp_path)))


def test_time_and_memory_belong_to_the_inner_phase() -> None:
    meter = PhaseMeter(CPU)
    with meter.phase("train"):
        time.sleep(0.05)
        with meter.phase("validate"):
            block = torch.ones(64 * MEBIBYTE)  # 256 MiB, touched
            del block
            time.sleep(0.2)
        time.sleep(0.05)
    cost = meter.rank_cost(0, "Testium 9000")
    train, validate = cost.phases["train"], cost.phases["validate"]
    assert 0.1 <= train.seconds < 0.2 <= validate.seconds
    if cost.memory_method == "vm_hwm":
        assert validate.peak_memory_bytes - validate.start_memory_bytes > 200 * MEBIBYTE
        assert train.peak_memory_bytes < validate.peak_memory_bytes - 100 * MEBIBYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap of glibc")
def test_a_phase_is_not_charged_for_what_an_earlier_one_has_freed() -> None:
    meter = PhaseMeter(CPU)
    before = meter.memory.now()
    blocks = [torch.ones(25_000) for _ in range(1500)]  # 100 kB each: of the heap, not mapped by themselves
    pins = blocks[::100]  # and the heap's end stays in use, so that glibc itself returns nothing
    pins.append(blocks[-1])
    del blocks
    assert meter.memory.now() - before > 100 * MEBIBYTE
    with meter.phase("decode"):
        pass
    assert meter.phases["decode"].start_memory_bytes - before < 30 * MEBIBYTE
    assert len(pins) == 16


def test_a_failure_names_the_phase_it_happened_in() -> None:
    meter = PhaseMeter(CPU)
    with pytest.raises(ValueError, match="x"), meter.phase("train"), meter.phase("validate"):
        raise ValueError("x")
    assert meter.current == "validate"


def test_the_step_clock_leaves_pauses_out() -> None:
    clock = StepClock(CPU)
    clock.resume()
    time.sleep(0.02)
    clock.tick()
    time.sleep(0.3)
    clock.resume()
    time.sleep(0.02)
    clock.tick()
    assert len(clock.durations()) == 2
    assert sum(clock.durations()) < 0.2


@pytest.mark.parametrize(("steps", "start"), [(1, 0), (4, 2), (10, 5), (40, 5), (200, 20)])
def test_the_steady_window(steps: int, start: int) -> None:
    assert steady_start(steps) == start


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.9) == pytest.approx(9.0)


def test_reasons_of_failures() -> None:
    assert failure_reason(torch.cuda.OutOfMemoryError("x")) == "out_of_memory"
    assert failure_reason(MemoryError()) == "out_of_memory"
    assert failure_reason(RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")) == "out_of_memory"
    assert failure_reason(RuntimeError("shape mismatch")) == "error"
    full = ModelError("model.path: it cannot be loaded")
    full.__cause__ = OSError(28, "No space left on device")
    assert failure_reason(full) == "worker_lost", "as what it was raised from"


def test_a_rank_with_other_sources_refuses(tmp_path: Path) -> None:
    from fakes import trial

    report = run_rank(trial(), RankContext(0, 1, 0, None, tmp_path, "other", 1))
    assert isinstance(report.outcome, Failed)
    assert "other sources of bench and methods than the driver" in report.outcome.message
