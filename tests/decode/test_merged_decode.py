"""Merged and unmerged decoding: equal texts, alternating order, and the column of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import disturb
from fakes import completed, probed, record, trial
from test_report import content, results

from bench import report
from bench.decode import merged
from bench.decode.generate import Decoded, generate
from bench.decode.merged import decode_both_ways, over_ranks
from bench.method import MethodError
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.report.column import ABSENT
from bench.report.data import json_text
from bench.report.page import html
from bench.schema.record import DecodeCost, MergedDecode, TrialResult
from bench.schema.trial import DecodeSpec, ModelSpec
from methods.ia3 import IA3
from methods.lora import LoRA

COLUMN = "decode time merged, x unmerged"
CPU = torch.device("cpu")


def cost(sources: int, new_tokens: int, seconds: float) -> DecodeCost:
    rate = new_tokens / seconds if seconds else None
    return DecodeCost(sources=sources, new_tokens=new_tokens, tokens_per_second=rate, seconds=seconds)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_merged_and_unmerged_write_the_same_texts_in_turns(
    family: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_models[family]))
    tokenizer, base = load_tokenizer(spec), load_model(spec, torch.float32)
    sources = [
        tokenizer(f"{name} lives in {city}")["input_ids"]
        for name in ("Ann", "Bob")
        for city in ("Rome", "Oslo", "Bonn")
    ]
    settings = DecodeSpec(beams=2, max_new_tokens=12, batch_size=2)
    architecture = architecture_of(base.config)
    untouched = generate(base, tokenizer, architecture, sources, settings, CPU, 0, 1).texts
    method = LoRA(LoRA.Config(target_modules="all_linear"))
    torch.manual_seed(0)
    model: Any = method.patch(base).eval()
    disturb(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    turns: list[str] = []
    written: list[str] = []

    def spied(patched: Any, *arguments: Any, **more: Any) -> Decoded:
        same = all(torch.equal(tensor, before[name]) for name, tensor in patched.state_dict().items())
        turns.append("unmerged" if same else "merged")
        decoded = generate(patched, *arguments, **more)
        written.extend(decoded.texts.values())
        return decoded

    monkeypatch.setattr(merged, "generate", spied)
    both_ways = decode_both_ways(method, model, tokenizer, architecture, sources, settings, CPU)
    assert both_ways.equal_texts == both_ways.merged.sources == both_ways.unmerged.sources == len(sources)
    assert both_ways.merged.new_tokens == both_ways.unmerged.new_tokens > 0
    assert both_ways.time_ratio is not None and both_ways.time_ratio > 0
    assert turns == ["merged", "unmerged", "unmerged", "merged", "merged", "unmerged"]
    assert set(written) != set(untouched.values()), "what is compared is not the base model with itself"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ranks_together_are_as_slow_as_the_slowest_and_one_may_have_no_source() -> None:
    both_ways = over_ranks(
        [
            MergedDecode(merged=cost(2, 20, 2.0), unmerged=cost(2, 22, 3.0), equal_texts=1),
            MergedDecode(merged=cost(1, 10, 1.0), unmerged=cost(1, 8, 6.0), equal_texts=1),
            MergedDecode(merged=cost(0, 0, 0.0), unmerged=cost(0, 0, 0.0), equal_texts=0),
        ]
    )
    assert (both_ways.merged, both_ways.unmerged, both_ways.equal_texts) == (cost(3, 30, 2.0), cost(3, 30, 6.0), 2)
    assert both_ways.time_ratio == pytest.approx(1 / 3)


def test_what_cannot_be_merged_says_so() -> None:
    assert LoRA(LoRA.Config()).mergeable
    method = IA3(IA3.Config())
    assert not method.mergeable
    for change in (method.merge, method.unmerge):
        with pytest.raises(MethodError, match="IA3 with these settings cannot be folded into the base weights"):
            change(torch.nn.Identity())


def lora_results() -> list[TrialResult]:
    """Two seeds, at 0.5 and 0.7 of the unmerged time."""
    pairs = [MergedDecode(merged=cost(8, 40, x), unmerged=cost(8, 40, 1.0), equal_texts=8) for x in (0.5, 0.7)]
    return [
        record(trial("lora", seed=seed), completed(55.0).model_copy(update={"merged_decode": pair}))
        for seed, pair in enumerate(pairs)
    ]


def test_reports_show_the_ratio_where_some_method_has_one() -> None:
    report_content = content(*results(), *lora_results())
    table = report.markdown(report_content).split("### What it gains for what it costs\n\n")[1].splitlines()
    assert table[0].endswith(f"| decode time, x base | {COLUMN} |")
    ratios = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in table[2:6]}
    assert ratios == {"full": ABSENT, "lora": "0.60", "prefix_tuning": ABSENT, "none": ABSENT}
    assert COLUMN in html(report_content, [[]], None)
    rows = json.loads(json_text(report_content))["comparisons"][0]["efficiency"]
    by_name = {row["cell"]: row["merged_decode_time_over_unmerged"] for row in rows}
    assert by_name.pop("lora") == pytest.approx(0.6)
    assert set(by_name.values()) == {None}
    frame = report.frame([*results(), *lora_results()]).set_index("method")["merged_decode_time_over_unmerged"]
    assert frame["lora"].tolist() == pytest.approx([0.5, 0.7])
    assert frame.drop("lora").isna().all()


def test_without_one_there_is_no_column() -> None:
    report_content = content(*results())
    assert COLUMN not in report.markdown(report_content)
    assert COLUMN not in html(report_content, [[]], None)


def test_the_stage_cost_tells_it_where_there_is_one() -> None:
    alone = MergedDecode(merged=cost(8, 40, 0.9), unmerged=cost(8, 40, 1.0), equal_texts=8)
    spec = trial("lora").model_copy(update={"stage": "cost"})
    report_content = content(*lora_results(), record(spec, probed().model_copy(update={"merged_decode": alone})))
    (row,) = json.loads(json_text(report_content))["comparisons"][0]["efficiency"]
    assert row["merged_decode_time_over_unmerged"] == pytest.approx(0.9)


def test_old_records_have_none() -> None:
    text = (Path(__file__).parents[1] / "data" / "records" / "v1-completed.json").read_text()
    assert "merged_decode" not in text
    outcome = TrialResult.model_validate_json(text).outcome
    assert outcome.status == "completed" and outcome.merged_decode is None
