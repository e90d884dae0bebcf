"""Finds the linear layers of a transformer, and those that make queries, keys and values.

Attention layers are found by a convention of transformers: a module named ...Attention that holds linear layers. A
forward pass shows whether a linear layer changes the model's output, see :mod:`methods.parts.weight_reads`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError, computes_like
from methods.parts.joined_projections import JOINED, ROLES, SEPARATE, Role, rows_by_role
from methods.parts.weight_reads import uses_of

# Linear layers through which attention layers write hidden states, by their attribute.
OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "o", "wo")


@dataclass(frozen=True)
class LinearLayer:
    """An ``nn.Linear`` or a ``Conv1D`` (whose weight is transposed) and its place in a model."""

    name: str
    parent: nn.Module
    attribute: str
    module: Any

    @property
    def in_features(self) -> int:
        features: int = self.module.nx if isinstance(self.module, Conv1D) else self.module.in_features
        return features

    @property
    def out_features(self) -> int:
        features: int = self.module.nf if isinstance(self.module, Conv1D) else self.module.out_features
        return features

    @property
    def like(self) -> torch.Tensor:
        """A tensor with the dtype and on the device in which the layer computes."""
        if not isinstance(self.module.weight, nn.Parameter):
            raise MethodError(f"{self.name}: its weight is no parameter, so it cannot be adapted")
        return computes_like(self.module)

    def replace(self, module: nn.Module) -> None:
        """Put ``module`` in the place of the layer."""
        setattr(self.parent, self.attribute, module)


@dataclass(frozen=True)
class Projection:
    """A linear layer of an attention layer, and the rows of its output that hold one role."""

    attention: nn.Module
    layer: LinearLayer
    role: Role
    rows: torch.Tensor  # int64 indices into out_features

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.layer.out_features


class LinearWrapper(nn.Module):
    """Base class of modules that replace a linear layer and hold the frozen layer inside.

    Some models read ``weight`` and ``bias`` of a layer, for a dtype or a shape, so that both are those of the layer.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``.
    """

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.base_layer.weight
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        bias: nn.Parameter | None = self.base_layer.bias
        return bias


def linear_layers(model: Any) -> list[LinearLayer]:
    """Every linear layer except the output head and those without an effect, in order of the model.

    Raises:
        MethodError: There are none.
    """
    head, uses = model.get_output_embeddings(), uses_of(model)
    layers = [
        layer
        for layer in linear_layers_in(model)
        if layer.module is not head and uses.why_without_part(layer.name) is None
    ]
    if not layers:
        raise MethodError(f"{type(model).__name__} has no linear layer (nn.Linear or Conv1D) besides its output head")
    return layers


def linear_layers_in(root: nn.Module, prefix: str = "") -> Iterator[LinearLayer]:
    """Every linear layer below a module whose own name is ``prefix``, in order."""
    for parent_name, parent in root.named_modules(prefix=prefix):
        for attribute, module in parent.named_children():
            if is_linear(module):
                name = f"{parent_name}.{attribute}" if parent_name else attribute
                yield LinearLayer(name, parent, attribute, module)


def modules_with_parents(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, attribute and module of all modules below one whose own name is ``prefix``, in order."""
    for parent_name, parent in root.named_modules(prefix=prefix):
        for attribute, module in parent.named_children():
            yield f"{parent_name}.{attribute}" if parent_name else attribute, parent, attribute, module


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention layer: its class is named ...Attention, and it holds linear layers itself."""
    return type(module).__name__.endswith("Attention") and any(map(is_linear, module.children()))


def attention_projections(model: Any) -> list[Projection]:
    """The projections to queries, keys and values of every attention layer (self and cross, encoder and decoder).

    Raises:
        MethodError: The model has no attention layer, or one that makes queries, keys or values in an unknown way.
    """
    projections: list[Projection] = []
    for name, attention in attention_modules(model):
        own = [
            Projection(attention, layer, role, rows)
            for layer in linear_layers_in(attention, name)
            for role, rows in rows_by_role(attention, layer.attribute, layer.out_features).items()
        ]
        # Some layers attend to keys and values of an earlier one (Gemma 3n and 4).
        needed = ROLES[:1] if getattr(attention, "is_kv_shared_layer", False) else ROLES
        if missing := [role for role in needed if role not in {projection.role for projection in own}]:
            raise MethodError(
                f"{name} ({type(attention).__name__}): which of its linear layers make queries, keys and values is not "
                f"known: there is none for {', '.join(missing)}. Known are separate layers named "
                f"{', '.join(SEPARATE)}, and the joined layers of {', '.join(sorted({owner for owner, _ in JOINED}))}. "
                "Name the modules to adapt instead"
            )
        projections.extend(own)
    return projections


def attention_output(attention: nn.Module, name: str) -> LinearLayer:
    """The linear layer through which an attention layer called ``name`` writes hidden states.

    Raises:
        MethodError: No such layer is known.
    """
    for layer in linear_layers_in(attention, name):
        if layer.parent is attention and layer.attribute in OUTPUTS:
            return layer
    raise MethodError(
        f"{name} ({type(attention).__name__}) has no known linear layer that puts out what it attended to: looked for "
        f"{', '.join(OUTPUTS)}"
    )


def attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all attention layers, in order of the model.

    Raises:
        MethodError: There are none.
    """
    named_layers = [(name, module) for name, module in model.named_modules() if is_attention(module)]
    if not named_layers:
        raise MethodError(
            f"{type(model).__name__} has no attention layer: looked for modules named ...Attention that hold linear "
            "layers, as the models of transformers do"
        )
    yield from named_layers


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)
