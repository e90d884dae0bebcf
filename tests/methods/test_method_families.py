"""Every method on every family: it keeps the contract, or its patch refuses in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from disturbed import disturb
from small_families import ALL, small_model

from bench.conformance.method_checks import PAIRS, target_logits
from bench.method import Method, MethodError, trained_parameters
from bench.models.architecture import architecture_of
from methods.adapters import Adapters
from methods.bitfit import BitFit
from methods.hf_peft import HfPeft
from methods.ia3 import IA3
from methods.layer_norm import LayerNormTuning
from methods.lora import LoRA
from methods.top_layers import TopLayers

# Of so few units of ReLU all may be off, which says nothing of the method.
BOTTLENECK: dict[str, Any] = {"bottleneck_size": 4, "activation": "gelu"}
METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(LoRA.Config(rank=2)),
    "lora all_linear": lambda: LoRA(LoRA.Config(rank=2, target_modules="all_linear")),
    "pfeiffer": lambda: Adapters(Adapters.Config(**BOTTLENECK)),
    "houlsby": lambda: Adapters(Adapters.Config(**BOTTLENECK, placement="houlsby")),
    "parallel": lambda: Adapters(Adapters.Config(**BOTTLENECK, placement="parallel")),
    "ia3": lambda: IA3(IA3.Config()),
    "bitfit": lambda: BitFit(BitFit.Config()),
    "layer_norm": lambda: LayerNormTuning(LayerNormTuning.Config()),
    "top_layers": lambda: TopLayers(TopLayers.Config(num_layers=1)),
}
NO_ROLE, NO_ATTENTION, NO_PART = "makes no .* that is known", "has no attention layer", "no known feed-forward part"
SEVERAL, UNKNOWN, EXPERTS = "adds up several", "is not known", "how these experts compute is not known"
HYBRID = {"lora": NO_ROLE, "ia3": NO_ROLE, "houlsby": NO_ATTENTION}
RECURRENT = {
    "lora": "has no attention layer",
    "ia3": "has no attention layer",
    **dict.fromkeys(("pfeiffer", "houlsby", "parallel"), NO_PART),
}
# Family to method to why it refuses. What is not here works.
REFUSED: dict[str, dict[str, str]] = {
    "JambaForCausalLM": HYBRID,
    "BambaForCausalLM": HYBRID,
    "Lfm2ForCausalLM": HYBRID,
    "Lfm2MoeForCausalLM": HYBRID,
    "Qwen3NextForCausalLM": HYBRID,
    "GraniteMoeHybridForCausalLM": {**HYBRID, "pfeiffer": SEVERAL, "parallel": SEVERAL},
    "GraniteMoeSharedForCausalLM": {"pfeiffer": SEVERAL, "houlsby": SEVERAL, "parallel": SEVERAL},
    "Zamba2ForCausalLM": {**HYBRID, "pfeiffer": NO_PART, "houlsby": NO_PART, "parallel": NO_PART},
    "MambaForCausalLM": RECURRENT,
    "Mamba2ForCausalLM": RECURRENT,
    "RwkvForCausalLM": {"lora": UNKNOWN, "ia3": UNKNOWN, "houlsby": "no known linear layer"},
    "DbrxForCausalLM": {"lora all_linear": EXPERTS, "ia3": EXPERTS},
    "JetMoeForCausalLM": {
        "lora": UNKNOWN,
        "lora all_linear": EXPERTS,
        "ia3": UNKNOWN,
        "houlsby": "no known linear layer",
    },
}
# A representative of each way in which blocks differ, with what is hard there.
REPRESENTATIVE = [
    ("DeepseekV2ForCausalLM", "lora"),
    ("Qwen2MoeForCausalLM", "lora all_linear"),
    ("Llama4ForCausalLM", "lora all_linear"),
    ("GptOssForCausalLM", "lora all_linear"),
    ("Glm4MoeForCausalLM", "ia3"),
    ("MixtralForCausalLM", "pfeiffer"),
    ("GptOssForCausalLM", "parallel"),
    ("GptOssForCausalLM", "bitfit"),
    ("FalconH1ForCausalLM", "bitfit"),
    ("Gemma3nForCausalLM", "pfeiffer"),
    ("Gemma4ForCausalLM", "lora"),
    ("MambaForCausalLM", "lora all_linear"),
    ("JambaForCausalLM", "lora"),
    ("GraniteMoeSharedForCausalLM", "pfeiffer"),
    ("DbrxForCausalLM", "lora all_linear"),
]
EVERY = [(family, method) for family in ALL for method in METHODS]
TOLERANCE = 1e-6
# With weights in float64 these families' masks overflow.
SINGLE = {"Gemma2ForCausalLM": 1e-3}


def base_model(family: str) -> Any:
    model = small_model(family)
    model.config._experts_implementation = "eager"  # the others of transformers have no float64
    model = model if family in SINGLE else model.double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False).eval()


def largest_difference(computed: torch.Tensor, expected: torch.Tensor) -> float:
    return float((computed - expected).abs().max())


def difference_by_padding(model: Any) -> float:
    with torch.no_grad():
        alone = torch.cat([target_logits(model, [pair]) for pair in PAIRS])
        sides = architecture_of(model.config).padding_sides
        return max(largest_difference(target_logits(model, side=side), alone) for side in sides)


def check_cell(family: str, method: str) -> None:
    """Check start, trained tensors, padding, loading and merging of a method on a family."""
    tolerance = SINGLE.get(family, TOLERANCE)
    subject, model = METHODS[method](), base_model(family)
    with torch.no_grad():
        expected, by_padding = target_logits(model), difference_by_padding(model)
    patched: Any = subject.patch(model)
    with torch.no_grad():
        if method not in ("pfeiffer", "houlsby"):  # those start near the base model
            assert largest_difference(target_logits(patched), expected) < tolerance
    disturb(patched)
    patched.train()
    target_logits(patched, use_cache=False).logsumexp(-1).sum().backward()
    idle = [name for name, tensor in trained_parameters(patched) if tensor.grad is None or not tensor.grad.any()]
    # An expert that is a module of its own may see no token of so small a batch.
    idle = [name for name in idle if ".expert_" not in name]
    assert not idle, f"no gradient reaches {idle[:3]}"
    patched.eval()
    if by_padding < tolerance:
        assert difference_by_padding(patched) < tolerance
    with torch.no_grad():
        trained = target_logits(patched)
        assert largest_difference(trained, expected) > 1e-3
        if subject.mergeable:
            subject.merge(patched)
            assert largest_difference(target_logits(patched), trained) < tolerance
            subject.unmerge(patched)
        fresh: Any = METHODS[method]().patch(base_model(family)).eval()
        subject.load_adapter_state(fresh, subject.adapter_state(patched))
        assert largest_difference(target_logits(fresh), trained) < tolerance


def check_cell_or_refusal(family: str, method: str) -> None:
    reason = REFUSED.get(family, {}).get(method)
    if reason is None:
        check_cell(family, method)
        return
    with pytest.raises(MethodError, match=reason) as refusal:
        METHODS[method]().patch(base_model(family))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("family", "method"), REPRESENTATIVE)
def test_a_method_works_on_a_family_or_says_why_not(family: str, method: str) -> None:
    check_cell_or_refusal(family, method)


@pytest.mark.full
@pytest.mark.parametrize(("family", "method"), [cell for cell in EVERY if cell not in REPRESENTATIVE])
def test_every_method_works_on_every_family_or_says_why_not(family: str, method: str) -> None:
    check_cell_or_refusal(family, method)


def test_default_lora_on_latent_attention_adapts_queries_and_values() -> None:
    """DeepSeek's layers: 12 channels for a query and 6 for a value in each of 4 heads, values from 16 latent ones."""
    for family, queries in (("DeepseekV2ForCausalLM", "q_proj"), ("DeepseekV3ForCausalLM", "q_b_proj")):
        model = METHODS["lora"]().patch(small_model(family))
        shapes = {name: tuple(tensor.shape) for name, tensor in trained_parameters(model)}
        attention = "model.layers.1.self_attn"
        assert shapes[f"{attention}.{queries}.lora_B"] == (4 * 12, 2)
        assert shapes[f"{attention}.kv_b_proj.lora_A"] == (2, 16)
        assert shapes[f"{attention}.kv_b_proj.lora_B"] == (4 * 6, 2)
        assert len(shapes) == 2 * 2 * 2


def test_all_linear_adapts_every_matrix_of_a_mixture() -> None:
    model = METHODS["lora all_linear"]().patch(small_model("MixtralForCausalLM"))
    experts: Any = model.get_submodule("model.layers.0.mlp.experts")
    assert tuple(experts.gate_up_proj_lora_B.shape) == (4, 2 * 48, 2)
    assert tuple(experts.down_proj_lora_A.shape) == (4, 2, 48)
    adapted = [name for name, _ in trained_parameters(model) if ".experts." in name]
    assert len(adapted) == 2 * 2 * 2


def test_a_layer_that_cannot_be_adapted_is_refused_by_name() -> None:
    method = LoRA(LoRA.Config(target_modules=["in_proj", "dt_proj"]))
    with pytest.raises(MethodError, match=r"layers.0.mixer.dt_proj cannot be adapted: MambaMixer reads its weight"):
        method.patch(small_model("MambaForCausalLM"))


def test_peft_is_refused_where_what_it_puts_in_has_no_effect() -> None:
    config = HfPeft.Config(peft_type="LORA", r=2, target_modules=["dt_proj"])
    with pytest.raises(MethodError, match=r"LORA adapts backbone.layers.0.mixer.dt_proj, which has no effect: Mamba"):
        HfPeft(config).patch(small_model("MambaForCausalLM"))
    config = HfPeft.Config(peft_type="LORA", r=2, target_modules=["in_proj"])
    assert any(True for _ in trained_parameters(HfPeft(config).patch(small_model("MambaForCausalLM"))))


@pytest.mark.parametrize("family", ["MixtralForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM"])
@pytest.mark.parametrize("method", ["lora all_linear", "ia3"])
def test_experts_read_parameters_only_in_calls_of_the_modules_that_hold_them(family: str, method: str) -> None:
    """What ZeRO-3 does: parameters are there from the call of their module to its end, as often on every rank."""
    model: Any = METHODS[method]().patch(base_model(family))
    disturb(model)
    with torch.no_grad():
        expected = target_logits(model)
    calls: list[str] = []

    def gather(module: Any, _: Any) -> None:
        calls.append(type(module).__name__)
        for parameter, value in module.whole:
            parameter.data = value

    def release(module: Any, *_: Any) -> None:
        for parameter, value in module.whole:
            parameter.data = value.new_empty(0)

    for module in model.modules():
        if "Experts" in type(module).__name__:
            module.whole = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]
            module.register_forward_pre_hook(gather)
            module.register_forward_hook(release)
            release(module)
    with torch.no_grad():
        assert torch.equal(target_logits(model), expected)
    mixtures = 1 if family == "Llama4ForCausalLM" else 2
    assert len(calls) == 2 * mixtures  # each mixture's wrapper and the experts within, once
