"""Plans: FLOPs as PyTorch counts them, memory by part, time, fit, remedies, totals."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import completed, record
from rich.console import Console
from small_families import small_model
from text_families import untrained_family
from torch import nn

from bench.commands.plan_table import plan_document, planned_table, totals_text
from bench.commands.planning import _device_of
from bench.config.load import load_sweep
from bench.config.resolver import RegistryResolver
from bench.launch.capacity import Cluster, Machine
from bench.method import Method
from bench.models import base
from bench.models.architecture import Pair
from bench.plan import step_costs as step_costs_module
from bench.plan.check import check
from bench.plan.cost_model import (
    PROCESS_BYTES,
    _evaluation_bytes,
    forecast_of,
    phase_memory,
    training_memory,
    with_decoded_at_once,
)
from bench.plan.devices import (
    DEVICES,
    Device,
    _matrix_rate,
    _measured_cpu,
    find_device,
    known_gpu,
    measured_cpu,
    this_cpu,
)
from bench.plan.kernels import MOST_PRIMITIVES, PRIMITIVE_BYTES, Kernels
from bench.plan.plan import PlannedTrial, calibrated, plan, planned_parameters, planned_work, totals
from bench.plan.remedies import _changed
from bench.plan.step_costs import StepCosts, _step_costs, step_costs
from bench.plan.trace import StepTracer, TraceError
from bench.plan.workload import MicroBatch
from bench.plugins.registry import targets
from bench.rank import trial as worker
from bench.schema.record import Forecast
from bench.schema.trial import DecodeSpec, MethodSpec, ModelSpec, ResourceSpec, TrainSpec, TrialSpec

H100 = DEVICES["h100"]
NATIVE = [name for name in targets("method") if name not in ("none", "hf_peft")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Traces of other runs must not be found."""
    monkeypatch.setenv("TUNEOFF_CACHE", str(tmp_path / "cache"))
    # Tiny models need less than what a GPU takes for itself.
    monkeypatch.setattr("bench.plan.devices.CONTEXT_BYTES", 0)
    monkeypatch.setattr("bench.plan.devices.MESSAGE_BYTES", 0)
    step_costs_module._step_costs.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def trial(tiny_models: dict[str, Path], tiny_task: Path) -> Callable[..., TrialSpec]:
    """A trial of a method on a tiny model and real files."""
    resolver = RegistryResolver()

    def make(
        method: str = "full",
        family: str = "llama",
        config: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        **resources: Any,
    ) -> TrialSpec:
        return TrialSpec(
            method=resolver.method(method, config or {}),
            model=ModelSpec(path=str(tiny_models[family])),
            task=resolver.task("jsonl", {"path": str(tiny_task)}),
            train=TrainSpec.model_validate({"steps": 6, "batch_size": 4, **(train or {})}),
            decode=DecodeSpec(max_new_tokens=8),
            resources=ResourceSpec.model_validate(resources),
            seed=0,
        )

    return make


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, marks=() if (number + of_family) % 2 else pytest.mark.full)
        for number, method in enumerate(NATIVE)
        for of_family, family in enumerate(("llama", "gpt2"))
    ],
)
def test_flops_and_live_bytes_are_those_that_pytorch_counts(
    method: str, family: str, trial: Callable[..., TrialSpec]
) -> None:
    """At a length that was not traced, against a real step of the real model."""
    spec = trial(method, family)
    if method == "loftq":  # it refuses other base models
        spec = spec.model_copy(update={"model": ModelSpec(path=spec.model.path, quantization="nf4")})
    (found,) = check([spec])
    assert abs(found.flops_error) < 0.02, "the aim of the planner"
    assert abs(found.bytes_error) < 0.1, "the aim of the planner"


def test_the_committed_comparison_covers_every_native_method() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "examples" / "plan_check.yaml"
    assert {entry.name for entry in load_sweep(path).methods} == set(NATIVE)


def test_flops_follow_the_textbook(trial: Callable[..., TrialSpec]) -> None:
    """Kaplan et al. 2020: 6 FLOPs for every weight and token, 4 where the weight is frozen and its input is trained."""
    spec = trial("full")
    costs = step_costs(spec, planned_work(spec)).large
    model = base.empty_model(spec.model)
    linears = {module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "head" not in name}
    body = sum(module.weight.numel() for module in linears)
    head = model.get_output_embeddings().weight.numel()
    # Up to transformers 5.18 the angles of positions are a product of matrices, of 16 FLOPs for each token here.
    assert 0 <= costs.other_flops - 6 * costs.padded_tokens * body <= 16 * costs.padded_tokens
    assert costs.vocabulary_flops == 6 * costs.target_tokens * head
    frozen = trial("layer_norm")
    traced = step_costs(frozen, planned_work(frozen)).large
    assert traced.vocabulary_flops == 4 * traced.target_tokens * head
    first_inputs = 3 * 2 * 32 * 32  # no gradient flows below the first norm, but its projections' inputs need one
    rotary = 16 * traced.padded_tokens
    assert 0.9 < traced.other_flops / (4 * traced.padded_tokens * body + rotary) <= 1.0, first_inputs


def test_a_mixture_is_planned_by_the_experts_that_a_token_meets(
    trial: Callable[..., TrialSpec], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Two layers, each with experts of three matrices of 32 x 16."""
    flops = []
    for met in (1, 2):
        folder = tmp_path / f"mixture-{met}"
        shutil.copytree(tiny_models["llama"], folder)
        model = untrained_family("qwen3_moe", json.loads((folder / "config.json").read_text())["vocab_size"])
        model.config.num_experts_per_tok = met
        type(model)(model.config).save_pretrained(folder)
        spec = trial("full").model_copy(update={"model": ModelSpec(path=str(folder))})
        costs = step_costs(spec, planned_work(spec)).large
        flops.append(costs.flops)
    assert flops[1] - flops[0] == 6 * costs.padded_tokens * 2 * 3 * 32 * 16
    (found,) = check([spec])
    assert abs(found.flops_error) < 0.02
    assert abs(found.bytes_error) < 0.1


def test_a_whole_training_is_the_sum_of_its_micro_batches(trial: Callable[..., TrialSpec]) -> None:
    """Lengths vary from batch to batch, and so does the work; two ranks do it together."""
    spec = trial("lora", train={"micro_batch_size": 2}, ranks=2)
    work = planned_work(spec)
    assert (work.steps, work.accumulation, len(work.micro_batches)) == (6, 1, 12)
    assert len({micro.padded_tokens for micro in work.micro_batches}) > 1
    costs = step_costs(spec, work)
    assert forecast_of(spec, work, None, "unknown").flops == sum(map(costs.flops, work.micro_batches))
    tracer = StepTracer(spec.method, spec.model, spec.train, torch.float32)
    for micro in work.micro_batches[:3]:
        target = micro.target_tokens // 2
        length = micro.padded_tokens // 2
        pairs = [Pair([0] * (length - target), [0] * target)] * 2
        traced = tracer.trace(pairs)
        micro_batch = MicroBatch(2, traced.padded_tokens, traced.target_tokens)
        assert costs.flops(micro_batch) == pytest.approx(traced.flops, rel=1e-3)


def test_a_processor_is_measured_in_the_precisions_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 3e10, torch.bfloat16: 1e9, torch.float16: 2e9}
    asked: list[torch.dtype] = []

    def rate(dtype: torch.dtype, _: int) -> float:
        asked.append(dtype)
        return rates[dtype]

    monkeypatch.setattr("bench.plan.devices._matrix_rate", rate)
    _measured_cpu.cache_clear()
    assert measured_cpu(1, "bf16").flops_per_second == {"bf16": 1e9}
    assert measured_cpu(1, "bf16", "fp32").flops_per_second == {"bf16": 1e9, "fp32": 3e10}
    assert measured_cpu(1).flops_per_second == {"fp32": 3e10}
    measured_cpu(1, "bf16")
    assert asked == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32], "none twice for one question"
    _measured_cpu.cache_clear()


def test_planning_leaves_random_numbers_and_the_process_as_they_were(trial: Callable[..., TrialSpec]) -> None:
    before, threads = (torch.random.get_rng_state(), random.getstate()), torch.get_num_threads()
    plan([trial("prefix_tuning"), trial("adapters")], measured_cpu(1))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.get_num_threads() == threads


def test_a_quantised_base_model_counts_as_it_is_stored(
    trial: Callable[..., TrialSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEOFF_CACHE", str(tmp_path))
    _step_costs.cache_clear()
    plain = trial("lora")
    model = plain.model.model_copy(update={"quantization": "nf4"})
    quantized = plain.model_copy(update={"model": model})
    whole, packed = (step_costs(spec, planned_work(spec)).large for spec in (plain, quantized))
    trained = 4 * packed.trained_elements
    assert packed.weight_bytes == base.stored_bytes(model, torch.float32) + trained < 0.7 * whole.weight_bytes
    # At most one dequantised weight more is there at a time.
    assert 0 <= packed.peak_bytes - whole.peak_bytes <= 4 * 48 * 32
    assert packed.flops == whole.flops
    assert planned_parameters(plain.method, model) == planned_parameters(plain.method, plain.model)
    untrained = plan([trial("none").model_copy(update={"model": model})], H100)[0]
    assert untrained.phases["load"] == base.stored_bytes(model, torch.float32)


def test_shared_weights_count_once(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("full", "gpt2")
    costs = step_costs(spec, planned_work(spec)).large
    assert costs.trained_elements == planned_parameters(spec.method, spec.model).trained
    assert costs.gradient_bytes == 4 * costs.trained_elements
    assert costs.weight_bytes == costs.gradient_bytes


class LooksAtValues(Method):
    """Its step depends on data."""

    def patch(self, model: Any) -> nn.Module:
        model.requires_grad_(True)
        model.register_forward_pre_hook(
            lambda module, args, kwargs: bool(kwargs["input_ids"].sum() > 0), with_kwargs=True
        )
        return model


def test_a_step_that_looks_at_values_has_no_forecast_and_does_not_crash(trial: Callable[..., TrialSpec]) -> None:
    odd = MethodSpec(name="odd", target=f"{__name__}:LooksAtValues")
    spec = trial().model_copy(update={"method": odd})
    with pytest.raises(TraceError, match="method 'odd' cannot be traced without data"):
        step_costs(spec, planned_work(spec))
    (planned,) = plan([spec], H100)
    assert planned.forecast is None
    assert "cannot be traced" in planned.remark


def test_a_forecast_that_breaks_does_not_break_the_trial(
    trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = trial()
    rank = worker._Trial(spec, SimpleNamespace(threads=1), torch.device("cpu"), None)  # type: ignore[arg-type]
    monkeypatch.setattr("bench.plan.workload.workload", lambda *_: 1 / 0)
    assert rank._forecast(base.architecture(spec.model), {}, 0, 0) is None
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_untouched_model_trains_nothing_and_has_no_forecast(trial: Callable[..., TrialSpec]) -> None:
    (planned,) = plan([trial("none")], H100)
    assert planned.forecast is None and planned.remark == "nothing is trained"


def test_known_traces_are_read_again_but_not_those_of_plugins(
    trial: Callable[..., TrialSpec], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = trial("ia3")
    first = step_costs(spec, planned_work(spec))
    assert len(list((own_cache / "traces").iterdir())) == 1
    step_costs_module._step_costs.cache_clear()
    monkeypatch.setattr(step_costs_module, "StepTracer", lambda *_: pytest.fail("traced again"))
    other_seed = spec.model_copy(update={"seed": 5})
    assert step_costs(other_seed, planned_work(other_seed)) == first


def memory(spec: TrialSpec, on_cpu: bool = False) -> dict[str, int]:
    work = planned_work(spec)
    return training_memory(spec, work, step_costs(spec, work), on_cpu)


def test_memory_has_parts_that_settings_change_as_they_should(trial: Callable[..., TrialSpec]) -> None:
    full = memory(trial("full"))
    trained = planned_parameters(trial("full").method, trial("full").model).trained
    assert full["optimizer"] == 8 * trained
    assert "kept state" not in memory(trial("full"), on_cpu=True), "the only evaluation is after the last step"
    assert memory(trial("full", train={"evaluate_every_steps": 3}), on_cpu=True)["kept state"] == 4 * trained
    here = memory(trial("full"), on_cpu=True)
    assert here["process"] == PROCESS_BYTES
    assert here["heap"] == round(0.3 * (here["activations"] + here["logits"] + here.get("gradients", 0)))
    lora = memory(trial("lora"))
    assert lora["optimizer"] < full["optimizer"] / 10
    assert lora["weights"] > full["weights"]
    checkpointed = memory(trial("lora", train={"gradient_checkpointing": True}))
    assert checkpointed["activations"] < 0.8 * lora["activations"]
    narrow = memory(trial("lora", precision="bf16"))
    assert narrow["weights"] == pytest.approx(lora["weights"] / 2, rel=0.01)
    assert narrow["activations"] < 0.7 * lora["activations"]
    micro = memory(trial("lora", train={"micro_batch_size": 1}))
    assert micro["activations"] < 0.4 * lora["activations"]
    factored = memory(trial("full", train={"optimizer": "adafactor"}))
    assert factored["optimizer"] < 0.2 * full["optimizer"]


@pytest.fixture
def with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies in half precision."""
    monkeypatch.setattr("bench.plan.kernels._multiplied_by_onednn", lambda _: True)


@pytest.mark.usefixtures("with_onednn")
def test_on_a_cpu_half_precision_keeps_code_for_each_length(trial: Callable[..., TrialSpec]) -> None:
    lora, ia3 = (trial(method, precision="bf16") for method in ("lora", "ia3"))
    assert memory(lora, on_cpu=True)["kernels"] > memory(ia3, on_cpu=True)["kernels"] > 0
    assert "kernels" not in memory(trial("lora"), on_cpu=True), "fp32 is multiplied by MKL"
    assert "kernels" not in memory(lora)
    work, costs = planned_work(lora), step_costs(lora, planned_work(lora))
    alike = replace(work, micro_batches=work.micro_batches[:1] * len(work.micro_batches))
    assert Kernels(lora, alike, costs).in_training < Kernels(lora, work, costs).in_training
    many = replace(work, micro_batches=tuple(MicroBatch(4, 4 * length, 40) for length in range(10, 1000)))
    assert Kernels(lora, many, costs).in_training == MOST_PRIMITIVES * PRIMITIVE_BYTES
    dev, test = ((MicroBatch(4, 4 * length, length),) for length in (1001, 1002))
    kept = Kernels(lora, replace(work, dev_batches=dev, test_batches=test), costs)
    assert kept.in_training < kept.after_training < kept.with_test_loss < kept.in_scoring
    found, kept = phases(lora, on_cpu=True), Kernels(lora, work, costs)
    assert found["score"] - found["initialise"] == pytest.approx(kept.in_scoring, abs=1), "they stay"


def test_products_are_those_of_the_layers(trial: Callable[..., TrialSpec]) -> None:
    """Two layers of one kind: 4 shapes of linear layers here, their way back, and the output projection."""
    spec = trial("ia3", precision="bf16")
    found = step_costs(spec, planned_work(spec)).products
    assert (found.forward, found.of_targets) == (4, 2)
    adapted = trial("lora", precision="bf16")
    assert step_costs(adapted, planned_work(adapted)).products.of_length > found.of_length == 8


def test_masters_have_all_gradients_at_the_end_of_a_pass(trial: Callable[..., TrialSpec]) -> None:
    """One backward pass in half precision: each gradient becomes one in fp32, which stays."""
    short = trial("full", precision="bf16", train={"batch_size": 1})
    trained = planned_parameters(short.method, short.model).trained
    work = replace(planned_work(short), micro_batches=(MicroBatch(1, 4, 2),) * 6)
    found = training_memory(short, work, step_costs(short, planned_work(short)), on_cpu=False)
    assert found["gradients"] > 4 * trained and "activations" not in found


@pytest.mark.parametrize(("stage", "shared"), [(1, ["optimizer"]), (2, ["optimizer", "gradients"])])
def test_zero_divides_what_it_shares(stage: int, shared: list[str], trial: Callable[..., TrialSpec]) -> None:
    alone = memory(trial("full", zero_stage=stage))
    both = memory(trial("full", zero_stage=stage, ranks=2))
    for part in shared:
        assert both[part] == pytest.approx(alone[part] / 2, abs=1)
    assert both["weights"] == alone["weights"]


def test_stage_three_divides_weights_as_well(trial: Callable[..., TrialSpec]) -> None:
    two, four = (memory(trial("full", zero_stage=3, ranks=ranks)) for ranks in (2, 4))
    assert four["weights"] < two["weights"]
    assert four["optimizer"] == pytest.approx(two["optimizer"] / 2, abs=1)


def test_dev_losses_of_small_micro_batches_take_little(trial: Callable[..., TrialSpec]) -> None:
    sizes = []
    for micro in (1, 16):
        spec = trial("lora", train={"batch_size": 16, "micro_batch_size": micro})
        work = replace(planned_work(spec), dev_tokens=10**6)
        sizes.append(_evaluation_bytes(spec, work, step_costs(spec, work)))
    assert sizes[0] < 0.6 * sizes[1]


def small(device: Device, limit_bytes: int) -> Device:
    return replace(device, memory_bytes=round(limit_bytes / 0.9))


def test_what_does_not_fit_is_told_what_would(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("full", train={"batch_size": 8})
    whole = max(phases(spec).values())
    micro = max(phases(trial("full", train={"batch_size": 8, "micro_batch_size": 2})).values())
    (fine,) = plan([spec], small(H100, whole + 100))
    assert fine.fits and fine.remedies == ()
    (tight,) = plan([spec], small(H100, (whole + micro) // 2))
    assert not tight.fits and tight.too_large == ("train",)
    assert any(remedy.startswith("train.micro_batch_size: ") for remedy in tight.remedies)
    (hopeless,) = plan([spec], small(H100, 1000))
    assert len(hopeless.remedies) == 1 and hopeless.remedies[0].startswith("nothing tried fits; least memory with")


def test_where_weights_are_most_of_it_ranks_that_share_them_are_told(
    trial: Callable[..., TrialSpec], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_models["llama"], tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 512 // config["num_attention_heads"]}
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    wide = {"model": ModelSpec(path=str(tmp_path / "wide"))}
    spec = trial("full", train={"batch_size": 8}).model_copy(update=wide)
    shared = trial("full", train={"batch_size": 8}, ranks=8, zero_stage=3).model_copy(update=wide)
    (tight,) = plan([spec], small(H100, max(phases(shared).values()) + 100))
    assert any("resources.zero_stage" in remedy for remedy in tight.remedies), tight.remedies


def phases(spec: TrialSpec, on_cpu: bool = False) -> dict[str, int]:
    work = planned_work(spec)
    return phase_memory(spec, work, step_costs(spec, work), on_cpu)


def test_what_generate_decodes_is_planned_in_batches_of_its_size(
    trial: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    """Windows, state-space layers and methods that stand between source and target are beyond our decoder."""

    def rows(spec: TrialSpec) -> int | None:
        work = replace(planned_work(trial()), decoded_sources=10_000)
        return with_decoded_at_once(spec, work, H100).decode.batch_size

    assert (rows(trial("lora")) or 0) > 1000
    assert rows(trial("lora", "t5")) == rows(trial("loreft")) == 16
    for family in ("Gemma3ForCausalLM", "Mamba2ForCausalLM"):
        small_model(family).save_pretrained(tmp_path / family)
        attention = "eager" if family.startswith("Mamba") else "sdpa"
        model = ModelSpec(path=str(tmp_path / family), attention=attention)
        assert rows(trial("none").model_copy(update={"model": model})) == 16


def test_every_phase_has_its_bytes(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("full")
    whole = step_costs(spec, planned_work(spec)).large.weight_bytes
    found, training = phases(spec), memory(spec)
    assert list(found) == ["load", "initialise", "train", "validate", "gather", "decode", "score"]
    assert found["load"] == found["initialise"] == found["score"] == whole
    assert found["train"] == sum(training.values())
    trained = planned_parameters(spec.method, spec.model).trained
    assert found["gather"] == whole + 8 * trained, "weights and two moments; the state goes to the host"
    config = base.load_config(spec.model)
    tokens = planned_work(spec).decoded_sources * (planned_work(spec).source_tokens + spec.decode.max_new_tokens)
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * 4 * tokens
    logits = 3 * 4 * planned_work(spec).decoded_sources * config.vocab_size
    assert found["decode"] == pytest.approx(whole + cache + logits, abs=1)
    here = phases(spec, on_cpu=True)
    assert here["score"] - here["initialise"] == 4 * trained, "on a CPU the stored state lies beside the scored model"
    assert here["gather"] == whole + 12 * trained + PROCESS_BYTES


def test_zero_three_holds_slices_from_the_first_byte_and_when_it_scores(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("lora", zero_stage=3, ranks=4)
    trace = step_costs(spec, planned_work(spec)).large
    found = phases(spec)
    assert memory(spec)["weights"] == pytest.approx(trace.weight_bytes / 4 + trace.largest_layer_bytes, abs=1)
    assert found["load"] == pytest.approx(trace.weight_bytes / 4, abs=1)
    assert found["score"] == pytest.approx(trace.weight_bytes / 4 + trace.largest_layer_bytes, abs=1)
    assert trace.largest_layer_bytes < trace.weight_bytes / 2
    probe = spec.model_copy(update={"stage": "tune"})
    assert set(phases(probe)) == {"load", "initialise", "train", "validate", "gather"}, "nothing is scored"


def test_fit_is_that_of_the_largest_phase_which_is_named(trial: Callable[..., TrialSpec]) -> None:
    """A base model that is trained on short texts and decodes long ones: it fits while it is trained, and only then."""
    spec = trial("lora", "llama", train={"micro_batch_size": 1, "gradient_checkpointing": True}, zero_stage=3, ranks=4)
    wide = spec.model_copy(update={"decode": DecodeSpec(max_new_tokens=4000, beams=4, batch_size=16)})
    large = phases(wide)["decode"]
    (planned,) = plan([wide], small(H100, large - 1000))
    assert planned.forecast is not None and planned.forecast.peak_memory_bytes < large
    assert (planned.fits, planned.too_large) == (False, ("decode",))
    assert planned.remedies and planned.remedies[0].startswith("decode.batch_size: ")
    console, text = Console(width=100, file=io.StringIO()), ""
    console.print(planned_table("demo", [planned], small(H100, large - 1000)))
    text = " ".join(console.file.getvalue().replace("│", " ").split())  # type: ignore[attr-defined]
    assert "does not fit into" in text and ": decode (" in text
    assert "would fit with decode.batch_size: " in text
    assert "phases: load" in text


def test_what_a_gpu_takes_for_itself_is_no_room_for_a_trial(
    trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = trial("lora", zero_stage=2, ranks=2)
    needed = max(phases(spec).values())
    assert plan([spec], small(H100, needed + 1000))[0].fits
    for taken in ("CONTEXT_BYTES", "MESSAGE_BYTES"):
        monkeypatch.setattr(f"bench.plan.devices.{taken}", 2000)
        (planned,) = plan([spec], small(H100, needed + 1000))
        assert not planned.fits
    assert planned.taken_bytes == 4000
    assert plan([trial("lora")], H100)[0].taken_bytes == 2000, "one rank sends no messages"
    assert plan([spec], replace(H100, kind="cpu"))[0].taken_bytes == 0


def test_ranks_share_the_memory_of_a_machine_and_trials_that_of_a_gpu(trial: Callable[..., TrialSpec]) -> None:
    machine = replace(H100, kind="cpu")
    spec = trial("lora", zero_stage=2, ranks=2)
    (alone,) = plan([spec], machine)
    needed = max(alone.phases.values())
    assert plan([spec], small(machine, 2 * needed + 100))[0].fits
    assert not plan([spec], small(machine, 2 * needed - 100))[0].fits
    half = trial("lora", gpus_per_rank=0.5, exclusive="none")
    needed = max(phases(half).values())
    assert plan([half], small(H100, 2 * needed + 100))[0].fits
    assert not plan([half], small(H100, 2 * needed - 100))[0].fits


def test_no_remedy_is_one_that_a_sweep_would_refuse(trial: Callable[..., TrialSpec]) -> None:
    two = {"ranks": 2, "zero_stage": 2}
    assert _changed(trial("full"), resources=two) is not None
    assert _changed(trial("lisa"), resources=two) is None, "it trains in turns"
    assert _changed(trial("full", gpus_per_rank=0.5, exclusive="none"), resources=two) is None
    assert _changed(trial("full", compile=True), resources=two) is not None
    assert _changed(trial("full", compile=True), resources={**two, "zero_stage": 3}) is None


def test_models_that_see_pictures_are_planned_by_the_part_that_writes(
    trial: Callable[..., TrialSpec], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Gemma 3, Llama 4 and others keep the sizes of their decoders in a configuration of its own."""
    from transformers import Gemma3Config

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "gemma3"))
    config = json.loads((folder / "config.json").read_text())
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    text = {**{name: config[name] for name in names}, "num_key_value_heads": 2, "head_dim": 8}
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Gemma3Config(text_config=text, vision_config={**seeing, "image_size": 28, "patch_size": 14}).save_pretrained(folder)
    spec = trial("full").model_copy(update={"model": ModelSpec(path=str(folder))})
    (planned,) = plan([spec], H100)
    assert planned.forecast is not None and planned.fits, planned.remark
    assert planned.phases["decode"] > planned.phases["score"]


def test_what_is_offloaded_is_off_the_device_and_takes_time(trial: Callable[..., TrialSpec]) -> None:
    plain = trial("full", zero_stage=3, ranks=2)
    optimizer = trial("full", zero_stage=3, ranks=2, offload={"optimizer": "cpu"})
    both = trial("full", zero_stage=3, ranks=2, offload={"optimizer": "cpu", "parameters": "cpu"})
    layer = step_costs(plain, planned_work(plain)).large.largest_layer_bytes
    assert {"optimizer", "gradients"} <= memory(plain).keys()
    assert not {"optimizer", "gradients"} & memory(optimizer).keys()
    assert memory(both)["weights"] == layer < memory(optimizer)["weights"]
    assert memory(both, on_cpu=True) == memory(plain, on_cpu=True), "there the host's memory is the device's"
    seconds = [forecast_of(spec, planned_work(spec), H100, "x").step_seconds or 0 for spec in (plain, optimizer, both)]
    assert seconds[0] < seconds[1] < seconds[2]
    for phase in ("validate", "gather"):
        assert phases(optimizer)[phase] < phases(plain)[phase]
    for phase in ("load", "initialise", "decode", "score"):
        assert phases(both)[phase] == phases(optimizer)[phase], "weights are offloaded while it trains alone"


def test_messages_take_time_by_what_is_sent(trial: Callable[..., TrialSpec]) -> None:
    """A ring of R ranks sends (R - 1) / R of a tensor to gather it, and twice that to add it up on all of them."""
    slow = replace(H100, link_bytes_per_second=1.0, kernel_seconds=0.0, step_seconds=0.0, kind="cpu")

    def seconds(device: Device, **resources: Any) -> float:
        spec = trial("full", train={"micro_batch_size": 1}, **resources)
        return forecast_of(spec, planned_work(spec), device, "x").step_seconds or 0.0

    def sent(**resources: Any) -> float:
        return seconds(slow, **resources) - seconds(replace(slow, link_bytes_per_second=1e30), **resources)

    trace = step_costs(trial("full"), planned_work(trial("full"))).large
    gradients = 4 * trace.trained_elements
    assert sent(ranks=1) == 0
    assert sent(ranks=2) == pytest.approx(gradients)
    assert sent(ranks=4) == pytest.approx(1.5 * gradients)
    assert sent(ranks=2, zero_stage=2) == pytest.approx(0.5 * (2 * gradients + gradients)), "two passes, then weights"
    assert sent(ranks=2, zero_stage=3) == pytest.approx(0.5 * 2 * (2 * trace.weight_bytes + gradients))


def test_what_trains_nothing_has_to_fit_too(trial: Callable[..., TrialSpec]) -> None:
    (planned,) = plan([trial("none")], small(H100, 50_000))
    assert planned.forecast is None and not planned.fits
    assert planned.too_large[0] == "decode" and set(planned.phases) == {"load", "decode", "score"}


def test_too_much_in_two_phases_takes_two_settings(trial: Callable[..., TrialSpec]) -> None:
    decode = DecodeSpec(max_new_tokens=400, batch_size=16)
    spec = trial("lora", train={"batch_size": 8}).model_copy(update={"decode": decode})
    lean = spec.model_copy(
        update={
            "decode": DecodeSpec(max_new_tokens=400, batch_size=1),
            "train": spec.train.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True}),
        }
    )
    limit = max(phases(lean).values()) + 1000
    assert limit < phases(spec)["train"] and limit < phases(spec)["decode"]
    (planned,) = plan([spec], small(H100, limit))
    assert set(planned.too_large) >= {"decode", "train"}
    assert any("decode.batch_size: 1" in remedy for remedy in planned.remedies)


def test_older_forecasts_know_two_phases() -> None:
    old = Forecast(
        device="x",
        flops=1.0,
        step_seconds=None,
        train_seconds=None,
        total_seconds=None,
        memory_bytes={"weights": 5, "optimizer": 2},
        decode_memory_bytes=9,
    )
    assert old.phases == {"train": 7, "decode": 9}


def planned(trial_spec: TrialSpec, seconds: float, ranks: int = 1) -> PlannedTrial:
    expected = Forecast(
        device="x",
        flops=1e12,
        step_seconds=1.0,
        train_seconds=seconds,
        total_seconds=seconds,
        memory_bytes={},
        decode_memory_bytes=0,
    )
    spec = trial_spec.model_copy(update={"resources": ResourceSpec(ranks=ranks)})
    return PlannedTrial(spec, planned_parameters(spec.method, spec.model), expected)


def test_a_sweep_adds_up_to_device_hours_wall_time_and_price(trial: Callable[..., TrialSpec]) -> None:
    trials = [planned(trial(), seconds) for seconds in (3600, 1800, 1800)] + [planned(trial(), 900, ranks=2)]
    found = totals(trials, devices=2, price_per_hour=3.0)
    assert found.device_hours == 2.5
    assert found.price == 7.5
    assert found.flops == 4e12
    assert found.wall_hours == 1.25, "an hour beside two halves, then both devices together"
    assert totals(trials, devices=1, price_per_hour=None).wall_hours == float("inf")


def test_totals_of_a_sweep_with_searches_are_not_called_those_of_all_trials() -> None:
    found, device = totals([], devices=1, price_per_hour=None), this_cpu()
    assert totals_text(found, device, more_follow=False).startswith("in all: ")
    assert totals_text(found, device, more_follow=True).startswith("in all trials that are known now: ")


def test_measured_steps_set_the_rates(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("lora")
    expected = forecast_of(spec, planned_work(spec), H100, "NVIDIA H100 80GB HBM3")
    assert expected.step_seconds is not None
    done = completed()
    assert done.train is not None
    cost = done.train.model_copy(update={"step_seconds_mean": 3 * expected.step_seconds})
    slow = record(spec, done.model_copy(update={"predicted": expected, "train": cost}))
    device, count = calibrated(H100, [slow, record(spec, completed())])
    assert count == 1
    again = forecast_of(spec, planned_work(spec), device, device.name)
    assert again.step_seconds == pytest.approx(3 * expected.step_seconds)
    assert calibrated(DEVICES["l4"], [slow])[1] == 0, "another device says nothing"
    with_bus = expected.model_copy(update={"device": "NVIDIA H100 PCIe", "step_seconds": 1e-6})
    other = record(spec, slow.outcome.model_copy(update={"predicted": with_bus}))
    mixed, count = calibrated(H100, [slow, other, slow])
    assert (mixed.efficiency, count) == (device.efficiency, 2), "rates of the other kind are not mixed in"
    assert mixed.source.endswith("step times of 2 trials on NVIDIA H100 80GB HBM3, without 1 on NVIDIA H100 PCIe")
    spread = record(spec, slow.outcome.model_copy(update={"predicted": expected.without_seconds("H100 and L4")}))
    assert calibrated(H100, [spread])[1] == 0


def test_trials_on_a_cpu_replace_its_probe(trial: Callable[..., TrialSpec]) -> None:
    """Whatever else ran when the forecasts were made."""
    spec, done = trial("lora"), completed()
    probed = replace(this_cpu(), flops_per_second={"fp32": 1e7}, bytes_per_second=1e6)
    expected = forecast_of(spec, planned_work(spec), probed, probed.name)
    assert done.train is not None
    cost = done.train.model_copy(update={"steps": 6, "step_seconds_mean": 0.25})
    of_cpu = record(spec, done.model_copy(update={"predicted": expected, "train": cost}))
    for before in (probed, this_cpu()):
        device, count = calibrated(before, [of_cpu])
        again = forecast_of(spec, planned_work(spec), device, device.name)
        assert again.step_seconds == pytest.approx(0.25) and count == 1
    json.dumps(plan_document("x", plan([spec], device), device, totals([], 1, None)), allow_nan=False)
    assert calibrated(this_cpu(), [record(spec, completed())])[1] == 0


def test_a_cpu_is_measured_with_the_cores_of_a_rank(
    trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(threads: int, *_: str, tokens: int) -> Device:
        asked.append(threads)
        return replace(this_cpu(), flops_per_second={"fp32": float(tokens)})

    monkeypatch.setattr("bench.plan.devices.measured_cpu", measured)
    monkeypatch.setattr("bench.plan.devices.usable_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device_of = _device_of("local", None)
    devices = [device_of(trial("lora", **resources)) for resources in ({"cpus_per_rank": 1}, {"ranks": 2}, {})]
    assert asked == [1, 3, 6]
    whole, half, again = (device.flops_per_second["fp32"] for device in devices)
    assert whole == again == planned_work(trial("lora")).micro_batch_tokens > half, "two ranks divide a batch"


def test_the_rate_of_a_cpu_is_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take most of the time."""
    calls = 0
    now = 0.0

    def clock() -> float:
        nonlocal calls, now
        calls += 1
        now += 1.0 if 20 <= calls < 24 else 5.0
        return now

    monkeypatch.setattr("bench.plan.devices.time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr("bench.plan.devices.MOST_SECONDS", 1e9)
    of_most_windows = 2 * 2 * 8 * 768 * 2048 / 10
    assert _matrix_rate(torch.float32, 8) > 2 * of_most_windows


@pytest.mark.parametrize(
    "resources", [{}, {"cpus_per_rank": 1}, {"cpus_per_rank": 3}, {"ranks": 2}, {"ranks": 2, "cpus_per_rank": 2}]
)
def test_trials_side_by_side_share_a_cpu_as_they_are_seated(
    resources: dict[str, Any], trial: Callable[..., TrialSpec]
) -> None:
    spec, device = trial("lora", **resources), replace(H100, kind="cpu", cores=8)
    cluster = Cluster([Machine(cpus=8, gpus=0)])
    at_once = cluster.at_once(cluster.need(spec))
    assert device.trials_at_once(spec) == at_once
    assert device.share_bytes(spec) == pytest.approx(0.9 * device.memory_bytes / (spec.resources.ranks * at_once))
    one = plan([spec], device)[0]
    assert one.on_one_cpu == at_once
    seconds = one.seconds
    assert totals([one] * (at_once + 1), 1, None).wall_hours == pytest.approx(2 * seconds / 3600)
    assert totals([one] * at_once, 1, None).device_hours == pytest.approx(seconds / 3600)


def test_all_losses_and_texts_take_time(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("lora")
    work = planned_work(spec)

    def seconds(spec: TrialSpec, **changes: Any) -> float:
        return forecast_of(spec, replace(work, **changes), H100, "x").total_seconds or 0.0

    assert work.test_tokens > 0
    assert seconds(spec, test_tokens=2 * work.test_tokens) > seconds(spec)
    tuned = spec.model_copy(update={"stage": "tune"})
    assert seconds(tuned) < seconds(spec), "neither the stored adapter's dev loss nor merged decoding"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA T1000", None),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_gpus_are_known_by_their_own_names(name: str, expected: str | None) -> None:
    found = known_gpu(name)
    assert (found.name if found else None) == expected


def test_unknown_devices_are_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="--device tpu: not in the table; known: h200, h100"):
        find_device("tpu")


def test_the_command_speaks_to_people_and_machines(
    tuneoff: Callable[..., Any], tiny_models: dict[str, Path], tiny_task: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodel: {tiny_models['llama']}\ntask: {{name: jsonl, path: {tiny_task}}}\n"
        "train: {steps: 4, batch_size: 4}\ndecode: {max_new_tokens: 8}\nmethods: [none, full]\n"
    )
    done = tuneoff("plan", str(sweep), "--device", "h200", "--devices", "2", "--price", "4", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["device"]["name"] == "h200"
    none, full = document["trials"]
    assert none["predicted"] is None
    assert full["fits"] and full["predicted"]["flops"] > 0
    assert document["totals"]["price"] == pytest.approx(4 * document["totals"]["device_hours"])
    bad = tuneoff("plan", str(sweep), "--device", "abacus")
    assert bad.returncode == 2 and "known: h200" in bad.stderr
    checked = tuneoff("check-plan", str(sweep))
    assert "| full | 4 x " in checked.stdout, checked.stderr
    assert checked.stdout.startswith("# Plan of tiny against measurements")


def test_two_traces_make_a_line_through_both(trial: Callable[..., TrialSpec]) -> None:
    spec = trial("prompt_tuning")
    costs = step_costs(spec, planned_work(spec))
    for trace in (costs.small, costs.large):
        micro = MicroBatch(trace.rows, trace.padded_tokens, trace.target_tokens)
        assert costs.flops(micro) == pytest.approx(trace.flops)
        both = costs.activation_bytes(micro) + costs.growing_gradient_bytes(micro)
        assert both + trace.logits_bytes == pytest.approx(trace.peak_bytes)
    assert isinstance(costs, StepCosts)
