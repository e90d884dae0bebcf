"""What a training step computes and keeps in memory, found by tracing the real code on tensors without data.

The patched model and the loss of :mod:`bench.train.loop` run forward and backward on fake tensors: shapes and types, no
numbers, no memory. Every operation is counted by PyTorch's own formulas, every storage that it makes is followed to
its end. So the forecast holds for any method, plugins included, and follows whatever the training code becomes.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper

from bench.method import trained_parameters
from bench.models import base
from bench.models.architecture import Pair
from bench.models.checkpointed_activations import compute_activations_twice
from bench.models.masters import HALF, compute_in
from bench.models.shared_heads import sharing_heads
from bench.plugins.registry import load_optimizer, make_method
from bench.schema.trial import MethodSpec, ModelSpec, TrainSpec
from bench.train.loss import TargetLoss
from bench.train.zero3 import largest_layer

aten = torch.ops.aten


def grouped_product_flop(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of the products of a mixture of experts, each of some rows of ``left`` and the weight of an expert.

    Args:
        left: The shape ``(M, K)`` of the rows of all experts, or ``(G, M, K)``.
        right: The shape ``(G, K, N)``, or ``(K, N)``.
    """
    of_each = left[0] if len(left) == len(right) == 3 else 1  # else the sizes of the groups add up to one of the shape
    return 2 * of_each * left[-2] * left[-1] * right[-1]


# PyTorch's counter knows the attention kernels of GPUs; those of CPUs do the same work. It does not know the product
# that mixtures of experts compute with.
UNCOUNTED: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    aten._grouped_mm: shape_wrapper(grouped_product_flop),  # type: ignore[no-untyped-call]
}
FLOP_FORMULAS: dict[Any, Any] = {**flop_registry, **UNCOUNTED}

# Products that a CPU multiplies through oneDNN in half precision, if they have more FLOPs than these.
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
SMALL_PRODUCT_FLOPS = 2 * 16**3


class TraceError(RuntimeError):
    """A method's step cannot be traced without data, most often because it looks at values."""


@dataclass(frozen=True)
class StepTrace:
    """One micro-batch, forward and backward."""

    rows: int
    padded_tokens: int
    target_tokens: int
    attention_flops: float
    vocabulary_flops: float  # of operations that have the vocabulary among their sizes
    other_flops: float
    forward_fraction: float  # of all FLOPs
    kernels: int  # operations that compute something; views do not
    peak_bytes: int  # of all that the step makes, gradients included
    peak_without_gradients_bytes: int
    logits_bytes: int  # at the peak without gradients: what has the vocabulary among its sizes
    trained_elements: int
    stored_elements: int
    gradient_bytes: int  # of all trained parameters
    state_bytes: float  # what the optimiser keeps of all trained parameters
    weight_bytes: int  # parameters and buffers, trained or not
    largest_layer_bytes: int  # of what ZeRO 3 gathers at a time
    largest_gradient_bytes: int  # of one trained parameter
    # Shapes and strides of products in half precision by where they come first: forward, backward, or vocabulary,
    # which they have among their sizes.
    products: dict[str, list[str]]

    @property
    def flops(self) -> float:
        return self.attention_flops + self.vocabulary_flops + self.other_flops


class StepTracer:
    """A patched model without data, ready to be traced at any shape.

    Args:
        method: What to patch.
        model: What is patched.
        train: For checkpointing, label smoothing, dropout, the optimiser.
        dtype: Of the weights.
    """

    def __init__(self, method: MethodSpec, model: ModelSpec, train: TrainSpec, dtype: torch.dtype) -> None:
        self.architecture = base.architecture(model)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._name = method.name
        with self._tracing(fake=False):
            patching = make_method(method)
            patched: Any = patching.patch(base.empty_model(model, dtype, train.dropout))
            compute_in(dtype, patched)
            self._stored_elements = sum(tensor.numel() for tensor in patching.adapter_state(patched).values())
            self._state_bytes = load_optimizer(train.optimizer)(train).state_bytes(patched)
        with self._tracing():
            _materialise(patched)
            if train.gradient_checkpointing:
                # Random states have no part in what is computed, and a fake tensor has none to keep.
                compute_activations_twice(patched, preserve_rng_state=False)
            self._loss = TargetLoss(patched, train.label_smoothing).train()
        self.model = patched

    def trace(self, pairs: Sequence[Pair]) -> StepTrace:
        """One forward and backward pass over these pairs as one micro-batch.

        Raises:
            TraceError: The step looks at values.
        """
        trained = [parameter for _, parameter in trained_parameters(self.model)]
        for parameter in trained:
            parameter.grad = None
        with self._tracing():
            batch = self.architecture.batch(pairs, 0)
            with sharing_heads(self.model), following(self.model) as follower, DropoutOutsideAttention():
                loss = self._loss.of(batch)
                forward = sum(follower.flops.values())
                follower.direction = "backward"
                loss.backward()  # type: ignore[no-untyped-call]
        weights = [tensor.untyped_storage() for tensor in (*self.model.parameters(), *self.model.buffers())]
        sizes = {storage._cdata: storage.nbytes() for storage in weights}
        return StepTrace(
            rows=len(pairs),
            padded_tokens=self.architecture.padded_tokens(pairs),
            target_tokens=len(batch.target_ids),
            attention_flops=follower.flops["attention"],
            vocabulary_flops=follower.flops["vocabulary"],
            other_flops=follower.flops["other"],
            forward_fraction=forward / sum(follower.flops.values()),
            kernels=follower.kernels,
            peak_bytes=follower.peak,
            peak_without_gradients_bytes=follower.peak_without_gradients,
            logits_bytes=follower.logits_at_peak,
            trained_elements=sum(parameter.numel() for parameter in trained),
            stored_elements=self._stored_elements,
            state_bytes=self._state_bytes,
            gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
            weight_bytes=sum(sizes.values()),
            largest_layer_bytes=largest_layer(self.model) * next(self.model.parameters()).element_size(),
            largest_gradient_bytes=max(parameter.numel() * parameter.element_size() for parameter in trained),
            products=follower.products_by_place(),
        )

    @contextmanager
    def _tracing(self, fake: bool = True) -> Iterator[None]:
        try:
            with self._mode if fake else nullcontext(), torch.random.fork_rng():
                yield
        except Exception as error:  # A plugin may do whatever it likes with tensors that hold nothing.
            raise TraceError(f"the step of method {self._name!r} cannot be traced without data: {error}") from error


def _materialise(model: Any) -> None:
    """Move a model off the meta device. Parameters that modules share stay shared."""
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    model.to_empty(device="cpu")
    for (first, first_name), *others in places.values():
        for module, name in others:
            module._parameters[name] = first._parameters[first_name]


class DropoutOutsideAttention(TorchFunctionMode):
    """Attention without dropout, whose kernels on CPUs are others than those of GPUs: they keep every weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@dataclass
class _Storage:
    size: int
    kind: str


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by PyTorch's formulas and follows the storages that they make.

    Args:
        vocabulary: V, by which logits are told from other tensors.
        present: Tensors that are there before.
    """

    def __init__(self, vocabulary: int, present: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.flops = {"attention": 0.0, "vocabulary": 0.0, "other": 0.0}
        self.kernels = 0
        self.peak = 0
        self.peak_without_gradients = 0
        self.logits_at_peak = 0
        self.direction = "forward"
        self._places: dict[str, str] = {}  # of products
        self._live = {tensor.untyped_storage()._cdata: _Storage(0, "present") for tensor in present}
        self._sums = {"present": 0, "gradient": 0, "logits": 0, "other": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _computed(func, args, kwargs or {})
        if func.namespace not in ("aten", "bitsandbytes"):
            return out
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        if any(returned.alias_info is None or returned.alias_info.is_write for returned in func._schema.returns):
            self.kernels += 1
        for tensor in made:
            self._follow(tensor)
        if (formula := FLOP_FORMULAS.get(func._overloadpacket)) is not None:
            count = formula(*args, **(kwargs or {}), out_val=out)
            kind = self._kind_of_work(func, [*tree_leaves((args, kwargs)), *made])
            self.flops[kind] += count
            if func._overloadpacket in PRODUCTS and made[0].dtype in HALF and count > SMALL_PRODUCT_FLOPS:
                self._places.setdefault(_product(func, args), kind if kind == "vocabulary" else self.direction)
        return out

    def products_by_place(self) -> dict[str, list[str]]:
        """The products in half precision that differ in shapes or strides, by where they came first."""
        found: dict[str, list[str]] = {}
        for product, place in sorted(self._places.items()):
            found.setdefault(place, []).append(product)
        return found

    def becomes_gradient(self, parameter: torch.Tensor) -> None:
        """A parameter's gradient is complete: its storage stays."""
        if parameter.grad is None:
            return
        storage = self._live.get(parameter.grad.untyped_storage()._cdata)
        if storage is not None and storage.kind != "gradient":
            self._sums[storage.kind] -= storage.size
            self._sums["gradient"] += storage.size
            storage.kind = "gradient"

    def _kind_of_work(self, func: Any, leaves: Sequence[Any]) -> str:
        if "dot_product" in str(func):
            return "attention"
        return "vocabulary" if any(self.vocabulary in getattr(leaf, "shape", ()) for leaf in leaves) else "other"

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        kind = "logits" if self.vocabulary in tensor.shape else "other"
        self._live[key] = _Storage(storage.nbytes(), kind)
        self._sums[kind] += storage.nbytes()
        weakref.finalize(storage, self._end, key)
        without_gradients = self._sums["logits"] + self._sums["other"]
        self.peak = max(self.peak, without_gradients + self._sums["gradient"])
        if without_gradients > self.peak_without_gradients:
            self.peak_without_gradients = without_gradients
            self.logits_at_peak = self._sums["logits"]

    def _end(self, key: int) -> None:
        if (storage := self._live.pop(key, None)) is not None:
            self._sums[storage.kind] -= storage.size


def _product(func: Any, args: Sequence[Any]) -> str:
    """What oneDNN tells products by."""
    tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
    return f"{func} " + " ".join(f"{tuple(tensor.shape)}/{tensor.stride()}" for tensor in tensors)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation; on fake tensors the product of experts is known in bf16 only, whose shape it has."""
    left = args[0] if args else None
    if func is aten._grouped_mm.default and isinstance(left, FakeTensor) and left.dtype != torch.bfloat16:
        return func(*(each.bfloat16() for each in args[:2]), *args[2:], **kwargs).to(left.dtype)
    return func(*args, **kwargs)


@contextmanager
def following(model: Any) -> Iterator[Follower]:
    """Follow what a patched model computes and makes, told of its gradients as they are complete."""
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    follower = Follower(vocabulary, [*model.parameters(), *model.buffers()])
    hooks: list[Any] = [
        parameter.register_post_accumulate_grad_hook(follower.becomes_gradient)  # type: ignore[no-untyped-call]
        for _, parameter in trained_parameters(model)
    ]
    try:
        with follower:
            yield follower
    finally:
        for hook in hooks:
            hook.remove()
