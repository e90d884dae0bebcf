"""What LoRA and its relatives have in common: which layers are adapted, what is stored, merged and exported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
    copy_state,
    join_lanes,
    whole,
)
from methods.parts.experts import expert_tensors, require_known_experts
from methods.parts.joined_projections import ROLES
from methods.parts.lora_experts import LoRAExperts
from methods.parts.lora_layer import LoRALayer
from methods.parts.roles import projections_in_every_block
from methods.parts.transformer_parts import LinearLayer, linear_layers, linear_layers_in, modules_with_parents
from methods.parts.weight_reads import uses_of


class FactorConfig(MethodConfig):
    """Settings of LoRA and its relatives."""

    rank: PositiveInt = Field(4, description="rank of the added matrices")
    alpha: PositiveFloat = Field(32.0, description="the added product is scaled by alpha / rank")
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


class LoRAConfig(FactorConfig):
    """The same with dropout."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability of dropout on the input of the added matrices"
    )


class LoRAFamily(Method):
    """Base of LoRA and of what differs from it in how it starts, how it is scaled or what of it is trained."""

    Config = LoRAConfig  # type: ignore[assignment]

    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=5e-5, high=5e-3)}

    layer_class: ClassVar[type[LoRALayer]] = LoRALayer
    """What stands in the place of an adapted layer."""

    adapts_experts: ClassVar[bool] = False
    """Whether experts whose matrices are one tensor of three dimensions can be adapted: as plain LoRA they can."""

    @property
    def scaling(self) -> float:
        """Factor of the added product."""
        return float(self.config.alpha / self.config.rank)

    @property
    def dropout(self) -> float:
        """Probability of dropout on the input of A."""
        return float(getattr(self.config, "dropout", 0.0))

    def begin(self, name: str, layer: Any) -> None:
        """Change how a layer starts, whose base weight is whole here. On the meta device there are no values.

        Args:
            name: Of the layer, for messages.
            layer: As :attr:`layer_class` makes it.
        """

    def patch(self, model: Any) -> nn.Module:
        rank, scaling, dropout = self.config.rank, self.scaling, self.dropout
        targets, experts = self._targets(model), self._experts(model)
        for name, _, _, found in experts:
            require_known_experts(name, found)
            if not self.adapts_experts:
                raise MethodError(
                    f"{name}: {type(self).__name__} has no form for experts whose matrices are one tensor; name other "
                    "modules, or choose lora"
                )
        for layer, parts in targets:
            made = self.layer_class(layer.module, layer.in_features, layer.out_features, parts, rank, scaling, dropout)
            with whole(layer.module.parameters()):
                self.begin(layer.name, made)
            layer.replace(made)
        for _, parent, attribute, found in experts:
            setattr(parent, attribute, LoRAExperts(found, rank, scaling, dropout))
        module: nn.Module = model
        return module

    @property
    def fusable(self) -> bool:
        return not self.dropout

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        if any(isinstance(module, LoRAExperts) for module in models[0].modules()):
            raise MethodError("which tokens an expert gets depends on their values, so that trials cannot share them")
        join_lanes(models, lanes, self.layer_class)

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: nn.Module) -> None:
        """Fold the trained matrices into the base weights, for decoding at the speed of the base model."""
        for layer in adapted_layers(model):
            layer.merge()

    def unmerge(self, model: nn.Module) -> None:
        """Undo :meth:`merge`; the base weights are bit-identical to what they were."""
        for layer in adapted_layers(model):
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
        """LoRA, with N R as the rank of a layer whose output has N parts: peft knows one product for a whole output.

        A start that is taken off again is a second product, of twice the rank in all.
        """
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALayer)}
        if len(layers) < len(adapted_layers(model)):
            raise MethodError("Hugging Face peft lays out what it adds to experts otherwise, which is not exported yet")
        ranks = {name: len(layer.down()) for name, layer in layers.items()}
        usual = max(ranks.values())
        scaling = self.scaling
        config = {
            "peft_type": "LORA",
            "r": usual,
            "lora_alpha": scaling * usual,
            "lora_dropout": self.dropout,
            "target_modules": list(layers),
            "rank_pattern": {name: rank for name, rank in ranks.items() if rank != usual},
            "alpha_pattern": {name: scaling * rank for name, rank in ranks.items() if rank != usual},
            "fan_in_fan_out": any(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        }
        state = {}
        for name, layer in layers.items():
            state[f"base_model.model.{name}.lora_A.weight"] = layer.down().detach()
            state[f"base_model.model.{name}.lora_B.weight"] = layer.up().detach()
        return PeftAdapter(config, state)

    def _targets(self, model: Any) -> list[tuple[LinearLayer, list[torch.Tensor] | None]]:
        """Each linear layer to adapt, with the rows of each part; None where the whole output is one part."""
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
        """Name, parent, attribute and module of the experts to adapt, where their matrices are tensors."""
        targets: str | list[str] = self.config.target_modules
        return [
            (name, parent, attribute, module)
            for name, parent, attribute, module in modules_with_parents(model)
            if expert_tensors(module) and (targets == "all_linear" or _is_named(name, targets))
        ]


class StartedLoRA(LoRAFamily):
    """Base of what starts from weights, activations or gradients, or trains a part alone: all of it is stored."""

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in _stored(model).items()}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        copy_state(_stored(model), state)

    @staticmethod
    def whole_base(*layers: LoRALayer) -> AbstractContextManager[None]:
        """Inside the block the base weights of these layers are whole, also where ranks hold slices of them."""
        return whole([parameter for layer in layers for parameter in layer.base_layer.parameters()])


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, with frozen A, B and starts beside it."""
    within = {
        f"{name}.{part}"
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALayer)
        for part in ("lora_A", "lora_B", "start_A", "start_B")
    }
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad or name in within}
    return {**parameters, **{name: buffer for name, buffer in model.named_buffers() if name in within}}


def remember_start_of_rank(layer: Any, rank: int, name: str) -> None:
    """Have a layer remember a start that it gets later, or whose values are nowhere, if the weight allows for one.

    Raises:
        MethodError: A part has less than this rank, or the weight is quantised.
    """
    for weight in layer.weights_of_parts():
        require_rank(rank, weight.shape, name)
    layer.remember_start()


def svd_factors(weight: torch.Tensor, rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``rank`` largest singular values of a matrix: U ``(O, R)``, S ``(R,)`` and V transposed ``(R, I)``.

    Raises:
        MethodError: The matrix has fewer.
    """
    require_rank(rank, weight.shape, name)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def require_rank(rank: int, shape: Sequence[int], name: str) -> None:
    """Refuse a rank that a matrix of this shape does not have.

    Raises:
        MethodError: It has less.
    """
    if rank > min(shape):
        raise MethodError(f"rank: {rank} is more than {name} has, whose adapted part is {shape[0]} x {shape[1]}")


def _is_named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _adaptable(model: Any) -> dict[str, LinearLayer]:
    """Every linear layer but the output head by name."""
    head = model.get_output_embeddings()
    return {layer.name: layer for layer in linear_layers_in(model) if layer.module is not head}


def _named(target: str, model: Any) -> list[str]:
    """Names of linear layers that are the target or end with it after a dot; none where it names experts.

    Raises:
        MethodError: There is none, or one in whose place nothing would have its part in the output.
    """
    layers = _adaptable(model)
    found = [name for name in layers if _is_named(name, [target])]
    experts = [name for name, module in model.named_modules() if expert_tensors(module)]
    if not found and not any(_is_named(name, [target]) for name in experts):
        known = sorted({layer.attribute for layer in layers.values()})
        raise MethodError(
            f"target_modules: no linear layer is named {target!r}; this model has {', '.join(known)}, and query, key, "
            "value mean these outputs of its attention layers"
        )
    uses = uses_of(model)
    for name in found:
        if (reason := uses.why_without_part(name)) is not None:
            raise MethodError(f"target_modules: {name} cannot be adapted: {reason}")
    return found


def adapted_layers(model: nn.Module) -> list[LoRALayer | LoRAExperts]:
    """What LoRA and its relatives have put into a model."""
    return [module for module in model.modules() if isinstance(module, LoRALayer | LoRAExperts)]
