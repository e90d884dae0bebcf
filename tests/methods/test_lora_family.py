"""LoRA's relatives against Hugging Face peft, at the start and after three steps, and stored, merged and exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from one_rank import CPU, training_alone
from torch import nn

from bench.conformance.method_checks import batch_of, target_logits
from bench.conformance.subject import LONG_PAIRS, PAIRS
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import Method, MethodError, trained_parameters
from bench.models.architecture import architecture_of
from bench.models.quantization import Storage, quantize
from bench.plugins.registry import load_method, targets
from bench.quantized.linear import dequantize
from bench.schema.trial import TrainSpec
from bench.train.data_start import start_from_examples
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Lane, Trained
from methods.corda import _inverted
from methods.lora_ga import _gradients
from methods.parts.layer_inputs import lora_layers, watching_inputs
from methods.parts.lora_layer import LoRALayer

RANK, ALPHA = 3, 6.0
NAMES = ("rslora", "lora_plus", "lora_fa", "dora", "pissa", "olora", "eva", "corda", "lora_ga")
FROM_EXAMPLES = ("eva", "corda", "lora_ga")
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
EXAMPLES = [*PAIRS, *LONG_PAIRS[1:4]]


def patched(name: str, family: str = "llama", dtype: Any = torch.float32, **config: Any) -> tuple[Method, Any]:
    method_class = load_method(targets("method")[name])
    settings = {"rank": RANK, "alpha": ALPHA, **config}
    torch.manual_seed(0)
    method = method_class(method_class.Config(**settings), WordTokenizer())
    model: Any = method.patch(tiny_model(family, dtype=dtype))
    start_from_examples(method, model, EXAMPLES, 0, architecture_of(model.config), CPU)
    return method, model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return target_logits(model)


def three_steps(model: Any, groups: Sequence[dict[str, Any]] | None = None) -> None:
    batch = batch_of(model)
    trained = [parameter for _, parameter in trained_parameters(model)]
    optimizer = torch.optim.AdamW(groups or [{"params": trained}], lr=3e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(target_logits(model), batch.target_ids).backward()
        optimizer.step()


def of_peft(config: dict[str, Any], prepare: Callable[[Any, Any], None] | None = None) -> Any:
    from peft import LoraConfig, get_peft_model

    lora_config = LoraConfig(r=RANK, lora_alpha=ALPHA, **TARGETS, **config)
    base = tiny_model("llama", dtype=torch.float32)
    if prepare is not None:
        prepare(base, lora_config)
    return get_peft_model(base, lora_config).eval()


def one_by_one(model: Any, backward: bool = False) -> Callable[[], None]:
    order = torch.randperm(len(EXAMPLES), generator=torch.Generator().manual_seed(0)).tolist()

    def run() -> None:
        for index in order:
            batch = batch_of(model, [EXAMPLES[index]])
            loss = nn.functional.cross_entropy(target_logits(model, [EXAMPLES[index]]), batch.target_ids)
            if backward:
                loss.backward()

    return run


def corda(base: Any, config: Any) -> None:
    from peft.tuners.lora.corda import preprocess_corda

    preprocess_corda(base, config, one_by_one(base))


def lora_ga(base: Any, config: Any) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    preprocess_loraga(base, config, one_by_one(base, backward=True))


def corda_config() -> Any:
    from peft.tuners.lora.config import CordaConfig

    return CordaConfig(corda_method="ipm")


def lora_ga_config() -> Any:
    from peft.tuners.lora.config import LoraGAConfig

    return LoraGAConfig()


def peft_of(name: str) -> Any:
    match name:
        case "rslora":
            return of_peft({"use_rslora": True})
        case "dora":
            return of_peft({"use_dora": True})
        case "pissa" | "olora":
            return of_peft({"init_lora_weights": name})
        case "corda":
            return of_peft({"init_lora_weights": "corda", "corda_config": corda_config()}, corda)
        case "lora_ga":
            return of_peft({"init_lora_weights": "lora_ga", "lora_ga_config": lora_ga_config()}, lora_ga)
    return of_peft({})


def factors(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every adapted layer of peft's model, by our names."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            found[name.removeprefix("base_model.model.")] = (
                module.lora_A["default"].weight,
                module.lora_B["default"].weight,
            )
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_peft_at_the_start_and_after_three_steps(name: str) -> None:
    method, model = patched(name, **TARGETS)
    other = peft_of(name)
    base = tiny_model("llama", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(base), atol=1e-5, rtol=0)
    ours = lora_layers(model)
    assert ours.keys() == factors(other).keys()
    for layer_name, (down, up) in factors(other).items():
        layer = ours[layer_name]
        if name in ("pissa", "olora", "corda"):
            torch.testing.assert_close(layer.lora_A @ layer.lora_A.T, down @ down.T, atol=2e-3, rtol=1e-2)
            torch.testing.assert_close(layer.lora_B @ layer.lora_A, up @ down, atol=2e-3, rtol=1e-2)
        if name == "lora_ga":  # up to signs of singular vectors; peft's are those of a randomised algorithm
            torch.testing.assert_close(layer.lora_A.abs(), down.abs(), atol=5e-3, rtol=0)
            torch.testing.assert_close(layer.lora_B.abs(), up.abs(), atol=5e-3, rtol=0)
        with torch.no_grad():
            if name in ("pissa", "olora", "corda", "lora_ga"):
                layer.start_from([(down, up)])
            else:
                down.copy_(layer.lora_A)
        if name == "lora_fa":
            down.requires_grad_(False)
    groups = None
    if name == "lora_plus":
        from peft.optimizers import create_loraplus_optimizer

        made = create_loraplus_optimizer(other, torch.optim.AdamW, lr=3e-3, loraplus_lr_ratio=16, weight_decay=0.0)
        groups = [{"params": group["params"], "lr": group["lr"]} for group in made.param_groups if group["params"]]
    three_steps(other, groups)
    own = [{"params": g["params"], "lr": 3e-3 * g["lr_scale"]} for g in method.parameter_groups(model)]
    three_steps(model, own)
    assert float((logits(model) - logits(base)).abs().max()) > 1e-2
    torch.testing.assert_close(logits(model), logits(other), atol=2e-4, rtol=0)


def test_eva_starts_along_the_principal_components_of_what_each_layer_reads() -> None:
    method, model = patched("eva", **TARGETS)
    layers = lora_layers(model)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    with watching_inputs(layers, lambda name, x: seen[name].append(x)), torch.no_grad():
        one_by_one(model)()
    for name, layer in layers.items():
        inputs = torch.cat(seen[name]).double()
        _, _, right = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
        cosines = (layer.lora_A.double() * right[:RANK]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(RANK, dtype=torch.float64), atol=1e-4, rtol=0)
        assert not layer.lora_B.any()
    with pytest.raises(MethodError, match="has read fewer tokens than rank: 30; look at more examples"):
        patched("eva", rank=30, examples=1, target_modules=["down_proj"])
    assert method.start_examples == 64


@pytest.mark.parametrize(
    ("family", "name", "target_modules", "outputs"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value", ["query", "value"], 32),  # of 96 that are joined
        ("gpt2", "transformer.h.0.mlp.c_fc", ["c_fc"], 96),  # of a weight that is stored as 24 x 96
    ],
)
def test_lora_ga_scales_what_is_adapted_by_its_outputs(
    family: str, name: str, target_modules: list[str], outputs: int
) -> None:
    _, model = patched("lora_ga", family, target_modules=target_modules)
    base = tiny_model(family, dtype=torch.float32)
    weight = base.get_submodule(name).weight.requires_grad_(True)
    one_by_one(base, backward=True)()
    layer = lora_layers(model)[name]
    parts = layer.rows_of_parts(weight.grad / len(EXAMPLES))
    assert len(parts) == len(target_modules)
    for part, up in zip(parts, torch.split_with_sizes(layer.lora_B, layer.part_sizes), strict=True):
        values = torch.linalg.svdvals(part)[RANK : 2 * RANK]
        torch.testing.assert_close(up.norm(dim=0), outputs**0.25 / 16**0.5 * values, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("name", NAMES)
def test_moved_it_is_stored_merged_and_handed_on_to_peft_as_it_is(name: str, family: str) -> None:
    method, model = patched(name, family, torch.float64)
    base = tiny_model(family)
    assert all(torch.equal(base.get_parameter(key), value) for key, value in tiny_model(family).named_parameters())
    with torch.no_grad():
        torch.manual_seed(3)
        for _, parameter in trained_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = logits(model)
    assert float((expected - logits(base)).abs().max()) > 1e-3
    state = copy.deepcopy(method.adapter_state(model))
    torch.manual_seed(9)
    other = type(method)(method.config, WordTokenizer())
    fresh: Any = other.patch(tiny_model(family)).eval()
    other.load_adapter_state(fresh, state)
    torch.testing.assert_close(logits(fresh), expected, atol=1e-10, rtol=0)
    exported = method.to_peft(model)
    method.merge(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-9, rtol=0)
    assert method.mergeable
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = {key: value for key, value in exported.config.items() if key != "peft_type"}
    theirs: Any = get_peft_model(tiny_model(family), LoraConfig(**config), autocast_adapter_dtype=False).eval()
    assert not set_peft_model_state_dict(theirs, exported.state).unexpected_keys
    torch.testing.assert_close(logits(theirs), expected, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("one_rank")
def test_trials_that_start_from_examples_share_a_pass_and_a_start_does_not_depend_on_the_length() -> None:
    def lane(name: str, model: Any, seed: int, stop: int | None = None) -> Lane:
        method_class = load_method(targets("method")[name])
        method = method_class(method_class.Config(rank=RANK, examples=6), WordTokenizer())
        torch.manual_seed(seed)
        train = TrainSpec(learning_rate=3e-3, steps=4, batch_size=2, evaluate_every_steps=2)
        return Lane(method, method.patch(model), train, seed, lambda event: None, stop)

    def run(*lanes: Lane) -> list[Any]:
        results = training_alone(lanes).run([*EXAMPLES, *EXAMPLES], EXAMPLES[:3])
        assert all(isinstance(result, Trained) for result in results)
        return results

    for name in FROM_EXAMPLES:
        alone = [run(lane(name, tiny_model("llama"), seed))[0] for seed in (0, 1)]
        models = copies_sharing_weights(tiny_model("llama"), 2)
        together = run(*(lane(name, model, seed) for seed, model in enumerate(models)))
        for one, other in zip(together, alone, strict=True):
            assert [p.loss for p in one.train_curve] == pytest.approx([p.loss for p in other.train_curve], abs=1e-9)
            assert one.best.loss < 10
        short = run(lane(name, tiny_model("llama"), 0, stop=2))[0]
        assert short.train_curve == alone[0].train_curve[:2]


def quantised(family: str = "llama") -> Any:
    model = tiny_model(family, dtype=torch.float32)
    quantize(model, Storage("nf4"))
    return model


@pytest.mark.filterwarnings("ignore")
def test_loftq_starts_at_what_quantising_took_away_and_trains_on_as_in_peft() -> None:
    """As peft's ``replace_lora_weights_loftq`` starts, which needs a GPU, on the dequantised weights.

    bitsandbytes' own layers, on which peft would train, lose the gradient on a CPU.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.loftq_utils import _low_rank_decomposition

    method_class = load_method(targets("method")["loftq"])
    method = method_class(method_class.Config(rank=RANK, alpha=RANK, **TARGETS))
    model: Any = method.patch(quantised()).eval()
    before, packed, whole = tiny_model("llama", dtype=torch.float32), quantised(), quantised()
    dequantize(whole)
    theirs: Any = get_peft_model(whole, LoraConfig(r=RANK, lora_alpha=RANK, **TARGETS)).eval()
    for name, layer in lora_layers(model).items():
        lost = before.get_submodule(name).weight - packed.get_submodule(name).dequantized(torch.float32)
        their_factors = _low_rank_decomposition(lost, reduced_rank=RANK)
        torch.testing.assert_close(
            layer.lora_B @ layer.lora_A, their_factors["L"] @ their_factors["R"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(layer.lora_A.abs(), their_factors["R"].abs(), atol=1e-3, rtol=0)
        torch.testing.assert_close(layer.lora_B.abs(), their_factors["L"].abs(), atol=1e-3, rtol=0)
        down, up = factors(theirs)[name]
        with torch.no_grad():
            down.copy_(their_factors["R"])
            up.copy_(their_factors["L"])

    def distance(other: Any) -> float:
        return float((logits(other) - logits(before)).norm())

    assert distance(model) < distance(packed)
    scaled: Any = method_class(method_class.Config(rank=RANK, alpha=4 * RANK, **TARGETS)).patch(quantised()).eval()
    torch.testing.assert_close(logits(scaled), logits(model), atol=1e-4, rtol=0)
    exported = method.to_peft(model)
    assert exported.config["peft_type"] == "LORA"
    assert set(method.adapter_state(model)) == {name for name, _ in trained_parameters(model)}
    three_steps(model)
    three_steps(theirs)
    assert float((logits(model) - logits(scaled)).abs().max()) > 1e-2, "it has learnt"
    torch.testing.assert_close(logits(model), logits(theirs), atol=2e-4, rtol=0)
    half = quantised()
    half.model.layers[0].self_attn.q_proj.original = None
    with pytest.raises(MethodError, match="q_proj: what quantising took away is not known"):
        method.patch(half)


@pytest.mark.filterwarnings("ignore")
def test_dora_on_quantised_weights_is_peft_on_the_dequantised_ones() -> None:
    from peft import LoraConfig, get_peft_model

    method_class = load_method(targets("method")["dora"])
    method = method_class(method_class.Config(rank=RANK, alpha=ALPHA, **TARGETS))
    torch.manual_seed(0)
    model: Any = method.patch(quantised()).eval()
    whole = quantised()
    dequantize(whole)
    lora_config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, **TARGETS)
    other: Any = get_peft_model(whole, lora_config).eval()
    ours = lora_layers(model)
    with torch.no_grad():
        for name, (down, _) in factors(other).items():
            down.copy_(ours[name].lora_A)
    torch.testing.assert_close(logits(model), logits(other), atol=1e-5, rtol=0)
    three_steps(model)
    three_steps(other)
    torch.testing.assert_close(logits(model), logits(other), atol=2e-4, rtol=0)
    with pytest.raises(MethodError, match="stored in nf4 cannot take up what is trained"):
        method.merge(model)


@pytest.mark.parametrize("name", ["corda", "lora_ga"])
def test_a_layer_that_no_example_reaches_is_named(name: str) -> None:
    """As an expert that gets no token."""
    method_class = load_method(targets("method")[name])
    method = method_class(method_class.Config(rank=RANK))
    model: Any = method.patch(tiny_model("llama", dtype=torch.float32))
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    refusal = r"none of the 6 has reached 2 of the adapted layers.*: model.layers.1.self_attn.q_proj, model.layers.1"
    with pytest.raises(MethodError, match=refusal):
        start_from_examples(method, model, EXAMPLES, 0, architecture_of(model.config), CPU)


def test_inputs_that_say_nothing_are_told() -> None:
    for value in (float("nan"), 0.0):
        with pytest.raises(MethodError, match=r"q_proj: the covariance of its inputs .* is not finite, or zero"):
            _inverted(torch.full((2, 2), value), "q_proj")


def test_gradients_below_the_range_of_fp16_are_found() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])

    def of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        weight = nn.Parameter(torch.ones(2, 2, dtype=dtype))
        loss = nn.functional.linear(x.to(dtype), weight).float().sum() * 1e-8
        return dict(_gradients(loss, {"weight": weight, "beside": nn.Parameter(weight.detach().clone())}))

    (exact,) = of(torch.float32).values()
    (in_fp16,) = of(torch.float16).values()
    torch.testing.assert_close(in_fp16, exact, rtol=1e-2, atol=0)
    assert in_fp16.dtype == torch.float32
    assert torch.equal(exact, (1e-8 * x.sum(0)).expand(2, 2))


def test_a_rank_that_a_weight_does_not_have_is_refused() -> None:
    for name in ("pissa", "olora", "corda", "lora_ga", "eva"):
        refusal = r"rank: 40 is more than model.layers.0|rank: 80 is more"
        with pytest.raises(MethodError, match=refusal):
            patched(name, rank=40)
        method_class = load_method(targets("method")[name])
        with pytest.raises(MethodError, match=refusal):
            method_class(method_class.Config(rank=40)).patch(tiny_model("llama").to("meta"))


def test_eva_has_as_many_components_as_a_layer_has_inputs() -> None:
    _, model = patched("eva", rank=20, target_modules=["v_proj"])
    for layer in lora_layers(model).values():
        assert (layer.out_features, layer.lora_A.shape) == (16, (20, 32))
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.T, torch.eye(20), atol=1e-4, rtol=0)
    method_class = load_method(targets("method")["eva"])
    method_class(method_class.Config(rank=32, target_modules=["v_proj"])).patch(tiny_model("llama").to("meta"))
    with pytest.raises(MethodError, match=r"rank: 33 is more than .*v_proj has .* one for each of its 32 inputs"):
        method_class(method_class.Config(rank=33, target_modules=["v_proj"])).patch(tiny_model("llama").to("meta"))


def test_loftq_refuses_a_rank_that_a_weight_does_not_have_also_without_values() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    model = model.to("meta")
    quantize(model, Storage("nf4"))
    method_class = load_method(targets("method")["loftq"])
    with pytest.raises(MethodError, match=r"rank: 17 is more than .*v_proj has, whose adapted part is 16 x 32"):
        method_class(method_class.Config(rank=17, target_modules=["v_proj"])).patch(model)
    assert method_class(method_class.Config(rank=16, target_modules=["v_proj"])).patch(model)


def test_a_start_is_made_without_values_where_models_have_none() -> None:
    for name in NAMES:
        method_class = load_method(targets("method")[name])
        with torch.device("meta"):
            model = tiny_model("llama")
        model = model.to("meta")
        patched_model = method_class(method_class.Config()).patch(model)
        assert [parameter for _, parameter in trained_parameters(patched_model)]
        assert isinstance(next(iter(lora_layers(patched_model).values())), LoRALayer)
