"""LoReFT (Wu et al. 2024): hidden states of the first and last tokens of a prompt are edited in a low-rank subspace.

B batch, T tokens, D hidden size, R rank, K trials that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from bench.method import (
    Lanes,
    Method,
    MethodConfig,
    MethodError,
    Range,
    SearchSpace,
    computes_like,
    copy_state,
    join_lanes,
    of_lanes,
    trained_parameters,
)
from methods.parts.attention_sites import has_encoder, stacks
from methods.parts.blocks import block_modules
from methods.parts.prompt_places import PromptPlaces


class Intervention(nn.Module):
    """``h + (W h + b - R h) R^T`` for the hidden states h of some tokens, where R has orthonormal rows.

    R is a rotation of its start. Both are products of reflections, so that R stays orthonormal in every step and in
    every precision: R^T is the first columns of ``Q H``, Q made of the frozen ``start`` and H of the trained ``turn``,
    which begins at zero, where H is the identity.

    Source: section 3.2, equation 2. The parametrisation is that of ``torch.nn.utils.parametrizations.orthogonal``,
    which pyreft uses, but for the columns of Q beyond R: there they are random, and stored in D x D numbers.

    Args:
        width: D.
        rank: R.
        dropout: Probability, on the edited hidden states.
        like: Tensor whose dtype and device the parameters get.
    """

    start: torch.Tensor

    def __init__(self, width: int, rank: int, dropout: float, like: torch.Tensor) -> None:
        super().__init__()
        self.turn = nn.Parameter(like.new_zeros(width, rank))
        self.weight = nn.Parameter(like.new_empty(rank, width))
        self.bias = nn.Parameter(like.new_empty(rank))
        self.register_buffer("start", like.new_empty(width, rank))
        self.dropout = nn.Dropout(dropout) if dropout else None
        for part in (self.weight, self.bias):
            nn.init.uniform_(part, -1 / math.sqrt(width), 1 / math.sqrt(width))  # as nn.Linear begins
        if not like.is_meta:
            random = torch.randn(width, rank, dtype=_wide(like), device=like.device)
            factors, _ = torch.geqrf(random)
            with torch.no_grad():
                self.start.copy_(factors.tril(-1) + torch.eye(width, rank).to(random) * factors.diagonal().sign())

    def rotation(self) -> torch.Tensor:
        """R^T, ``(D, R)``, in fp32 or more."""
        start, turn = (part.to(_wide(part)) for part in (self.start, self.turn))
        columns = -reflected(turn, torch.eye(*turn.shape, dtype=turn.dtype, device=turn.device))
        signs = nn.functional.pad(start.diagonal(), (0, len(start) - start.shape[1]), value=1.0)
        return reflected(start, signs[:, None] * columns)

    def forward(self, states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Edit hidden states ``(B, T, D)`` where ``chosen`` ``(B, T)`` is true."""
        # Blocks of T5 put out fp32 also where they compute in fp16.
        rotation, weight, bias = (
            of_lanes(self, part).to(states.dtype)
            for part in (Intervention.rotation, lambda each: each.weight, lambda each: each.bias)
        )  # (K, D, R), (K, R, D), (K, R)
        rows = states.reshape(len(weight), -1, states.shape[-1])  # (K, B T / K, D)
        edit = torch.baddbmm(bias[:, None], rows, weight.mT) - rows @ rotation
        edited = torch.baddbmm(rows, edit, rotation.mT).view(states.shape)
        if self.dropout is not None:
            edited = self.dropout(edited)
        return torch.where(chosen[..., None], edited, states)


def reflected(vectors: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``H_1 ... H_R columns``, where each H mirrors along a column of ``vectors``, as LAPACK stores reflections.

    Args:
        vectors: ``(D, R)``. Each column counts below the diagonal only, where 1 is put.
        columns: ``(D, N)``.
    """
    mirrors = vectors.tril(-1) + torch.eye(*vectors.shape, dtype=vectors.dtype, device=vectors.device)
    products = mirrors.mT @ mirrors
    # H_1 ... H_R = 1 - V T^-1 V^T with T the products above the diagonal, and half of those on it.
    triangle = products.triu(1) + torch.diag_embed(products.diagonal() / 2)
    along: torch.Tensor = torch.linalg.solve_triangular(triangle, mirrors.mT @ columns, upper=True)
    return columns - mirrors @ along


def _wide(like: torch.Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class IntervenedBlock(nn.Module):
    """A frozen block of a transformer, whose output is edited at the places of a prompt.

    Args:
        base_block: It puts out hidden states ``(B, T, D)``, or a tuple that begins with them.
        places: Finds the tokens of each call.
        interventions: One for first and last tokens, or one for each of them that there are.
    """

    def __init__(self, base_block: nn.Module, places: PromptPlaces, interventions: Mapping[str, Intervention]) -> None:
        super().__init__()
        self.base_block = base_block
        self.interventions = nn.ModuleDict(interventions)
        self._places = places

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_block(*args, **kwargs)
        states: torch.Tensor = output[0] if isinstance(output, tuple) else output
        first, last = self._places.of_call()
        chosen = {"tied": first | last, "first": first, "last": last}
        for name, intervention in self.interventions.items():
            states = intervention(states, chosen[name])
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # attention_type, layer_idx, ... of the block inside
            return getattr(super().__getattr__("base_block"), name)


class LoReFT(Method):
    """Edits the hidden states of the first and last tokens of the prompt, in a subspace of each layer.

    Source: Wu et al. 2024, sections 3.2 and 3.3, and stanfordnlp/pyreft: behind each chosen block the states of the
    first and last tokens of the prompt are moved within the rows of R; at the start R is random with orthonormal rows,
    W and b are random as in a linear layer, so that the model does not start as the base model. Of a prompt of n
    tokens at most n // 2 are first ones, and as many last ones. The defaults are those of pyreft's command for
    commonsense reasoning: rank 8 in all layers, 7 first and 7 last tokens, tied. Tokens that are generated are never
    edited. In an encoder-decoder model the prompt is what the encoder reads, and its blocks are edited.

    Deviations: R turns in a frame that follows from its start; outside of R's rows pyreft's is random, of which the
    function at the start and what can be reached do not depend. Behind the last block of a decoder first tokens have no
    intervention of their own, which would reach no target.
    """

    class Config(MethodConfig):
        """Settings of LoReFT."""

        rank: PositiveInt = Field(8, description="rows of R, dimensions of the subspace that is edited")
        layers: list[int] | None = Field(
            None,
            description="indices of the blocks whose output is edited, from 0, negative from the last; null: all",
            min_length=1,
        )
        first: NonNegativeInt = Field(7, description="tokens that are edited from the beginning of the prompt")
        last: NonNegativeInt = Field(7, description="tokens that are edited before the end of the prompt")
        tied: bool = Field(True, description="whether first and last tokens share R, W and b; else each has its own")
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0, description="probability of dropout on the edited hidden states"
        )

        @model_validator(mode="after")
        def _edits_something(self) -> Self:
            if not self.first and not self.last:
                raise ValueError("first: 0 and last: 0 edit nothing; set one of them above zero")
            return self

    paper: ClassVar[str] = "Wu et al. 2024, arXiv:2404.03592"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=9e-5, high=9e-3)}

    def patch(self, model: Any) -> nn.Module:
        config, parts = self.config, stacks(model)
        stack = parts.get("encoder", parts["decoder"])
        width = model.config.get_text_config().hidden_size
        if config.rank > width:
            raise MethodError(f"rank: {config.rank} is more than the {width} dimensions of this model's hidden states")
        found = block_modules(stack)
        places = PromptPlaces(config.first, config.last)
        tied = config.tied and config.first and config.last
        names = ["tied"] if tied else [name for name in ("first", "last") if getattr(config, name)]
        for index in self._indices(len(found), type(stack).__name__):
            name, block = found[index]
            like = computes_like(block)
            of_block = [each for each in names if each != "first" or has_encoder(model) or index < len(found) - 1]
            if not of_block and config.layers is None:
                continue
            if not of_block:
                raise MethodError(
                    f"layers: what {name} puts out for the first tokens of a prompt reaches no target, because it is "
                    "the last block; name others, or edit last tokens"
                )
            made = {each: Intervention(width, config.rank, config.dropout, like) for each in of_block}
            stack.set_submodule(name, IntervenedBlock(block, places, made))
        places.watch(model)
        module: nn.Module = model
        return module

    def _indices(self, count: int, stack: str) -> list[int]:
        """The chosen blocks, from 0."""
        indices: list[int] | None = self.config.layers
        if indices is None:
            return list(range(count))
        if wrong := [index for index in indices if not -count <= index < count]:
            raise MethodError(f"layers: {wrong[0]} is not among the {count} blocks of {stack}")
        return sorted({index % count for index in indices})

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The trained tensors, and where each R started."""
        return {name: tensor.detach() for name, tensor in _stored(model).items()}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        copy_state(_stored(model), state)

    @property
    def fusable(self) -> bool:
        return not self.config.dropout

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        join_lanes(models, lanes, Intervention)


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    starts = {
        f"{name}.start": module.start for name, module in model.named_modules() if isinstance(module, Intervention)
    }
    return {**dict(trained_parameters(model)), **starts}
