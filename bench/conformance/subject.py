"""Shared by the checks of methods: a method on a tiny model, batches of every kind, and their logits.

B batch, T tokens, N target tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.conformance.tiny_models import EOS, VOCABULARY, WordTokenizer, tiny_model
from bench.method import Method, trained_parameters
from bench.models.architecture import Batch, Pair, Side, accepted_inputs, architecture_of
from bench.models.checkpointed_activations import compute_activations_twice
from bench.models.quantization import Storage, quantize, require_bitsandbytes
from bench.quantized.linear import Quantization

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}

# Sources and targets of different length, so that batching them needs padding. Ids 0 and 1 are padding and end.
PAIRS = (Pair([7, 21, 5, 40], [13, 2, 33]), Pair([11, 3], [60]), Pair([25, 8, 14], [90, 6]))

Mode = Literal["evaluation", "training", "training with gradient checkpointing"]
TRAINING_MODES: tuple[Mode, ...] = ("training", "training with gradient checkpointing")
MODES: tuple[Mode, ...] = ("evaluation", *TRAINING_MODES)


class ContractError(AssertionError):
    """A method breaks the contract."""


def broken(found: str, expected: str, likely: str) -> ContractError:
    """A message for the author of a method: what is wrong, what is expected, and the likely mistake."""
    return ContractError(f"{found}; expected {expected}; likely {likely}")


@cache
def _pristine(family: str, dtype: torch.dtype, layers: int | None, quantization: Quantization | None) -> Any:
    model = tiny_model(family, dtype=dtype, layers=layers)
    if quantization is not None:
        require_bitsandbytes(quantization)
        quantize(model, Storage(quantization))
    return model


@dataclass(frozen=True)
class Subject:
    """A method with settings, and the family of tiny models to check it on, whose weights may be quantised."""

    method_class: type[Method]
    config: Any
    family: str
    dtype: torch.dtype = torch.float64
    quantization: Quantization | None = None

    def base_model(self, layers: int | None = None) -> Any:
        """A new copy of the frozen model, always with the same weights. ``layers`` replaces its two layers."""
        return copy.deepcopy(_pristine(self.family, self.dtype, layers, self.quantization))

    def method(self) -> Method:
        return self.method_class(self.config, WordTokenizer())

    def patched(
        self, disturbed: bool = True, base: Any = None, seed: int = 1, checkpointing: bool = False
    ) -> tuple[Method, Any]:
        """A freshly patched model. ``disturbed`` moves trained tensors, which at their start may have no effect."""
        method = self.method()
        with seeded(seed):
            model = method.patch(self.base_model() if base is None else base)
            if disturbed:
                disturb(model)
        if checkpointing:
            compute_activations_twice(model)
        return method, model.eval()


def disturb(model: nn.Module) -> None:
    """Add random numbers to the trained tensors."""
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block the random states that a trial seeds begin at ``seed``; after it they are as before.

    A trial does not seed numpy, which therefore gets a random seed.
    """
    python, of_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed()
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(of_numpy)


class ExactFloat64(TorchFunctionMode):
    """Inside the block no tensor in float64, and none of whole numbers, becomes float32: all become float64.

    Norms and softmax of transformers compute in float32 for any input, which is too inexact for finite differences, and
    up to 5.18 it multiplies positions by frequencies in one product, which takes tensors of one dtype only.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        exact = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype in (torch.float64, torch.int64)
        if exact and func is torch.Tensor.float:
            return args[0].double()
        if exact and func in (torch.Tensor.to, torch.Tensor.type) and torch.float32 in (*args[1:], *kwargs.values()):
            return args[0].double()
        if exact and kwargs.get("dtype") is torch.float32 and func in _SOFTMAX:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


_SOFTMAX = frozenset({nn.functional.softmax, torch.softmax, torch.Tensor.softmax, nn.functional.log_softmax})


def pairs_of(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[Pair]:
    """Pairs of random tokens, without special ones, with these lengths of source and target."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    return [Pair(ids(source), ids(target)) for source, target in lengths]


# 3, 17, 33, 70 and 100 tokens: some methods go wrong only beyond a block of 16, 32 or 64.
LONG_LENGTHS = ((2, 1), (5, 12), (20, 13), (35, 35), (30, 70))
LONG_PAIRS = pairs_of(LONG_LENGTHS)


def batch_of(model: Any, pairs: Sequence[Pair] = PAIRS, side: Side = "right", pad_token_id: int = 0) -> Batch:
    """A batch of pairs as in training of this kind of model."""
    return architecture_of(model.config).batch(pairs, pad_token_id=pad_token_id, side=side)


def logits_of(model: Any, batch: Batch, **kwargs: Any) -> torch.Tensor:
    """Logits ``(B, T, V)``, with explicit positions as in training and scoring."""
    logits: torch.Tensor = model(**accepted_inputs(model, batch.inputs), **kwargs).logits
    return logits


def target_logits(model: Any, pairs: Sequence[Pair] = PAIRS, side: Side = "right", **kwargs: Any) -> torch.Tensor:
    """Logits ``(N, V)`` at the positions that predict target tokens, one pair after the other."""
    batch = batch_of(model, pairs, side)
    return logits_of(model, batch, **kwargs).flatten(0, 1)[batch.predicting]


def logits_in(mode: Mode, model: Any, batch: Batch, seed: int = 5, **kwargs: Any) -> torch.Tensor:
    """Logits ``(B, T, V)`` in a mode, with dropout from ``seed``. The model is in evaluation mode afterwards.

    In the modes of training gradients are enabled, as in the loop. Checkpointing has to be on in the model already.
    """
    model.train(mode != "evaluation")
    try:
        with seeded(seed), torch.set_grad_enabled(mode != "evaluation"):
            return logits_of(model, batch, use_cache=False, **kwargs).detach()
    finally:
        model.eval()


def is_random(mode: Mode, model: Any) -> bool:
    """Whether a model draws random numbers in this mode, as dropout does."""
    batch = batch_of(model)
    return not torch.equal(logits_in(mode, model, batch, seed=5), logits_in(mode, model, batch, seed=6))


def read_ids(batch: Batch) -> torch.Tensor:
    """Ids ``(B, T)`` of the tokens that have logits: those of the decoder if there is an encoder."""
    return batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"])


def until_end(tokens: torch.Tensor) -> list[int]:
    """A generated row up to its end token, without padding."""
    ids: list[int] = tokens.tolist()
    return ids[: ids.index(EOS)] if EOS in ids else [token for token in ids if token != 0]


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference; NaN if either tensor has one."""
    return float((actual - expected).abs().max()) if actual.numel() else 0.0


def require_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    what: str,
    wanted: str,
    likely: str,
    tolerance: float | None = None,
) -> None:
    """Raise :class:`ContractError` unless two tensors are equal to rounding."""
    if actual.shape != expected.shape:
        raise broken(f"{what}: shape {tuple(actual.shape)}", f"{wanted}, shape {tuple(expected.shape)}", likely)
    allowed = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    largest = difference(actual, expected)
    if not largest <= allowed:
        raise broken(f"{what}: largest difference {largest:.3g}", f"{wanted} (allowed {allowed:g})", likely)


def gradient_tolerance(expected: torch.Tensor) -> float:
    """The rounding error allowed in a gradient, which grows with its largest element."""
    return TOLERANCES[expected.dtype] * max(1.0, float(expected.abs().max()))


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of all parameters and buffers."""
    yield from model.named_parameters()
    yield from model.named_buffers()
