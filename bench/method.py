"""The only module of ``bench`` that a method imports.

A method gets the base model *already frozen* and patches it. It does not deal with the training loop, the device, the
seed or other ranks. The tensors that require grad after :meth:`Method.patch` are trained.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bench.lane_rows import Lanes, for_rows, join_lanes, lane_modules, of_lanes
from bench.quantized.linear import QuantizedLinear, computes_like, quantization_of, stored_in
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
    "dequantized",
    "for_rows",
    "join_lanes",
    "lane_modules",
    "lost_in_quantizing",
    "of_lanes",
    "positions_of",
    "quantization_of",
    "require_whole_weights",
    "stored_in",
    "trained_parameters",
    "whole",
]


class MethodConfig(StrictNumbers):
    """Base class of a method's settings. They are frozen, and an unknown key is an error."""

    @property
    def needed_steps(self) -> tuple[float, str]:
        """Steps without which a training ends before what these settings say has come, as ranks that are to be cut.

        With it the reason, from the name and value of the setting on. A shorter training is refused before it starts,
        and no state from before is kept as the best one.
        """
        return 0, ""


class MethodError(ValueError):
    """A method cannot be applied to this model, or its state cannot be loaded. The message says why."""


@dataclass(frozen=True)
class PeftAdapter:
    """A trained adapter as configuration and tensors of Hugging Face peft; see :meth:`Method.to_peft`."""

    config: dict[str, Any]
    """Fields of peft's configuration that differ from their defaults, including ``peft_type``."""
    state: dict[str, torch.Tensor]
    """Tensors under the names that peft stores."""


class Method(ABC):
    """Defines how a frozen base model is patched and which of its tensors are trained.

    The first line of the docstring is the description that ``tuneoff methods`` prints.

    Args:
        config: Validated settings.
        tokenizer: Of the base model. ``None`` if only sizes are counted (weights are on the meta device).
    """

    class Config(MethodConfig):
        """No settings."""

    paper: ClassVar[str] = ""
    """Authors, year and identifier of the source."""

    trains: ClassVar[bool] = True
    """False only for the untouched base model."""

    estimates_gradients: ClassVar[bool] = False
    """True where gradients are on purpose no derivatives of the loss, as where DoRA takes a length for a constant."""

    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-1)}
    """The settings that the tune stage of a sweep varies, unless the sweep names others: the learning rate first, then
    the most important ones of ``config.…`` and ``train.…``. Two decades around the usual learning rate are a sensible
    range. All methods get the same budget, so that every further setting leaves fewer trials for the others."""

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def patch(self, model: Any) -> nn.Module:
        """Change ``model`` in place (or wrap it) and return it.

        Under ZeRO 3 ranks hold slices of the weights. A parameter still has its shape, dtype and device. Its values are
        there only when its module is called, and within :func:`whole`.

        The patched model still takes ``(input_ids, attention_mask, position_ids, labels)``, returns logits for exactly
        these tokens, shape ``(B, T, V)``, and can generate.

        Raises:
            MethodError: The model has nothing that the method could patch.
        """

    @property
    def start_examples(self) -> int:
        """How many training examples :meth:`start_from` looks at; 0: none, and it is not called."""
        return 0

    def start_from(self, model: nn.Module, losses: Sequence[Callable[[], torch.Tensor]]) -> None:  # noqa: B027
        """Choose where training starts from training examples, before the first step.

        For starts that need activations or gradients. Nothing else of the contract changes: the base weights stay as
        they are, the same tensors are trained as before, and a freshly patched model with the stored state needs no
        examples. The model is in evaluation mode, and no gradient is kept unless the method enables them. All ranks
        start as rank 0 does.

        Args:
            model: Patched, before its first step.
            losses: One for each example, which runs the model on that example alone, without padding, and returns the
                mean loss of its target tokens.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups of trained tensors, each in one of them. ``lr_scale`` of a group multiplies the trial's learning rate.

        A group has no other keys but that and ``params``. What decays is a setting of the sweep.
        """
        return [{"params": [parameter for _, parameter in trained_parameters(model)], "lr_scale": 1.0}]

    @property
    def adapts_in_training(self) -> bool:
        """Whether :meth:`before_step` or :meth:`after_step` reads gradients or changes trained tensors.

        ZeRO 1 to 3, bf16 and fp16 keep gradients and the optimiser's copies of tensors elsewhere: gradients would be
        missing, and the next step would silently undo a change. A trial with both is refused before it starts.
        """
        return False

    @property
    def trains_in_turns(self) -> bool:
        """Whether :meth:`idle` leaves trained tensors out of some steps.

        ZeRO 1 to 3 step all trained tensors as one, so that such a trial is refused there before it starts.
        """
        return False

    def idle(self, model: nn.Module, step: int) -> Collection[nn.Parameter]:
        """The trained tensors that this step leaves as they are; a class overrides it with :attr:`trains_in_turns`.

        They get no gradient in the step, and the optimiser forgets their moments. The answer depends on the step alone,
        from 1, and on what ``patch`` has drawn: training may begin again at any step, from a checkpoint.
        """
        return ()

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - most methods need none
        """Hook before each optimiser step. ``grad`` is that of the global batch's mean loss, the same on all ranks."""

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - most methods need none
        """Hook after each optimiser step, for methods that adapt during training. ``step`` counts from 1."""

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors to store; by default the trained tensors under their names."""
        return {name: parameter.detach() for name, parameter in trained_parameters(model)}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stored state into a freshly patched model.

        Raises:
            MethodError: Names or shapes differ from those that this method stores.
        """
        copy_state(dict(trained_parameters(model)), state)

    def load_peft_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Put a state with the names of Hugging Face peft into a freshly patched model.

        Raises:
            MethodError: peft does not have this method, or names or shapes differ.
        """
        raise MethodError(f"{type(self).__name__} is no method of Hugging Face peft")

    @property
    def fusable(self) -> bool:
        """Whether several trials with these settings may share forward and backward passes, see :meth:`fuse`."""
        return False

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        """Make the first model compute rows of several trials, each row with the parameters of its own trial.

        A class overrides it together with :attr:`fusable`. Rows must not influence each other inside the frozen model,
        so that each row has the outputs, and each trial the gradients, that it would have without the others.
        :func:`join_lanes` joins the modules that hold trained parameters. Their forward then calls
        :func:`lane_modules` or :func:`of_lanes`.

        Args:
            models: Models that are patched with these settings. Each has its own trained parameters; the frozen ones
                are shared.
            lanes: Holds the lanes whose rows are in the following forward passes.

        Raises:
            MethodError: This method cannot share passes.
        """
        raise MethodError(f"trials of {type(self).__name__} with these settings cannot share a forward pass")

    @property
    def mergeable(self) -> bool:
        """Whether :meth:`merge` can merge the trained tensors into the base weights, with these settings."""
        return False

    def merge(self, model: nn.Module) -> None:
        """Merge the trained tensors into the base weights, so that the model decodes as fast as the base model.

        A class overrides it together with :attr:`mergeable` and :meth:`unmerge`. The model computes the same function.

        Raises:
            MethodError: This method cannot be merged.
        """
        raise MethodError(f"{type(self).__name__} with these settings cannot be folded into the base weights")

    def unmerge(self, model: nn.Module) -> None:
        """Undo :meth:`merge`. The base weights are then bit-identical to those before it.

        Raises:
            MethodError: This method cannot be merged.
        """
        raise MethodError(f"{type(self).__name__} with these settings cannot be folded into the base weights")

    def merged_weights(self, model: Any) -> Mapping[str, torch.Tensor]:
        """The changed weights of the base model after merging, by their names in the base model.

        By default these are the trained tensors under their own names, which is right for methods that train base
        weights themselves. A tensor that the base model does not have cannot be merged.

        Args:
            model: A patched model with its trained state. It cannot be used afterwards.

        Raises:
            MethodError: This method cannot be merged into base weights.
        """
        return {name: parameter.detach() for name, parameter in trained_parameters(model)}

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """The same function as an adapter of Hugging Face peft, for ``tuneoff export``. Imports no peft.

        Args:
            model: A patched model with its trained state.

        Raises:
            MethodError: peft has no such method, or not with these settings; the message says which.
        """
        raise MethodError(f"Hugging Face peft has no method that computes what {type(self).__name__} does")


def require_whole_weights(model: nn.Module, method: str) -> None:
    """Refuse a model whose weights are quantised, for a method that trains them.

    Args:
        model: The modules that the method would train, or a model around them.
        method: The name of the method in the message.

    Raises:
        MethodError: Some weights are quantised.
    """
    if (kind := stored_in(model)) is not None:
        remedy = "leave model.quantization out" if quantization_of(model) else "name a checkpoint that is not quantised"
        raise MethodError(
            f"{method} trains weights of the base model, which are stored in {kind} here and have no gradient; "
            f"{remedy}, or choose a method that adds weights, such as lora"
        )


def dequantized(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a layer, as it stores it or ``(O, I)`` if that is quantised."""
    if isinstance(layer, QuantizedLinear):
        return layer.dequantized(dtype)
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return weight


def lost_in_quantizing(layer: nn.Module, name: str) -> torch.Tensor:
    """The weight of a layer before it was quantised, without what the layer computes with: ``(O, I)`` in fp32 or more.

    Without data if the layer has none.

    Args:
        layer: A quantised linear layer.
        name: Of the layer, for messages.

    Raises:
        MethodError: Nobody has the weight from before.
    """
    if not isinstance(layer, QuantizedLinear) or layer.original is None:
        raise MethodError(
            f"{name}: what quantising took away is not known, because the checkpoint is quantised already; name one "
            "that is not, and set model.quantization"
        )
    if layer.weight.is_meta:
        return torch.empty(layer.out_features, layer.in_features, device="meta")
    weight = layer.original()
    weight = weight.to(layer.like.device, torch.promote_types(weight.dtype, torch.float32))
    return weight - layer.dequantized(weight.dtype)


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and parameters that require grad. A shared parameter occurs once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def copy_state(target: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copy ``state`` into ``target``, which must have the same names and shapes.

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
