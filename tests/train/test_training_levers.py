"""Optimisations of training change only rounding: each is compared with the plain computation."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import disturb
from one_rank import training_alone
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.conformance.method_checks import PAIRS, batch_of
from bench.conformance.tiny_models import FAMILIES, VOCABULARY, WordTokenizer, tiny_llama, tiny_model
from bench.method import trained_parameters
from bench.models import shared_heads
from bench.models.architecture import DecoderOnly, Pair
from bench.models.base import load_model, load_tokenizer
from bench.models.lean_modules import is_gated_silu, use_lean_modules
from bench.models.shared_heads import heads_as_rows, sharing_heads
from bench.models.tokens import Tokenization
from bench.plugins.registry import load_method, targets
from bench.schema.trial import ModelSpec, TrainSpec
from bench.tasks.e2e import E2E
from bench.tasks.splits import training_examples
from bench.train import loss as losses
from bench.train.deepspeed_engine import TrainedOnly
from bench.train.lane import Lane
from bench.train.loss import TargetLoss
from bench.train.order import training_order


def patched(family: str, name: str, **settings: Any) -> Any:
    method_class = load_method(targets("method")[name])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = method_class(method_class.Config(**settings), WordTokenizer()).patch(tiny_model(family))
        disturb(model)
    return model


class Sizes(TorchDispatchMode):
    """Shapes of all tensors that come into being inside the block, and the operations that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.made.append((str(function), tuple(output.shape)))
        elif str(function) == "aten._local_scalar_dense.default":
            self.made.append((str(function), ()))
        return output


def loss_and_gradients(model: Any, smoothing: float, chunked: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    value = TargetLoss(model, smoothing, chunked).train().of(batch_of(model))
    (0.37 * value).backward()
    return value, {name: parameter.grad for name, parameter in trained_parameters(model) if parameter.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in ("gpt2", "llama", "t5", "bart") for name in ("full", "lora")]
    + [("llama", "prefix_tuning"), ("gpt2", "prompt_tuning")],
)
def test_the_chunked_loss_is_the_loss(
    family: str, name: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 2 * VOCABULARY + 5)  # two rows at a time
    model = patched(family, name)
    expected, gradients = loss_and_gradients(model, smoothing, chunked=False)
    found, chunked_gradients = loss_and_gradients(model, smoothing, chunked=True)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
    assert chunked_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(chunked_gradients[key], gradient, atol=1e-11, rtol=0)


def test_a_model_that_changes_its_logits_is_tried_once() -> None:
    model = patched("bart", "full")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_pre_hook(count)
    loss = TargetLoss(model)
    for expected in (2, 3, 4):
        loss.of(batch_of(model))
        assert calls == expected, "the first batch finds that BART adds a bias to its logits, and is computed again"
    assert not loss._chunked


@pytest.mark.parametrize("chunked", [True, False])
def test_labels_are_smoothed_in_training_only(chunked: bool) -> None:
    model = patched("llama", "lora")
    batch = batch_of(model)
    plain, smoothed = (TargetLoss(model, smoothing, chunked) for smoothing in (0.0, 0.1))
    with torch.no_grad():
        assert float(smoothed.eval().of(batch)) == float(plain.eval().of(batch)), "dev losses are those of the targets"
        assert abs(float(smoothed.train().of(batch)) - float(plain.train().of(batch))) > 1e-3


def test_half_precision_sums_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((40, 16), (300, 16)))
    targets = torch.randint(300, (40,), generator=generator)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [part.bfloat16().to(dtype).requires_grad_() for part in (hidden, weight)]
        value = losses.chunked_nll(leaves[0], leaves[1], None, targets, 0.0, 7 * 300)
        value.backward()
        assert value.dtype == torch.float32
        found[dtype] = [value, *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]
    for half, single in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        assert float((half.detach() - single.detach()).norm() / single.detach().norm()) < 1e-2


def test_logits_exist_for_targets_only_and_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 2 * VOCABULARY)
    model = patched("llama", "prefix_tuning")
    with Sizes() as sizes:
        TargetLoss(model).of(batch_of(model)).backward()
    products = [shape for operation, shape in sizes.made if operation == "aten.mm.default" and shape[-1] == VOCABULARY]
    assert max(rows for rows, _ in products) == 2
    assert sum(rows for rows, _ in products) == sum(len(pair.target_ids) for pair in PAIRS)
    # The frozen output projection costs no product for its own gradient.
    assert (VOCABULARY, 32) not in [shape for operation, shape in sizes.made if operation == "aten.mm.default"]


def test_a_loss_is_backpropagated_once() -> None:
    value = TargetLoss(patched("llama", "lora")).of(batch_of(patched("llama", "lora")))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        value.backward()


class Hooked(nn.Module):
    """Something that is no plain linear layer."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_what_is_no_plain_output_projection_is_left_alone() -> None:
    plain = nn.Linear(3, 4)
    assert losses.is_plain_linear(plain)
    assert not losses.is_plain_linear(Hooked())
    plain.register_forward_hook(lambda *_: None)
    assert not losses.is_plain_linear(plain)


class KeptElements:
    """Elements of all tensors that the backward pass of what runs inside the block keeps, by the size of their rows."""

    def __init__(self) -> None:
        self.elements: Counter[int] = Counter()
        self._seen: dict[int, torch.Tensor] = {}  # Tensors stay alive, so that no storage is counted twice.
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> KeptElements:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in self._seen:
            self.elements[tensor.shape[-1] if tensor.shape else 1] += tensor.numel()
        self._seen[tensor.untyped_storage()._cdata] = tensor
        return tensor


def with_and_without(
    family: str, name: str, lever: Callable[[Any], AbstractContextManager[None]]
) -> tuple[Counter[int], Counter[int]]:
    """What is kept without a lever and with it, once loss and gradients are known to be the same."""
    results = []
    for pull in (nullcontext, lever):
        model = patched(family, name)
        with pull(model):
            with KeptElements() as kept:
                value = TargetLoss(model).of(batch_of(model))
            value.backward()
        gradients = {key: parameter.grad for key, parameter in trained_parameters(model)}
        results.append((value, kept.elements, gradients))
    (plain, plain_kept, plain_gradients), (fast, fast_kept, fast_gradients) = results
    torch.testing.assert_close(fast, plain, atol=1e-11, rtol=0)
    for key, gradient in plain_gradients.items():
        torch.testing.assert_close(fast_gradients[key], gradient, atol=1e-11, rtol=0)
    return plain_kept, fast_kept


def lean(model: Any) -> AbstractContextManager[None]:
    use_lean_modules(model)
    return nullcontext()


@pytest.mark.parametrize("name", ["full", "prefix_tuning"])
def test_the_lean_gelu_is_gelu_new(name: str) -> None:
    model = patched("gpt2", name)
    assert not any(type(module) is nn.GELU for module in model.modules())
    use_lean_modules(model)
    assert sum(type(module) is nn.GELU for module in model.modules()) == 2
    plain, fast = with_and_without("gpt2", name, lean)
    # Full fine-tuning also keeps the activation itself, for the gradient of the layer behind it.
    assert plain[4 * 24] >= (1.75 if name == "full" else 2) * fast[4 * 24]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", ["full", "prefix_tuning", "ia3"])
def test_the_gated_mlp_is_the_mlp_and_keeps_a_tensor_less(name: str, family: str) -> None:
    plain, fast = with_and_without(family, name, lean)
    tokens = sum(pair.num_tokens for pair in PAIRS)
    assert plain[48] - fast[48] >= 2 * tokens * 48, "one tensor of the MLP's width in each of two layers"


class LlamaMLP(type(tiny_llama().model.layers[0].mlp)):  # type: ignore[misc]
    """The formula in other words, which is the formula still."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        return self.down_proj(up * self.act_fn(self.gate_proj(x)))


class Scales(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)) * 2)


class Clamps(LlamaMLP):
    limit = 7.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x).clamp(max=self.limit) * self.act_fn(self.gate_proj(x)))


class DropsInTraining(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.dropout(super().forward(x), 0.5, self.training))


class ReadsPastItsLayer(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(x) * self.act_fn(x @ self.gate_proj.weight.T))


class LooksAtItsSettings(LlamaMLP):
    """Equal to the formula where a setting says so."""

    multiplier = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiplier * super().forward(x)


def test_a_gated_mlp_is_known_by_what_it_computes() -> None:
    config = tiny_llama().config
    assert is_gated_silu(tiny_llama().model.layers[0].mlp)
    assert is_gated_silu(LlamaMLP(config))
    settled = LooksAtItsSettings(config)
    assert is_gated_silu(settled)
    settled.multiplier = 0.5
    assert not is_gated_silu(settled)
    for kind in (Scales, Clamps, DropsInTraining, ReadsPastItsLayer):
        assert not is_gated_silu(kind(config)), kind
    without_silu = LlamaMLP(config)
    without_silu.act_fn = nn.GELU()
    assert not is_gated_silu(without_silu)
    assert not any(
        is_gated_silu(module) for family in ("gpt2", "t5", "gemma3") for module in FAMILIES[family]().modules()
    )


def test_the_proof_leaves_the_module_and_the_random_state_alone() -> None:
    mlp = tiny_llama().model.layers[0].mlp
    before, random_state = {name: value.clone() for name, value in mlp.state_dict().items()}, torch.get_rng_state()
    assert is_gated_silu(mlp)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in mlp.state_dict().items())
    assert not any(module._forward_hooks for module in mlp.modules())


def test_copies_of_a_model_run_their_own_gated_mlps() -> None:
    model = tiny_model("llama")
    use_lean_modules(model)
    for module in copy.deepcopy(model).modules():
        if is_gated_silu(module):
            assert module.forward.__self__ is module


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3"])
@pytest.mark.parametrize("name", ["prefix_tuning", "full"])
def test_heads_that_share_keys_keep_no_copy_of_them(name: str, family: str) -> None:
    plain, fast = with_and_without(family, name, sharing_heads)
    channels = tiny_model(family).config.head_dim
    assert fast[channels] < plain[channels]


@pytest.mark.parametrize("mask", ["of rows", "of all"])
def test_heads_as_rows_are_the_heads(mask: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, tokens in ((6, 5), (2, 7), (2, 7))
    )
    seen = torch.rand(1 if mask == "of all" else 3, 1, 5, 7, generator=generator) < 0.7
    seen[..., 0] = True
    by_rows = heads_as_rows(query, key, value, seen, 0.0, 0.3)
    expected = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), seen, scale=0.3
    )
    torch.testing.assert_close(by_rows, expected, atol=1e-12, rtol=0)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((by_rows * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_in_half_precision_a_cpu_takes_the_gradient_of_attention_in_fp32(groups: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, groups, groups)]
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril() if masked else None
    weights = torch.randn(2, 6, 4, 8, generator=generator).bfloat16()
    module = nn.Module()
    module.num_key_value_groups = 4 // groups  # type: ignore[assignment] # as transformers' layers have it

    def attend(dtype: torch.dtype, training: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inputs = [leaf.bfloat16().to(dtype).requires_grad_(training) for leaf in leaves]
        output, _ = shared_heads.shared_heads_attention(module, *inputs, mask, is_causal=not masked)
        scalar = (output.float() * weights.float()).sum()
        return output, list(torch.autograd.grad(scalar, inputs)) if training else []

    _, exact_gradients = attend(torch.float32, training=True)
    found, gradients = attend(torch.bfloat16, training=True)
    read, _ = attend(torch.bfloat16, training=False)
    assert torch.equal(found, read), "a text is read alike in training and in decoding"
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        # The weights are exact in bf16, so that nothing but the results is rounded.
        assert torch.equal(gradient, exact_gradient.bfloat16())


@pytest.mark.parametrize("what", ["softcap", "position_bias"])
def test_scores_that_are_more_than_products_are_left_to_transformers(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Any] = []
    monkeypatch.setattr(shared_heads, "sdpa_attention_forward", lambda *args, **kwargs: left.append(kwargs))
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    shared_heads.shared_heads_attention(nn.Module(), query, key, key, mask, **{what: torch.ones(())})
    assert [list(kwargs) for kwargs in left] == [[what]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_shares_heads_and_puts_attention_back(one_rank: None, checkpointing: bool) -> None:
    method_class = load_method(targets("method")["prefix_tuning"])
    method = method_class(method_class.Config(num_prompt_tokens=3), WordTokenizer())
    model = method.patch(tiny_model("llama").float())
    used: list[str] = []
    method.after_step = lambda model, step: used.append(model.config._attn_implementation)
    spec = TrainSpec(learning_rate=1e-3, steps=2, batch_size=2, gradient_checkpointing=checkpointing)
    lane = Lane(method, model, spec, 0, lambda event: None)
    pairs = [Pair([5, 6, 7], [8, 9, 1]), Pair([5, 6], [8, 1])]
    training_alone([lane]).run(pairs, pairs)
    assert used == [shared_heads.SHARED_HEADS_ATTENTION] * 2
    assert model.config._attn_implementation == "sdpa"


def test_the_trunk_below_the_lowest_trained_layer_runs_without_a_graph() -> None:
    model = patched("llama", "top_layers", num_layers=1)
    seen: list[bool] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    TargetLoss(model).of(batch_of(model))
    assert seen == [False, True]
    # Prefix tuning trains in the lowest layer too, but what goes into that layer needs no graph.
    model = patched("llama", "prefix_tuning")
    inputs: list[bool] = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0].requires_grad))
    TargetLoss(model).of(batch_of(model))
    assert inputs == [False]


def test_e2e_batches_are_next_to_free_of_padding_even_in_short_runs(shared_data: Path) -> None:
    task = E2E(E2E.Config(path=str(shared_data / "e2e")))
    tokens = Tokenization(load_tokenizer(ModelSpec()), task.config, DecoderOnly())
    pairs = tokens.pairs(training_examples(task.load("train"), 320, 0))
    lengths = [pair.num_tokens for pair in pairs]
    order = training_order(lengths, batch_size=8, steps=40, seed=0)
    useful = sum(lengths[index] for batch in order for index in batch)
    padded = sum(8 * max(lengths[index] for index in batch) for batch in order)
    assert useful / padded >= 0.97


def test_an_engine_sees_what_is_trained_and_nothing_else() -> None:
    model = patched("llama", "prefix_tuning")
    whole = TargetLoss(model)
    shown = TrainedOnly(whole, [parameter for _, parameter in trained_parameters(model)])
    assert [id(p) for p in shown.parameters()] == [id(p) for _, p in trained_parameters(model)]
    assert len(list(shown.modules())) == 2
    shown.eval()
    assert not model.training
    shown.train()
    assert model.training
    batch = batch_of(model)
    assert torch.equal(shown(**vars(batch)), whole.of(batch))


def test_a_step_adds_no_wait_to_those_of_the_forward_pass(one_rank: None) -> None:
    method_class = load_method(targets("method")["prefix_tuning"])
    method = method_class(method_class.Config(num_prompt_tokens=3), WordTokenizer())
    model = method.patch(tiny_model("llama").float())
    pairs = [Pair([5, 6, 7], [8, 9, 1]), Pair([5, 6], [8, 1])] * 4
    lane = Lane(method, model, TrainSpec(learning_rate=1e-3, steps=4, batch_size=4), 0, lambda event: None)
    training = training_alone([lane])
    lane.begin(pairs, training.device)
    lane.order = [[0, 1, 2, 3], [4, 5, 6, 7]]
    engine = training._engine()
    engine.train()
    training._step(engine, [0], pairs, step=1)
    with Sizes() as of_step:
        training._step(engine, [0], pairs, step=2)
    # transformers looks at the mask, on the host, to see whether there is padding.
    with Sizes() as of_forward:
        TargetLoss(model).of(training.architecture.batch(pairs[4:], 0))
    assert waits(of_step) == waits(of_forward)
    reductions = [operation for operation, _ in of_step.made if operation.startswith("c10d")]
    assert not reductions, "one rank reduces with nobody"


def waits(sizes: Sizes) -> int:
    """How often a number was fetched from a tensor, which makes the host wait for a device."""
    return sum(operation == "aten._local_scalar_dense.default" for operation, _ in sizes.made)


def copied_bytes(file: Path) -> int:
    """Bytes of the pages of a mapped file that this process has written to, and so has copies of."""
    copied, of_the_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):  # a mapping begins
            of_the_file = line.endswith(str(file))
        elif of_the_file and key == "Anonymous:":
            copied += int(values[0]) * 1024
    return copied


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_stay_in_the_pages_of_their_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    on_disk = load_file(file)
    model = load_model(ModelSpec(path=str(tmp_path)), torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, on_disk[name])
    assert copied_bytes(file) == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # Training writes to copies of the pages.
    assert copied_bytes(file) >= sum(tensor.nbytes for tensor in on_disk.values())
    again = load_file(file)
    assert all(torch.equal(tensor, on_disk[name]) for name, tensor in again.items())
