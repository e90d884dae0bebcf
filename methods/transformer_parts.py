"""The parts of a transformer that methods patch: linear layers, and which of their outputs are queries, keys, values.

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

    layer: LinearLayer
    role: Role
    rows: torch.Tensor  # int64 indices into out_features

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.layer.out_features


def linear_layers(model: Any) -> list[LinearLayer]:
    """Every linear layer but the output head, in order of the model.

    Raises:
        MethodError: There is none.
    """
    head = model.get_output_embeddings()
    found = [layer for layer in _linear_children(model) if layer.module is not head]
    if not found:
        raise MethodError(f"{type(model).__name__} has no linear layer (nn.Linear or Conv1D) besides its output head")
    return found


def attention_projections(model: Any) -> list[Projection]:
    """The projections to queries, keys and values of every attention layer (self and cross, encoder and decoder).

    Raises:
        MethodError: The model has no attention layer, or one whose projections are not known.
    """
    found: list[Projection] = []
    for name, attention in attention_modules(model):
        before = len(found)
        for layer in _linear_children(attention, name):
            found.extend(_projections(attention, layer, model.config))
        if len(found) == before:
            raise MethodError(
                f"{name} ({type(attention).__name__}): which of its linear layers make queries, keys and values is not "
                f"known; known are separate layers named {', '.join(SEPARATE)}, and the fused layers of "
                f"{', '.join(sorted({owner for owner, _ in FUSED}))}. Name the modules to adapt instead"
            )
    return found


def attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all attention layers, in order of the model.

    Raises:
        MethodError: There is none.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention") and any(map(_is_linear, module.children()))
    ]
    if not found:
        raise MethodError(
            f"{type(model).__name__} has no attention layer: looked for modules named ...Attention that hold linear "
            "layers, as the models of transformers do"
        )
    yield from found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _linear_children(root: nn.Module, prefix: str = "") -> Iterator[LinearLayer]:
    for parent_name, parent in root.named_modules(prefix=prefix):
        for attribute, module in parent.named_children():
            if _is_linear(module):
                name = f"{parent_name}.{attribute}" if parent_name else attribute
                yield LinearLayer(name, parent, attribute, module)


def _projections(attention: nn.Module, layer: LinearLayer, config: Any) -> Iterator[Projection]:
    layout = FUSED.get((type(attention).__name__, layer.attribute))
    rows = torch.arange(layer.out_features)
    if layout is None:
        if (role := SEPARATE.get(layer.attribute)) is not None:
            yield Projection(layer, role, rows)
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
            yield Projection(layer, role, part)
