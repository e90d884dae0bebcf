"""The linear layers of a transformer, and which of their outputs are queries, keys and values.

Everything is found by the conventions of transformers, so that one method serves all families: an attention layer is a
module named ...Attention that holds linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError

Role = Literal["query", "key", "value"]
ROLES: tuple[Role, ...] = get_args(Role)

# Attention layers with a linear layer for each role.
SEPARATE: dict[str, Role] = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "q_attn": "query",
    "q": "query",
    "k": "key",
    "v": "value",
}

# Attention layers with one linear layer for several roles: class and attribute to how its output is laid out.
# blocks: all queries, then all keys, then all values. heads: query, key and value of the first head, of the second, ...
FUSED: dict[tuple[str, str], Literal["blocks", "heads"]] = {
    ("GPT2Attention", "c_attn"): "blocks",
    ("Phi3Attention", "qkv_proj"): "blocks",
    ("GPTNeoXAttention", "query_key_value"): "heads",
    ("BloomAttention", "query_key_value"): "heads",
}


@dataclass(frozen=True)
class LinearLayer:
    """An ``nn.Linear`` or a ``Conv1D`` (whose weight is transposed) and its place in a model."""

    name: str
    parent: nn.Module
    attribute: str
    module: nn.Module

    @property
    def in_features(self) -> int:
        return self._shape[0]

    @property
    def out_features(self) -> int:
        return self._shape[1]

    @property
    def _shape(self) -> tuple[int, int]:
        rows, columns = self.weight.shape
        return (rows, columns) if isinstance(self.module, Conv1D) else (columns, rows)

    @property
    def weight(self) -> nn.Parameter:
        weight = self.module.weight
        if not isinstance(weight, nn.Parameter):
            raise MethodError(f"{self.name}: its weight is no parameter, so it cannot be adapted")
        return weight

    def replace(self, module: nn.Module) -> None:
        """Put ``module`` in its place."""
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
    """Base of what stands in a linear layer's place: the frozen layer lies within.

    Models read ``weight`` and ``bias`` of their layers here and there, for a dtype or a shape, so both are handed on.

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
    """Every linear layer but the output head, in order of the model.

    Raises:
        MethodError: There is none.
    """
    head = model.get_output_embeddings()
    found = [layer for layer in linear_layers_in(model) if layer.module is not head]
    if not found:
        raise MethodError(f"{type(model).__name__} has no linear layer (nn.Linear or Conv1D) besides its output head")
    return found


def linear_layers_in(root: nn.Module, prefix: str = "") -> Iterator[LinearLayer]:
    """Every linear layer below a module whose own name is ``prefix``, in order."""
    for parent_name, parent in root.named_modules(prefix=prefix):
        for attribute, module in parent.named_children():
            if _is_linear(module):
                name = f"{parent_name}.{attribute}" if parent_name else attribute
                yield LinearLayer(name, parent, attribute, module)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention layer: named ...Attention, and holding linear layers itself."""
    return type(module).__name__.endswith("Attention") and any(map(_is_linear, module.children()))


def attention_projections(model: Any) -> list[Projection]:
    """The projections to queries, keys and values of every attention layer (self and cross, encoder and decoder).

    Raises:
        MethodError: The model has no attention layer, or one whose projections are not known.
    """
    found: list[Projection] = []
    for name, attention in attention_modules(model):
        before = len(found)
        for layer in linear_layers_in(attention, name):
            found.extend(_projections(attention, layer, model.config))
        if len(found) == before:
            raise MethodError(
                f"{name} ({type(attention).__name__}): which of its linear layers make queries, keys and values is not "
                f"known; known are separate layers named {', '.join(SEPARATE)}, and the fused layers of "
                f"{', '.join(sorted({owner for owner, _ in FUSED}))}. Name the modules to adapt instead"
            )
    return found


def attention_output(attention: nn.Module, name: str) -> LinearLayer:
    """The linear layer through which an attention layer called ``name`` writes hidden states: the last without a role.

    Raises:
        MethodError: Every linear layer has one.
    """
    for layer in reversed(list(linear_layers_in(attention, name))):
        if layer.attribute not in SEPARATE and (type(attention).__name__, layer.attribute) not in FUSED:
            return layer
    raise MethodError(f"{name} ({type(attention).__name__}) has no linear layer that puts out what it attended to")


def attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all attention layers, in order of the model.

    Raises:
        MethodError: There is none.
    """
    found = [(name, module) for name, module in model.named_modules() if is_attention(module)]
    if not found:
        raise MethodError(
            f"{type(model).__name__} has no attention layer: looked for modules named ...Attention that hold linear "
            "layers, as the models of transformers do"
        )
    yield from found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _projections(attention: nn.Module, layer: LinearLayer, config: Any) -> Iterator[Projection]:
    layout = FUSED.get((type(attention).__name__, layer.attribute))
    rows = torch.arange(layer.out_features)
    if layout is None:
        if (role := SEPARATE.get(layer.attribute)) is not None:
            yield Projection(attention, layer, role, rows)
        return
    heads = config.num_attention_heads
    if layout == "heads":
        parts = [part.flatten() for part in rows.view(heads, len(ROLES), -1).unbind(1)]
    else:
        # GPT-2's cross-attention makes its queries elsewhere, so that none are left for them here.
        key_values = config.hidden_size // heads * getattr(attention, "num_key_value_heads", heads)
        parts = list(torch.split_with_sizes(rows, [layer.out_features - 2 * key_values, key_values, key_values]))
    for role, part in zip(ROLES, parts, strict=True):
        if len(part):
            yield Projection(attention, layer, role, part)
