"""The self-check of a device, on the processor: what it tries, what it says, and when it is not content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import completed, record, trial

from bench.schema.record import Failed
from bench.schema.validation import ConfigError
from bench.tools.self_check.ground import SIZES
from bench.tools.self_check.page import kind_of, measure
from bench.tools.self_check.trials import PLAIN, Variant, variants
from bench.tools.self_check.verdicts import Shown, shown


def test_trials_run_and_what_they_show_is_written(tmp_path: Path) -> None:
    shown_lines: list[Shown] = []
    assert measure("cpu", tmp_path / "out", shown_lines.append, only=(PLAIN, "fp16"))
    lines = {line.what: line for line in shown_lines}
    assert lines["fp16: training beside fp32"].verdict == "as it should be"
    assert 0 < lines["fp16: training beside fp32"].numbers["largest_difference"] < 0.05
    assert lines["fp32: decoding"].numbers["tokens_per_second"] > 0
    assert lines["fp32: forecast"].numbers["planned_bytes"] > 0
    document = json.loads((tmp_path / "out" / "measure.json").read_text())
    assert [Shown.model_validate(line) for line in document["shown"]] == shown_lines
    page = (tmp_path / "out" / "measure.md").read_text()
    assert all(f"| {line.what} | {line.verdict} |" in page for line in shown_lines)


@pytest.mark.full
def test_everything_is_tried_on_a_cpu(tmp_path: Path) -> None:
    shown_lines: list[Shown] = []
    assert measure("cpu", tmp_path, shown_lines.append), [line for line in shown_lines if line.is_bad]
    assert [line.what for line in shown_lines if line.verdict == "not tried"] == [
        "flash_attention_2",
        "flash_attention_3",
    ]
    (fused,) = [line.numbers for line in shown_lines if line.what.startswith("2 trials in one pass")]
    assert fused["largest_difference"] < 1e-4
    assert fused["trial_steps_per_second"] > 0


def test_all_that_only_a_gpu_can_show_is_named() -> None:
    one, two = ([variant for variant in variants("cuda", gpus, SIZES["cuda"])] for gpus in (1, 2))
    names = {variant.name for variant in two}
    assert {
        "bf16",
        "fp16",
        "flash_attention_2",
        "flash_attention_3",
        "nf4",
        "compiled",
        "8 trials in one pass",
        "ZeRO 3 on 2 ranks",
    } <= names
    without = {variant.name: variant.without for variant in one}
    assert without["ZeRO 2 on 2 ranks"] == "one GPU: NCCL needs two"
    assert not any(variant.without for variant in two if variant.name.startswith("ZeRO"))


def test_other_losses_and_failures_are_no_success() -> None:
    plain = record(trial("lora"), completed())
    assert plain.outcome.status == "completed"
    curve = [point.model_copy(update={"loss": 2 * point.loss + 1}) for point in plain.outcome.train_curve]
    other = plain.model_copy(update={"outcome": plain.outcome.model_copy(update={"train_curve": curve})})
    variant = Variant("compiled", {"compile": True})
    assert shown(variant, {PLAIN: [plain], "compiled": [plain]})[0].verdict == "as it should be"
    line = shown(variant, {PLAIN: [plain], "compiled": [other]})[0]
    assert line.verdict == "differs" and line.is_bad
    failed = record(trial("lora"), Failed(reason="error", message="no\nkernel", phase="train", rank=0))
    (line,) = shown(variant, {PLAIN: [plain], "compiled": [failed]})
    assert (line.verdict, line.found, line.is_bad) == ("failed", "no kernel", True)
    (line,) = shown(Variant("nf4", without="bitsandbytes is not installed"), {})
    assert (line.verdict, line.is_bad) == ("not tried", False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_error() -> None:
    assert kind_of("auto") == kind_of("cpu") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU here"):
        kind_of("cuda")
    with pytest.raises(ConfigError, match="give auto, cuda or cpu"):
        kind_of("tpu")
