"""Methods of Hugging Face peft behind our interface: settings, refusals, and AdaLoRA, which adapts while it trains."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_config import SWEEP, trials

from bench.conformance import verdicts
from bench.conformance.method_checks import batch_of, target_logits
from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError, trained_parameters
from bench.models.peft_folder import bridge_settings
from bench.schema.validation import ConfigError
from methods.hf_peft import HfPeft, orthogonality_penalty

ADALORA = {"peft_type": "ADALORA", "init_r": 4, "target_r": 1, "total_step": 6, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHAH"}, "peft has no 'LOHAH'; did you mean 'LOHA'"),
        ({"peft_type": "LOHA", "alpa": 3}, "alpa: LOHA has no such setting; did you mean 'alpha'"),
        ({"peft_type": "LORA", "task_type": "CAUSAL_LM"}, "task_type: LORA has no such setting"),
        ({"peft_type": "ADALORA"}, "ADALORA: AdaLoRA does not work when `total_step` is None"),
        ({"peft_type": "ADALORA", "total_step": 9, "r": 3}, "ADALORA: Note that `r` is not used"),
        ({"peft_type": "POLY"}, "POLY cannot take part: it wants a task id"),
        ({"peft_type": "LILY"}, "LILY breaks the contract of methods: its router averages"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 cannot .* changes base weights"),
        ({"peft_type": "LORA", "init_lora_weights": "lora_ga"}, "lora_ga cannot be had here: it needs data"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens: .*another model"),
        ({"peft_type": "LORA", "despite_contract": True}, "despite_contract has no effect with peft_type: LORA"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HfPeft.Config(**config)


def test_a_published_adapter_with_invocation_tokens_is_refused_too() -> None:
    stored = {"peft_type": "LORA", "r": 8, "alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"}
    with pytest.raises(ValidationError, match=r"alora_invocation_tokens: .*another model"):
        HfPeft.Config(**bridge_settings(stored, decode_batch_size=1))
    plain = HfPeft.Config(**bridge_settings({**stored, "alora_invocation_tokens": None}, decode_batch_size=1))
    assert plain.peft_type == "LORA"


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        (
            {"peft_type": "LOHA", "target_modules": ["c_attn"]},
            "gpt2",
            "peft cannot apply LOHA to GPT2LMHeadModel: .*Conv1D",
        ),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "llama", "Target modules .*nothing.* not found"),
        ({"peft_type": "OSF", "target_modules": ["c_attn"]}, "gpt2", "peft finds nothing to train with OSF"),
    ],
)
def test_what_peft_cannot_apply_is_a_method_error(config: dict[str, Any], family: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        HfPeft(HfPeft.Config(**config)).patch(tiny_model(family))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj", "v_proj"]}, marks=pytest.mark.full),
        {"peft_type": "VERA", "r": 8, "target_modules": ["q_proj", "v_proj"]},
        pytest.param(ADALORA, marks=pytest.mark.full),
    ],
    ids=lambda config: config["peft_type"],
)
def test_adapters_of_peft_keep_the_contract(config: dict[str, Any]) -> None:
    all_verdicts = list(verdicts(HfPeft, HfPeft.Config(**config), ["llama"], processes=0))
    assert [verdict for verdict in all_verdicts if verdict.outcome != "pass"] == []


@pytest.mark.parametrize(
    "config",
    [{"peft_type": "TINYLORA"}, {"peft_type": "PSOFT", "r": 4}, {"peft_type": "LORA", "init_lora_weights": "mica"}],
    ids=lambda config: config["peft_type"],
)
def test_singular_vectors_of_another_machine_compute_what_was_stored(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    svd = torch.linalg.svd

    def flipped(matrix: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, values, right = svd(matrix, **settings)
        signs = torch.ones_like(values)
        signs[::2] = -1
        return left * signs, values, right * signs[:, None]

    method = HfPeft(HfPeft.Config(**config, target_modules=["q_proj", "v_proj"]))
    here: Any = method.patch(tiny_model("llama", dtype=torch.float32)).eval()
    monkeypatch.setattr(torch.linalg, "svd", flipped)
    there: Any = method.patch(tiny_model("llama", dtype=torch.float32)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        start = target_logits(here)
        for _, parameter in trained_parameters(here):
            parameter.add_(0.1 * torch.randn_like(parameter))
        method.load_adapter_state(there, method.adapter_state(here))
        expected = target_logits(here)
        assert torch.equal(target_logits(there), expected)
    assert not torch.allclose(start, expected, atol=1e-4)


def test_an_adapter_of_peft_is_scored_however_its_tensors_began_if_base_weights_stay() -> None:
    stored = {"peft_type": "LORA", "r": 4, "eva_config": {"rho": 2.0}, "rank_pattern": {"q_proj": 6}}
    settings = bridge_settings({**stored, "init_lora_weights": "eva"}, 1)
    assert settings == {"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 6}}
    HfPeft.Config(**settings)
    for start in ("pissa", "corda", "olora"):  # which change base weights
        with pytest.raises(ValidationError, match=f"init_lora_weights: {start} cannot be had here"):
            HfPeft.Config(**bridge_settings({"peft_type": "LORA", "init_lora_weights": start}, 1))


def test_nobody_is_warned_of_what_peft_and_transformers_have_to_settle() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        HfPeft(HfPeft.Config(peft_type="MISS", r=4, target_modules=["q_proj"])).patch(tiny_model("llama"))


def test_the_table_of_broken_types_is_what_the_contract_finds() -> None:
    config = {"peft_type": "LILY", "r": 4, "target_modules": ["q_proj", "v_proj"], "despite_contract": True}
    all_verdicts = verdicts(HfPeft, HfPeft.Config(**config), ["llama"], processes=0)
    failed = {verdict.check for verdict in all_verdicts if verdict.outcome == "fail"}
    assert {"causal", "padding changes nothing"} <= failed


def test_virtual_tokens_leave_no_logits_and_the_loss_is_that_of_the_logits() -> None:
    config = HfPeft.Config(peft_type="PROMPT_TUNING", num_virtual_tokens=4, despite_contract=True)
    model: Any = HfPeft(config).patch(tiny_model("llama")).eval()
    batch = batch_of(model)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    outputs = model(**batch.inputs, labels=labels)
    assert outputs.logits.shape[:2] == labels.shape
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss.double(), expected, atol=1e-5, rtol=0)


def test_adalora_keeps_as_many_ranks_as_it_was_told_to() -> None:
    torch.manual_seed(0)
    method = HfPeft(HfPeft.Config(**ADALORA))
    model: Any = method.patch(tiny_model("llama"))
    assert method.adapts_in_training
    optimizer = torch.optim.AdamW([parameter for _, parameter in trained_parameters(model)], lr=1e-2)
    batch = batch_of(model)
    for step in range(1, 7):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(target_logits(model), batch.target_ids).backward()
        method.before_step(model, step)
        optimizer.step()
        method.after_step(model, step)
    values = torch.cat([tensor.flatten() for name, tensor in trained_parameters(model) if "lora_E" in name])
    assert len(values) == 4 * 4
    assert int(values.count_nonzero()) == 4 * 1


def test_the_penalty_of_adalora_is_that_of_peft() -> None:
    model: Any = HfPeft(HfPeft.Config(**ADALORA)).patch(tiny_model("llama"))
    batch = batch_of(model)
    labels = batch.inputs["input_ids"]
    with_penalty = model(**batch.inputs, labels=labels).loss
    without = model.base_model.model(**batch.inputs, labels=labels).loss
    penalty = 0.5 * orthogonality_penalty(dict(trained_parameters(model)))
    torch.testing.assert_close(with_penalty.double() - without.double(), penalty, atol=1e-5, rtol=0)


@pytest.mark.parametrize("resources", ["{zero_stage: 2}", "{precision: bf16}"])
def test_adalora_is_refused_where_its_edits_would_be_undone(resources: str, tmp_path: Path, tiny_task: Path) -> None:
    entry = "  - {name: hf_peft, config: {peft_type: ADALORA, total_step: 6}, resources: RESOURCES}\nseeds: [0]"
    text = SWEEP.replace("seeds: [0, 1]", entry)
    assert trials(tmp_path, tiny_task, text.replace("RESOURCES", "{zero_stage: 0}"))
    with pytest.raises(ConfigError, match=r"methods.2.resources: zero_stage: ., precision.*hf_peft.* silently undo"):
        trials(tmp_path, tiny_task, text.replace("RESOURCES", resources))


def test_adalora_is_refused_where_a_checkpoint_would_forget_its_importances(tmp_path: Path, tiny_task: Path) -> None:
    entry = "  - {name: hf_peft, config: {peft_type: ADALORA, total_step: 6}, resources: {checkpoint_every_steps: 2}}"
    with pytest.raises(ConfigError, match=r"methods.2.resources.checkpoint_every_steps: hf_peft .* leave it out"):
        trials(tmp_path, tiny_task, SWEEP.replace("seeds: [0, 1]", f"{entry}\nseeds: [0]"))


def test_adalora_is_refused_where_training_ends_before_its_ranks_are_cut(tmp_path: Path, tiny_task: Path) -> None:
    entry = "  - {name: hf_peft, config: {peft_type: ADALORA, total_step: 9, tfinal: TFINAL}}\nseeds: [0]"
    text = SWEEP.replace("seeds: [0, 1]", entry)
    assert trials(tmp_path, tiny_task, text.replace("TFINAL", "3"))
    refusal = (
        r"methods.2.config.total_step: 9: .* after 8 steps \(tfinal: 1\), and training ends after 6 .* set it to 6"
    )
    with pytest.raises(ConfigError, match=refusal):
        trials(tmp_path, tiny_task, text.replace("TFINAL", "1"))


def test_adalora_is_refused_where_an_average_is_scored_that_has_other_ranks(tmp_path: Path, tiny_task: Path) -> None:
    train = "train: {optimizer: schedule_free, schedule: constant}"
    entry = f"  - {{name: hf_peft, config: {{peft_type: ADALORA, total_step: 6}}, {train}}}\nseeds: [0]"
    with pytest.raises(ConfigError, match=r"methods.2.train.optimizer: schedule_free scores other .* hf_peft .* reads"):
        trials(tmp_path, tiny_task, SWEEP.replace("seeds: [0, 1]", entry))
