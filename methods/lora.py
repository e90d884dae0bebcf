"""LoRA (Hu et al. 2021): a trained low-rank matrix added to frozen linear layers.

B batch, T tokens, I and O input and output features of a linear layer, R rank, N number of adapted parts of its output,
K trials that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import (
    Lanes,
    Method,
    MethodConfig,
    MethodError,
    PeftAdapter,
    Range,
    SearchSpace,
    computes_like,
    join_lanes,
    lane_modules,
    of_lanes,
    quantization_of,
)
from methods.parts.experts import expert_tensors, require_known_experts
from methods.parts.joined_projections import ROLES
from methods.parts.lora_experts import LoRAExperts
from methods.parts.roles import projections_in_every_block
from methods.parts.transformer_parts import (
    LinearLayer,
    LinearWrapper,
    linear_layers,
    linear_layers_in,
    modules_with_parents,
)
from methods.parts.weight_reads import uses_of


class LoRALayer(LinearWrapper):
    """``base_layer(x) + scaling * B A dropout(x)``.

    Parts of the output of a joined layer can be adapted separately, each with its own A and B. They are stacked in
    ``lora_A`` ``(N R, I)`` and ``lora_B`` (rows of all parts, R). N is 1 if the whole output is adapted.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``; it stays frozen.
        in_features: I.
        out_features: O.
        parts: Rows of the output that each part adapts, int64; None for the whole output.
        rank: R.
        scaling: Factor of the low-rank product.
        dropout: Probability, on the input of A.
    """

    rows: torch.Tensor | None

    def __init__(
        self,
        base_layer: Any,
        in_features: int,
        out_features: int,
        parts: Sequence[torch.Tensor] | None,
        rank: int,
        scaling: float,
        dropout: float,
    ) -> None:
        super().__init__(base_layer)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.part_sizes = [out_features] if parts is None else [len(part) for part in parts]
        beside = computes_like(base_layer)
        like: dict[str, Any] = {"dtype": beside.dtype, "device": beside.device}
        rows = None if parts is None else torch.cat(list(parts)).to(like["device"])
        self.register_buffer("rows", rows, persistent=False)
        self.out_features = out_features
        self.lora_A = nn.Parameter(torch.empty(len(self.part_sizes) * rank, in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(sum(self.part_sizes), rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._unmerged: tuple[nn.Parameter, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)  # (B, T, O)
        if self._unmerged:
            return output
        x = x if self.dropout is None else self.dropout(x)
        lanes = lane_modules(self)
        if len(lanes) > 1:
            down, up = of_lanes(self, lambda layer: layer.lora_A), of_lanes(self, LoRALayer.up)
            low_rank = x.reshape(len(lanes), -1, x.shape[-1]) @ down.mT  # (K, B T / K, N R)
            added = torch.baddbmm(
                output.reshape(len(lanes), -1, self.out_features), low_rank, up.mT, alpha=self.scaling
            )
            return added.view(output.shape)
        (lane,) = lanes
        low_rank = nn.functional.linear(x, lane.lora_A)  # (B, T, N R)
        added = torch.addmm(output.flatten(0, -2), low_rank.flatten(0, -2), lane.up().T, alpha=self.scaling)
        return added.view(output.shape)

    def up(self) -> torch.Tensor:
        """``(O, N R)``: B of every part at its rows and columns, zero elsewhere."""
        if self.rows is None:
            return self.lora_B
        parts = torch.split_with_sizes(self.lora_B, self.part_sizes)
        blocks: torch.Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        return blocks.new_zeros(self.out_features, blocks.shape[1]).index_copy(0, self.rows, blocks)

    def merge(self) -> None:
        """Add the product to the base weight, so that the layer has no extra cost. :meth:`unmerge` restores it."""
        if self._unmerged:
            return
        if (kind := quantization_of(self.base_layer)) is not None:
            raise MethodError(
                f"weights that are stored in {kind} cannot take up what is trained; dequantise them first"
            )
        weight: nn.Parameter = self.base_layer.weight
        with torch.no_grad():
            product = self.scaling * (self.up() @ self.lora_A)
            merged = weight + (product.T if isinstance(self.base_layer, Conv1D) else product)
        self._unmerged = (weight,)
        self.base_layer.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._unmerged:
            (self.base_layer.weight,) = self._unmerged
            self._unmerged = ()


class LoRA(Method):
    """Adds a trained low-rank matrix to frozen linear layers; by default to those of queries and values.

    Source: Hu et al. 2021, section 4.1 (A random, B zero, scaled by alpha / rank) and table 11 (rank 4, alpha 32 on
    queries and values for GPT-2). If a model makes queries, keys and values in one linear layer (GPT-2's c_attn), each
    adapted part of its output has its own A and B, as in the authors' code. In multi-head latent attention the layers
    that make queries and values from the latent vectors are adapted.

    Deviations: none in the function. The experts of a mixture, which the paper does not have, get an A and a B each.
    Dropout is off by default (table 11: 0.1 on E2E and WebNLG, 0 on DART).
    """

    class Config(MethodConfig):
        """Settings of LoRA."""

        rank: PositiveInt = Field(4, description="rank of the added matrices")
        alpha: PositiveFloat = Field(32.0, description="the added product is scaled by alpha / rank")
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0, description="probability of dropout on the input of the added matrices"
        )
        target_modules: Literal["all_linear"] | list[str] = Field(
            ["query", "value"],
            description="all_linear: every linear layer but the output head, and every matrix of the experts of a "
            "mixture (routers are none); else a list of query, key, value (these outputs of attention in every block, "
            "whatever the model calls them) and names of modules, such as c_proj or experts",
        )

        @field_validator("target_modules")
        @classmethod
        def _each_once(cls, targets: str | list[str]) -> str | list[str]:
            if not targets:
                raise ValueError("an empty list adapts nothing; name query, key, value or modules, or say all_linear")
            if isinstance(targets, list) and len(set(targets)) < len(targets):
                raise ValueError("every target is named once")
            return targets

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=5e-5, high=5e-3)}

    def patch(self, model: Any) -> nn.Module:
        rank, scaling, dropout = self.config.rank, self.config.alpha / self.config.rank, self.config.dropout
        targets, experts = self._targets(model), self._experts(model)
        for name, _, _, module in experts:
            require_known_experts(name, module)
        for layer, parts in targets:
            layer.replace(LoRALayer(layer.module, layer.in_features, layer.out_features, parts, rank, scaling, dropout))
        for _, parent, attribute, module in experts:
            setattr(parent, attribute, LoRAExperts(module, rank, scaling, dropout))
        patched: nn.Module = model
        return patched

    @property
    def fusable(self) -> bool:
        return not self.config.dropout

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        if any(isinstance(module, LoRAExperts) for module in models[0].modules()):
            raise MethodError("which tokens an expert gets depends on their values, so that trials cannot share them")
        join_lanes(models, lanes, LoRALayer)

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: nn.Module) -> None:
        """Add the trained matrices to the base weights, for decoding at the speed of the base model."""
        for layer in _lora_layers(model):
            layer.merge()

    def unmerge(self, model: nn.Module) -> None:
        """Undo :meth:`merge`; the base weights are bit-identical to what they were."""
        for layer in _lora_layers(model):
            layer.unmerge()

    def merged_weights(self, model: Any) -> dict[str, torch.Tensor]:
        self.merge(model)
        merged: dict[str, torch.Tensor] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, LoRALayer):
                merged[f"{name}.weight"] = layer.weight
            elif isinstance(layer, LoRAExperts):
                merged |= {f"{name}.{tensor}": getattr(layer.base_experts, tensor) for tensor in layer.tensors}
        return merged

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """LoRA of peft. A layer with N parts has rank N R there, because peft has one product for a whole output."""
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALayer)}
        if len(layers) < len(_lora_layers(model)):
            raise MethodError("Hugging Face peft lays out what it adds to experts otherwise, which is not exported yet")
        ranks = {name: len(layer.lora_A) for name, layer in layers.items()}
        usual = max(ranks.values())
        scaling = self.config.alpha / self.config.rank
        config = {
            "peft_type": "LORA",
            "r": usual,
            "lora_alpha": scaling * usual,
            "lora_dropout": self.config.dropout,
            "target_modules": list(layers),
            "rank_pattern": {name: rank for name, rank in ranks.items() if rank != usual},
            "alpha_pattern": {name: scaling * rank for name, rank in ranks.items() if rank != usual},
            "fan_in_fan_out": any(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        }
        state = {}
        for name, layer in layers.items():
            state[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach()
            state[f"base_model.model.{name}.lora_B.weight"] = layer.up().detach()
        return PeftAdapter(config, state)

    def _targets(self, model: Any) -> list[tuple[LinearLayer, list[torch.Tensor] | None]]:
        """Each linear layer to adapt, with the rows of each part; None if the whole output is one part."""
        targets: str | list[str] = self.config.target_modules
        if targets == "all_linear":
            return [(layer, None) for layer in linear_layers(model)]
        whole = {name for target in targets if target not in ROLES for name in _named(target, model)}
        parts: dict[str, list[torch.Tensor]] = defaultdict(list)
        if roles := [target for target in targets if target in ROLES]:
            for projection in projections_in_every_block(model, roles):
                if len(projection.rows):
                    parts[projection.layer.name].append(projection.rows)
        if both := whole & parts.keys():
            raise MethodError(
                f"target_modules: {min(both)} is named as a module and makes {' and '.join(roles)}; name it one way"
            )
        return [
            (layer, None if name in whole or len(parts[name][0]) == layer.out_features else parts[name])
            for name, layer in _adaptable(model).items()
            if name in whole or name in parts
        ]

    def _experts(self, model: Any) -> list[tuple[str, nn.Module, str, nn.Module]]:
        """Name, parent, attribute and module of the experts to adapt whose matrices are tensors."""
        targets: str | list[str] = self.config.target_modules
        return [
            (name, parent, attribute, module)
            for name, parent, attribute, module in modules_with_parents(model)
            if expert_tensors(module) and (targets == "all_linear" or _is_named(name, targets))
        ]


def _is_named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _adaptable(model: Any) -> dict[str, LinearLayer]:
    """Every linear layer but the output head by name."""
    head = model.get_output_embeddings()
    return {layer.name: layer for layer in linear_layers_in(model) if layer.module is not head}


def _named(target: str, model: Any) -> list[str]:
    """Names of linear layers that are the target or end with it after a dot; none if it names experts.

    Raises:
        MethodError: There is none, or adapting one would not change the output.
    """
    layers = _adaptable(model)
    matches = [name for name in layers if _is_named(name, [target])]
    experts = [name for name, module in model.named_modules() if expert_tensors(module)]
    if not matches and not any(_is_named(name, [target]) for name in experts):
        known = sorted({layer.attribute for layer in layers.values()})
        raise MethodError(
            f"target_modules: no linear layer is named {target!r}; this model has {', '.join(known)}, and query, key, "
            "value mean these outputs of its attention layers"
        )
    uses = uses_of(model)
    for name in matches:
        if (reason := uses.why_without_part(name)) is not None:
            raise MethodError(f"target_modules: {name} cannot be adapted: {reason}")
    return matches


def _lora_layers(model: nn.Module) -> list[LoRALayer | LoRAExperts]:
    return [module for module in model.modules() if isinstance(module, LoRALayer | LoRAExperts)]
