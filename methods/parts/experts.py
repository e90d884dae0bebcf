"""The experts of a mixture whose matrices are tensors and not linear layers: usually one 3-D tensor for all experts.

E experts, S tokens of a batch, D hidden size, F inner size, K experts for each token, I and O features that a matrix
reads and writes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from bench.method import MethodError
from methods.parts.weight_reads import holds_expert_tensors


def expert_tensors(module: nn.Module) -> list[str]:
    """Names of the tensors that hold the matrices of experts; empty for all other modules."""
    if not holds_expert_tensors(module):
        return []
    dimensions = {name: parameter.dim() for name, parameter in module.named_parameters(recurse=False)}
    return [name for name, number in dimensions.items() if number == max(dimensions.values())]


def require_known_experts(name: str, module: Any) -> None:
    """Refuse experts whose computation :class:`AdaptedExperts` does not know.

    Raises:
        MethodError: It is unknown. The message names module and class.
    """
    known = {"gate_up_proj", "up_proj", "down_proj"}
    computes = hasattr(module, "_apply_gate") or _is_sorted_by_expert(module)
    if not computes or not set(expert_tensors(module)) <= known or getattr(module, "_is_expert_parallel", False):
        raise MethodError(
            f"{name} ({type(module).__name__}): how these experts compute is not known, so that they cannot be "
            "adapted; name other modules to adapt"
        )


def _is_sorted_by_expert(module: nn.Module) -> bool:
    """Whether the experts get their tokens sorted by expert, and no routing (Llama 4)."""
    return len(inspect.signature(type(module).forward).parameters) == 2


class AdaptedExperts(nn.Module):
    """The experts of transformers with trained tensors inside each. Subclasses define them.

    The forward pass is that of transformers' eager experts: each expert computes the tokens that are routed to it. The
    computation depends on values, so that the plan cannot trace it. It has a small product for each expert where
    transformers may have one large product for all.

    In every pass both this module and the experts inside it are called once, whichever experts have tokens, and they
    hold their parameters themselves. ZeRO-3 needs this, because it gathers the parameters of a called module on all
    ranks together.

    Args:
        base_experts: They stay frozen.
    """

    def __init__(self, base_experts: Any) -> None:
        super().__init__()
        self.base_experts = base_experts
        self.up_name = "gate_up_proj" if hasattr(base_experts, "gate_up_proj") else "up_proj"
        self.sorted_by_expert = _is_sorted_by_expert(base_experts)
        self.transposed = self.sorted_by_expert or bool(base_experts.is_transposed)
        base_experts.forward = self._compute_all

    def sizes(self, name: str) -> tuple[int, int, int]:
        """E, I and O of one of the tensors."""
        experts, first, second = getattr(self.base_experts, name).shape
        return (experts, first, second) if self.transposed else (experts, second, first)

    def project(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        """``(S, I)`` to ``(S, O)`` by the matrix of one expert, bias included."""
        weight = getattr(self.base_experts, name)[expert]
        bias = getattr(self.base_experts, f"{name}_bias", None)
        output = x @ weight if self.transposed else nn.functional.linear(x, weight)
        return output if bias is None else output + bias[expert]

    def inner(self, expert: int, features: torch.Tensor) -> torch.Tensor:
        """Change the inner features ``(S, F)`` of one expert. Here they stay."""
        return features

    def forward(self, hidden_states: torch.Tensor, *routing: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Like the experts of transformers: takes hidden states, and K experts and weights ``(S, K)`` of each token."""
        output: torch.Tensor = self.base_experts(hidden_states, *routing, **named)
        return output

    def _compute(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """The output ``(S, D)`` of one expert for ``(S, D)``."""
        base = self.base_experts
        features = self.project(self.up_name, expert, x)
        if self.up_name == "up_proj":
            features = base.act_fn(features)
        elif self.sorted_by_expert:
            gate, up = features.chunk(2, dim=-1)
            features = up * base.act_fn(gate)
        else:
            features = base._apply_gate(features)
        output = self.project("down_proj", expert, self.inner(expert, features))
        if getattr(base, "has_post_expert_norm", False):
            output = base.post_expert_norm(output)
        return output

    def _compute_all(self, hidden_states: torch.Tensor, *routing: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Replaces the forward of the experts inside."""
        num_experts = self.sizes("down_proj")[0]
        states = hidden_states.reshape(-1, hidden_states.shape[-1])  # (S, D)
        if self.sorted_by_expert:
            parts = [self._compute(expert, x) for expert, x in enumerate(states.chunk(num_experts))]
            return torch.cat(parts).view(hidden_states.shape)
        chosen, weights = (*routing, *named.values())
        output = torch.zeros_like(states)
        for expert in sorted(set(chosen.flatten().tolist())):
            if expert < num_experts:  # the number after the last expert means no expert
                token, place = torch.where(chosen == expert)
                computed = self._compute(expert, states[token]) * weights[token, place, None]
                output = output.index_add(0, token, computed.to(output.dtype))
        return output.view(hidden_states.shape)
