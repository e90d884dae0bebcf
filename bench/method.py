"""The one module that authors of a method import.

A method gets the base model *already frozen*, patches it, and names nothing else: not the loop, not the device, not
the seed, not other ranks. Whatever requires grad after :meth:`Method.patch` is trained.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bench.lane_rows import Lanes, for_rows, join_lanes, lane_modules, of_lanes
from bench.quantized.linear import computes_like, quantization_of
from bench.schema.search_space import Choices, Range, SearchSpace
from bench.schema.strict_numbers import StrictNumbers
from bench.shards.slices import whole

__all__ = [
    "Choices",
    "Lanes",
    "Method",
    "MethodConfig",
    "MethodError",
    "PeftAdapter",
    "Range",
    "SearchSpace",
    "computes_like",
    "copy_state",
    "for_rows",
    "join_lanes",
    "lane_modules",
    "of_lanes",
    "positions_of",
    "quantization_of",
    "require_whole_weights",
    "trained_parameters",
    "whole",
]


class MethodConfig(StrictNumbers):
    """Base of a method's own settings: frozen, and an unknown key is an error."""


class MethodError(ValueError):
    """A method cannot do what was asked of it with this model."""


@dataclass(frozen=True)
class PeftAdapter:
    """A trained adapter in the terms of Hugging Face peft; see :meth:`Method.to_peft`."""

    config: dict[str, Any]
    """Fields of peft's configuration that differ from their defaults, ``peft_type`` among them."""
    state: dict[str, torch.Tensor]
    """Tensors under the names that peft stores them by."""


class Method(ABC):
    """How a frozen base model is patched and what of it is trained.

    The first line of the docstring is the description that ``tuneoff methods`` prints.

    Args:
        config: Validated settings.
        tokenizer: Of the base model. ``None`` where a model is only counted (its weights are on the meta device).
    """

    class Config(MethodConfig):
        """No settings."""

    paper: ClassVar[str] = ""
    """Authors, year and identifier of the source."""

    trains: ClassVar[bool] = True
    """False only for the untouched base model."""

    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-1)}
    """What the tune stage of a sweep varies unless the sweep says otherwise: the learning rate first, then what matters
    most of ``config.…`` and ``train.…``. Two decades around the usual learning rate are a sensible range; all methods
    get the same budget, so that every further dimension has to be worth its share of it."""

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def patch(self, model: Any) -> nn.Module:
        """Change ``model`` in place (or wrap it) and return it.

        Under ZeRO 3 ranks hold slices of the weights. A parameter shows its shape, dtype and device all the same; its
        values are there when its module is called, and within :func:`whole`.

        The patched model still takes ``(input_ids, attention_mask, position_ids, labels)`` and returns logits for
        exactly those tokens, shape ``(B, T, V)``; it still generates.

        Raises:
            MethodError: It matched nothing in this model.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for ``torch.optim.AdamW``. A group's ``lr_scale`` multiplies the trial's learning rate."""
        return [{"params": [parameter for _, parameter in trained_parameters(model)], "lr_scale": 1.0}]

    @property
    def adapts_in_training(self) -> bool:
        """Whether :meth:`before_step` or :meth:`after_step` reads gradients or changes trained tensors.

        ZeRO 1 to 3 and bf16 keep both elsewhere: gradients would be missing, and a change silently undone by the next
        step. A trial that asks for them is therefore refused before it starts.
        """
        return False

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - most methods need none
        """Hook before each optimiser step: ``grad`` is that of the global batch's mean loss, the same on all ranks."""

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - most methods need none
        """Hook after each optimiser step, for methods that adapt during training. ``step`` counts from 1."""

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What is stored and shipped; by default the trained tensors under their names."""
        return {name: parameter.detach() for name, parameter in trained_parameters(model)}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stored state into a freshly patched model.

        Raises:
            MethodError: Names or shapes differ from what this method stores.
        """
        copy_state(dict(trained_parameters(model)), state)

    def load_peft_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put tensors under the names that Hugging Face peft stores them by into a freshly patched model.

        Raises:
            MethodError: This method is none of peft's, or names or shapes differ.
        """
        raise MethodError(f"{type(self).__name__} is no method of Hugging Face peft")

    @property
    def fusable(self) -> bool:
        """Whether several trials with these settings may share forward and backward passes, see :meth:`fuse`."""
        return False

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        """Make the first model serve rows of several trials, each row with the parameters of its own trial.

        To be overridden together with :attr:`fusable`. It takes that rows do not meet within the frozen model, so that
        each has the outputs, and each trial the gradients, that it would have without the others.
        :func:`join_lanes` joins the modules that hold trained parameters, which then ask :func:`lane_modules` or
        :func:`of_lanes` in their forward.

        Args:
            models: Patched with these settings, each with parameters of its own; the frozen ones are shared.
            lanes: Says which models have rows in the forward passes to come.

        Raises:
            MethodError: This method cannot.
        """
        raise MethodError(f"trials of {type(self).__name__} with these settings cannot share a forward pass")

    @property
    def mergeable(self) -> bool:
        """Whether :meth:`merge` can fold what is trained, with these settings, into the base weights."""
        return False

    def merge(self, model: nn.Module) -> None:
        """Fold what is trained into the base weights, so that the model decodes like the base model.

        To be overridden together with :attr:`mergeable` and :meth:`unmerge`. The model computes the same function.

        Raises:
            MethodError: This method cannot.
        """
        raise MethodError(f"{type(self).__name__} with these settings cannot be folded into the base weights")

    def unmerge(self, model: nn.Module) -> None:
        """Undo :meth:`merge`; the base weights are bit-identical to what they were.

        Raises:
            MethodError: This method cannot.
        """
        raise MethodError(f"{type(self).__name__} with these settings cannot be folded into the base weights")

    def merged_weights(self, model: Any) -> Mapping[str, torch.Tensor]:
        """What weights of the base model become with what is trained folded in, by their names there.

        By default the trained tensors under their own names, which is right where base weights are trained in their
        places; a tensor that the base model has no place for cannot be merged.

        Args:
            model: A patched model with its trained state, which is used up.

        Raises:
            MethodError: This method cannot be folded into base weights.
        """
        return {name: parameter.detach() for name, parameter in trained_parameters(model)}

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """The same function in the terms of Hugging Face peft, for ``tuneoff export``. Imports no peft.

        Args:
            model: A patched model with its trained state.

        Raises:
            MethodError: peft has no such method, or not with these settings; the message says which.
        """
        raise MethodError(f"Hugging Face peft has no method that computes what {type(self).__name__} does")


def require_whole_weights(model: nn.Module, method: str) -> None:
    """Refuse a model whose weights are quantised, for a method that trains them.

    Args:
        model: What the method would train, or what holds it.
        method: What messages call the method.

    Raises:
        MethodError: Some are.
    """
    if (kind := quantization_of(model)) is not None:
        raise MethodError(
            f"{method} trains weights of the base model, which are stored in {kind} here and have no gradient; leave "
            "model.quantization out, or choose a method that adds weights, such as lora"
        )


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and parameters that require grad; a shared parameter counts once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def copy_state(target: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copy ``state`` into ``target``, strictly: the same names, the same shapes.

    Raises:
        MethodError: They differ.
    """
    if missing := sorted(target.keys() - state.keys()):
        raise MethodError(f"the stored state lacks {len(missing)} tensors of this method, among them {missing[0]!r}")
    if unexpected := sorted(state.keys() - target.keys()):
        raise MethodError(f"the stored state has {len(unexpected)} unknown tensors, among them {unexpected[0]!r}")
    with torch.no_grad():
        for name, tensor in target.items():
            stored = state[name]
            if tensor.shape != stored.shape:
                raise MethodError(f"{name}: stored shape {tuple(stored.shape)}, expected {tuple(tensor.shape)}")
            with whole([tensor], changed=True):
                tensor.copy_(stored)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids that count real tokens only, so that padding on either side changes nothing.

    Args:
        attention_mask: ``(B, T)``, 1 at real tokens.

    Returns:
        ``(B, T)`` int64; 0 at padding.
    """
    mask = attention_mask.long()
    return ((mask.cumsum(-1) - 1) * mask).clamp(min=0)
