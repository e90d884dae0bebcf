"""Optimisers that look at whole matrices, and are refused under ZeRO 1 to 3, which cut tensors up and flatten them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from bench.optimizers.elementwise import adam_arguments
from bench.optimizers.optimizer import ADAM_SETTINGS, OWN_SETTINGS, Optimizer, OptimizerError, trained


class Adafactor(Optimizer):
    """Adafactor as Lester et al. 2021 use it: second moments by rows and columns, no parameter scaling.

    Source: Shazeer & Stern 2018, algorithm 4: decay exponent 0.8, update clipping at 1.0 and no first moment, by
    transformers. The learning rate is taken as it is, without scaling it by the size of the parameter.
    """

    paper: ClassVar[str] = "Shazeer & Stern 2018, arXiv:1804.04235"
    whole_matrices: ClassVar[bool] = True
    own_settings: ClassVar[Mapping[str, str]] = {
        **OWN_SETTINGS,
        "scale_parameter": "nothing: the learning rate is taken as it is",
        "relative_step": "train.schedule",
        "warmup_init": "train.warmup_steps",
    }

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from transformers.optimization import Adafactor as AdafactorOfTransformers

        return AdafactorOfTransformers  # type: ignore[no-any-return]

    def arguments(self) -> dict[str, Any]:
        return {"scale_parameter": False, "relative_step": False, **super().arguments()}

    def state_bytes(self, model: nn.Module) -> float:
        first = self.train.optimizer_options.get("beta1") is not None
        return sum(4.0 * (_factored(part.shape) + first * part.numel()) for part in trained(model))


class Muon(Optimizer):
    """Muon of torch for the matrices within the model, AdamW for embeddings, the output head and all else.

    Source: Jordan et al. 2024, and Liu et al. 2025 for the size of a step: by default ``adjust_lr_fn:
    match_rms_adamw``, so that one learning rate suits both parts. Matrices of adapters count as matrices.

    Deviations: torch's own default of ``adjust_lr_fn`` is ``original``, which wants a learning rate of its own.
    """

    paper: ClassVar[str] = "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982"
    whole_matrices: ClassVar[bool] = True
    own_settings: ClassVar[Mapping[str, str]] = {
        **OWN_SETTINGS,
        "betas": ADAM_SETTINGS["betas"],  # of the rest
    }

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        return torch.optim.Muon

    def arguments(self) -> dict[str, Any]:
        return {"adjust_lr_fn": "match_rms_adamw", **super().arguments()}

    def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        matrices, rest = parted(groups, hidden_matrices(model))
        rate = self.train.learning_rate
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(torch.optim.Muon(matrices, lr=rate, **self.arguments()))
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=rate, fused=True, **adam_arguments(self)))
        return Together(parts)

    def state_bytes(self, model: nn.Module) -> float:
        matrices = hidden_matrices(model)
        return sum((4.0 if part in matrices else 8.0) * part.numel() for part in trained(model))


class GaLore(Optimizer):
    """AdamW whose moments are of gradients projected to a few directions of each matrix, chosen anew every so often.

    Source: Zhao et al. 2024, algorithm 2, by the authors' package. Options are ``rank`` (128), ``update_proj_gap``
    (200 steps), ``scale`` (0.25) and ``proj_type`` (std), for the matrices within the model; embeddings, the output
    head and all else have AdamW's full moments. It is meant for the method ``full``.

    Deviations: none. A checkpoint cannot hold its projections.
    """

    paper: ClassVar[str] = "Zhao et al. 2024, arXiv:2403.03507"
    package: ClassVar[str | None] = "galore-torch"
    extra: ClassVar[str | None] = "optimizers"
    whole_matrices: ClassVar[bool] = True
    checkpoints: ClassVar[bool] = False
    own_settings: ClassVar[Mapping[str, str]] = {
        **OWN_SETTINGS,
        **ADAM_SETTINGS,
        "no_deprecation_warning": "nothing: it warns of itself",
    }

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW  # type: ignore[no-any-return]

    @classmethod
    def further_options(cls) -> Mapping[str, Any]:
        return {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}

    def _projection(self) -> dict[str, Any]:
        options = self.train.optimizer_options
        return {name: options.get(name, default) for name, default in self.further_options().items()}

    def check(self) -> None:
        for name in ("rank", "update_proj_gap"):
            value = self._projection()[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptimizerError(f"optimizer_options.{name}: must be a whole number above 0, got {value!r}")
        super().check()

    def arguments(self) -> dict[str, Any]:
        own = {name: value for name, value in super().arguments().items() if name not in self.further_options()}
        return {**adam_arguments(self), "no_deprecation_warning": True, **own}

    def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        matrices, rest = parted(groups, hidden_matrices(model))
        projected = [{**group, **self._projection()} for group in matrices]
        return super().make([*projected, *rest], model)

    def period(self) -> int:
        gap: int = self._projection()["update_proj_gap"]
        return gap

    def state_bytes(self, model: nn.Module) -> float:
        matrices = hidden_matrices(model)
        return sum(
            4.0 * self._projected(*part.shape) if part in matrices else 8.0 * part.numel() for part in trained(model)
        )

    def _projected(self, rows: int, columns: int) -> int:
        """Elements of two moments and a projection of the shorter side, with ``proj_type: std``."""
        rank: int = min(self._projection()["rank"], rows, columns)
        return rank * (2 * max(rows, columns) + min(rows, columns))


class Apollo(GaLore):
    """Gradients scaled by rows or columns, by as much as AdamW's moments of a random projection of them say.

    Source: Zhu et al. 2024, algorithm 1, by the authors' package, whose licence (CC BY-NC 4.0) allows no commercial
    use. Options are ``rank`` (256), ``update_proj_gap`` (200 steps), ``scale`` (1.0), ``scale_type`` (channel, or
    tensor), ``proj`` (random, or svd) and ``proj_type`` (std) for the matrices within the model, and ``scale_front``
    and ``disable_nl`` of the class; all else has AdamW's full moments. Of APOLLO-Mini they are ``rank: 1, scale: 128,
    scale_type: tensor``. It is meant for the method ``full``.

    Deviations: none. The seeds of projections are set with the first step instead of before it.
    """

    paper: ClassVar[str] = "Zhu et al. 2024, arXiv:2412.05270"
    package: ClassVar[str | None] = "apollo-torch"
    extra: ClassVar[str | None] = "apollo"

    @classmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        from apollo_torch import APOLLOAdamW

        return APOLLOAdamW  # type: ignore[no-any-return]

    def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().make(groups, model)
        optimizer.state.clear()  # numbers of tensors, in whose place masters may come before the first step
        optimizer.register_step_pre_hook(_number_tensors)
        return optimizer

    @classmethod
    def further_options(cls) -> Mapping[str, Any]:
        return {
            "rank": 256,
            "proj": "random",
            "scale_type": "channel",
            "update_proj_gap": 200,
            "scale": 1.0,
            "proj_type": "std",
        }

    def period(self) -> int:
        return super().period() if self._projection()["proj"] == "svd" else 1  # others are drawn, in no time

    def _projected(self, rows: int, columns: int) -> int:
        rank: int = self._projection()["rank"]
        if self._projection()["proj"] == "svd":
            return super()._projected(rows, columns)
        return rank * (2 * max(rows, columns) + min(rows, columns))


def _number_tensors(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give each tensor its number as the seed of its projections, as ``apollo_torch`` does."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(parameters, start=1):
        optimizer.state[parameter].setdefault("seed", number)


class Together(torch.optim.Optimizer):
    """Several optimisers that step as one, each with its own groups of parameters.

    Groups and state are shared with the parts, so that schedules, masters and checkpoints reach both.

    Args:
        parts: At least one.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        at = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups, part.state = self.param_groups[at : at + size], self.state
            at += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss


def hidden_matrices(model: Any) -> set[nn.Parameter]:
    """The trained matrices of a model but those of embeddings and of the output head."""
    beside = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        beside.add(head.weight)
    return {parameter for parameter in trained(model) if parameter.ndim == 2} - beside


def parted(
    groups: Sequence[dict[str, Any]], chosen: set[nn.Parameter]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of what is chosen, and of the rest; without empty ones."""
    both = [
        [{**group, "params": [part for part in group["params"] if (part in chosen) is wanted]} for group in groups]
        for wanted in (True, False)
    ]
    within, beside = ([group for group in of_one if group["params"]] for of_one in both)
    return within, beside


def _factored(shape: Sequence[int]) -> int:
    """Elements of Adafactor's second moment: those of a row and a column of every matrix (section 3 of the paper)."""
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-2]) * (shape[-2] + shape[-1])
