"""What makes training fast changes nothing but rounding: each lever against its plain equal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import training_alone
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import loss as losses
from bench.architecture import DecoderOnly, Pair
from bench.contract import PAIRS, batch_of
from bench.data import Tokenization, training_order
from bench.engine import TrainedOnly
from bench.fused import use_fused_activations
from bench.lane import Lane
from bench.loss import TargetLoss
from bench.method import trained_parameters
from bench.models import load_model, load_tokenizer
from bench.registry import load_method, targets
from bench.spec import ModelSpec, TrainSpec
from bench.splits import training_examples
from bench.tasks.e2e import E2E
from bench.tiny_models import VOCABULARY, WordTokenizer, tiny_llama, tiny_model


def patched(family: str, name: str, **settings: Any) -> Any:
    method_class = load_method(targets("method")[name])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = method_class(method_class.Config(**settings), WordTokenizer()).patch(tiny_model(family))
        for _, parameter in trained_parameters(model):
            parameter.data += 0.1 * torch.randn_like(parameter)
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


@pytest.mark.parametrize("name", ["full", "prefix_tuning"])
def test_the_fused_gelu_is_gelu_new(name: str) -> None:
    results = []
    for fused in (False, True):
        model = patched("gpt2", name)
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() if tensor.shape[-1:] == (4 * 24,) else 0
            return tensor

        if fused:
            use_fused_activations(model)
        assert sum(type(module) is nn.GELU for module in model.modules()) == (2 if fused else 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = TargetLoss(model).of(batch_of(model))
        value.backward()
        results.append((value, kept, {key: parameter.grad for key, parameter in trained_parameters(model)}))
    (plain, plain_kept, plain_gradients), (fast, fast_kept, fast_gradients) = results
    torch.testing.assert_close(fast, plain, atol=1e-11, rtol=0)
    for key, gradient in plain_gradients.items():
        torch.testing.assert_close(fast_gradients[key], gradient, atol=1e-11, rtol=0)
    # Full fine-tuning also keeps the activation itself, for the gradient of the layer behind it.
    assert plain_kept >= (1.75 if name == "full" else 2) * fast_kept


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
    shown = TrainedOnly(whole)
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
