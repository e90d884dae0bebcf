"""Broken methods, each with one mistake, and the check of the contract that has to find it.

``BROKEN`` maps each class to the name of that check.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import numpy
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from bench.conformance.process import CHECK as PROCESS
from bench.method import Lanes, Method, MethodError, trained_parameters
from methods.full import FullFineTuning
from methods.ia3 import IA3
from methods.lora import LoRA, LoRALayer

BROKEN: dict[type[Method], str] = {}


def breaks(check: str) -> Callable[[type[Any]], type[Any]]:
    """Add a class to ``BROKEN``."""

    def enter(broken: type[Any]) -> type[Any]:
        BROKEN[broken] = check
        return broken

    return enter


def computes_twice(model: Any) -> bool:
    """Whether activation checkpointing is on. Older releases of transformers call it gradient checkpointing."""
    on: bool | None = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if on is None else on)


def vector(model: Any, count: int | None = None) -> nn.Parameter:
    like = model.get_input_embeddings().weight
    return nn.Parameter(like.new_zeros(count or like.shape[1]))


class Offset(Method):
    """Adds a trained vector to every input embedding. It is correct, and the base class of broken methods."""

    def patch(self, model: Any) -> nn.Module:
        model.offset = vector(model)
        model.get_input_embeddings().register_forward_hook(self.change)
        self.model = model
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.moved(output) * self.model.offset.to(output.dtype)

    def moved(self, output: torch.Tensor) -> Any:
        """The factor of the offset."""
        return 1


# Hooks


class Hooked(Offset):
    scale = 1.0

    def moved(self, output: torch.Tensor) -> Any:
        return self.scale


@breaks("only what is declared is trained")
class HookMovesABaseWeight(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        model.get_output_embeddings().weight.data *= 1.001


@breaks("only what is declared is trained")
class HookMovesABaseWeightLate(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        if step == 100:
            model.get_output_embeddings().weight.data *= 1.001


@breaks("only what is declared is trained")
class HookMovesABuffer(Hooked):
    def before_step(self, model: Any, step: int) -> None:
        next(iter(model.buffers())).mul_(1.01)


@breaks("state reloads")
class HookMovesItsScale(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        self.scale *= 0.9


@breaks("state reloads")
class HookMovesItsScaleLate(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        self.scale = 0.5 if step >= 50 else 1.0


@breaks("state reloads")
class HookMovesItsOwnBuffer(Offset):
    def patch(self, model: Any) -> nn.Module:
        model.register_buffer("factor", vector(model).data + 1)
        return super().patch(model)

    def moved(self, output: torch.Tensor) -> Any:
        return self.model.factor.to(output.dtype)

    def after_step(self, model: Any, step: int) -> None:
        model.factor *= 0.9


@breaks("hooks")
class HookEditsWhatIsTrained(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        model.offset.data.clamp_(-0.01, 0.01)


@breaks("hooks")
class HookEditsGradients(Hooked):
    def before_step(self, model: Any, step: int) -> None:
        model.offset.grad.mul_(0.5)


@breaks("hooks")
class HookReadsGradients(Hooked):
    def before_step(self, model: Any, step: int) -> None:
        model.norm_of_gradient = float(model.offset.grad.norm())


@breaks("only what is declared is trained")
class HookFreezes(Hooked):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.second = vector(model)
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + (self.model.offset + 2 * self.model.second).to(output.dtype)

    def after_step(self, model: Any, step: int) -> None:
        if step == 3:
            model.second.requires_grad_(False)


@breaks("only what is declared is trained")
class HookFreesTheBase(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        model.get_output_embeddings().weight.requires_grad_(True)


@breaks("hooks")
class HookSwitchesDropoutOff(Hooked):
    def before_step(self, model: Any, step: int) -> None:
        model.eval()


@breaks("state is the method's own")
class StoringScales(Offset):
    def adapter_state(self, model: Any) -> dict[str, torch.Tensor]:
        model.offset.data *= 0.5
        return super().adapter_state(model)


# Parameter groups


class TwoParts(Offset):
    def patch(self, model: Any) -> nn.Module:
        model.gain = vector(model)
        return super().patch(model)

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + self.model.gain.to(output.dtype)) + self.model.offset.to(output.dtype)


@breaks("parameter groups")
class GroupsOmit(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset]}]


@breaks("parameter groups")
class GroupsRepeat(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset, model.gain]}, {"params": [model.gain], "lr_scale": 10.0}]


@breaks("parameter groups")
class GroupsRepeatWithin(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset, model.gain, model.gain]}]


@breaks("parameter groups")
class GroupsFreeze(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        model.gain.requires_grad_(False)
        return [{"params": [model.offset]}]


@breaks("parameter groups")
class GroupsHaveTheBase(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters())}]


@breaks("parameter groups")
class GroupStandsStill(TwoParts):
    scale: ClassVar[float] = 0.0

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset]}, {"params": [model.gain], "lr_scale": self.scale}]


@breaks("parameter groups")
class GroupGoesUphill(GroupStandsStill):
    scale = -1.0


@breaks("parameter groups")
class GroupHasAnUnreadKey(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset, model.gain], "lr": 1e-3}]


@breaks("parameter groups")
class GroupHoldsACopy(TwoParts):
    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset, nn.Parameter(model.gain.data.clone())]}]


# The loop's loss


@breaks("the loop's loss")
class ScalesLogitsInPlace(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        forward = model.forward

        def scaled(*args: Any, **kwargs: Any) -> Any:
            outputs = forward(*args, **kwargs)
            outputs.logits.mul_(0.5)
            return outputs

        model.forward = scaled
        return model


@breaks("the loop's loss")
class LooksAtTheHeadsLength(Offset):
    """A second head that computes another function if it gets the rows of targets only."""

    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        head = model.get_output_embeddings()
        head.forward = MethodType(
            lambda module, hidden: nn.functional.linear(hidden, module.weight) * (1 if hidden.ndim == 3 else 0.5), head
        )
        return model


# Leaks and batch effects, in some conditions only


class Leaks(Offset):
    """Sees the mean of the whole text if ``here`` is true."""

    def here(self, output: torch.Tensor) -> bool:
        return True

    def moved(self, output: torch.Tensor) -> Any:
        return 1 + (output.mean(dim=1, keepdim=True) if self.here(output) else 0)


@breaks("causal")
class LeaksInTraining(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return bool(self.model.training)


@breaks("causal")
class LeaksBeyond16(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return output.shape[1] > 16


@breaks("causal")
class LeaksBeyond32(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return output.shape[1] > 32


@breaks("causal")
class LeaksBeyond64(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return output.shape[1] > 64


@breaks("causal")
class LeaksBeyond64InTraining(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return output.shape[1] > 64 and bool(self.model.training)


@breaks("causal")
class LeaksWhenCheckpointed(Leaks):
    def here(self, output: torch.Tensor) -> bool:
        return computes_twice(self.model)


@breaks("causal")
class LeaksOneTokenAhead(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return torch.cat([output[:, 1:], output[:, -1:]], dim=1) if output.shape[1] > 20 else 1


class Mixes(Offset):
    """Sees the mean over the rows of the batch if ``here`` is true."""

    def here(self, output: torch.Tensor) -> bool:
        return True

    def moved(self, output: torch.Tensor) -> Any:
        return 1 + (output.mean(dim=(0, 1), keepdim=True) if self.here(output) else 0)


@breaks("rows do not meet")
class MixesInTraining(Mixes):
    def here(self, output: torch.Tensor) -> bool:
        return bool(self.model.training) and len(output) > 1


@breaks("rows do not meet")
class MixesManyRows(Mixes):
    def here(self, output: torch.Tensor) -> bool:
        return len(output) >= 5


@breaks("rows do not meet")
class MixesTwoRows(Mixes):
    def here(self, output: torch.Tensor) -> bool:
        return len(output) == 2


@breaks("rows do not meet")
class MixesLongRowsInTraining(Mixes):
    def here(self, output: torch.Tensor) -> bool:
        return output.shape[1] > 40 and bool(self.model.training)


@breaks("rows do not meet")
class MixesWhenCheckpointed(Mixes):
    def here(self, output: torch.Tensor) -> bool:
        return computes_twice(self.model) and len(output) > 1


@breaks("rows do not meet")
class BatchNorm(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        like = model.get_input_embeddings().weight
        model.normed = nn.BatchNorm1d(like.shape[1], affine=False, dtype=like.dtype, device=like.device)
        return model

    def moved(self, output: torch.Tensor) -> Any:
        return self.model.normed(output.transpose(1, 2)).transpose(1, 2)


@breaks("padding changes nothing")
class KnowsItsRow(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return torch.arange(len(output), dtype=output.dtype)[:, None, None]


@breaks("training computes what evaluation does")
class TrainsAnotherFunction(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return 2 if self.model.training else 1


@breaks("training computes what evaluation does")
class LooksAtGradMode(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return 2 if torch.is_grad_enabled() else 1


@breaks("evaluation draws nothing")
class DropsOutAlways(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return nn.functional.dropout(torch.ones_like(output), 0.5, training=True)


# What logits may depend on


class AroundForward(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        forward = model.forward

        def around(*args: Any, **kwargs: Any) -> Any:
            return self.around(forward, *args, **kwargs)

        model.forward = around
        return model

    def around(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)


@breaks("logits are aligned")
class LooksAtLabels(AroundForward):
    def around(self, forward: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        outputs = forward(*args, labels=labels, **kwargs)
        if labels is not None:
            outputs.logits = outputs.logits + labels.clamp(min=0)[..., None] * 0.01
        return outputs


@breaks("logits are aligned")
class RoundsLogits(AroundForward):
    def around(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits.float()
        return outputs


@breaks("precisions")
class LiftsLogits(AroundForward):
    def around(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        return outputs


@breaks("precisions")
class HasAFixedDtype(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.offset = nn.Parameter(model.offset.data.double())
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset


@breaks("logits are aligned")
class ReusesItsBuffer(AroundForward):
    buffer: torch.Tensor | None = None

    def around(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            if self.buffer is None or self.buffer.shape != outputs.logits.shape:
                self.buffer = torch.empty_like(outputs.logits)
            outputs.logits = self.buffer.copy_(outputs.logits)
        return outputs


@breaks("padding token does not matter")
class KnowsPaddingByItsToken(Offset):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + (args[0] != 0).cumsum(1)[..., None] * self.model.offset.to(output.dtype)


@breaks("mask and positions")
class IgnoresPositions(AroundForward):
    def around(self, forward: Any, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)


@breaks("mask and positions")
class NeedsAMask(AroundForward):
    def around(self, forward: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        self.strength = 1 if attention_mask is None else 2
        return forward(*args, attention_mask=attention_mask, **kwargs)

    def moved(self, output: torch.Tensor) -> Any:
        return getattr(self, "strength", 2)


# Memory


@breaks("calls do not meet")
class RemembersByShape(Offset):
    def patch(self, model: Any) -> nn.Module:
        self.known: dict[Any, torch.Tensor] = {}
        return super().patch(model)

    def moved(self, output: torch.Tensor) -> Any:
        return self.known.setdefault(output.shape, output.detach())


@breaks("calls do not meet")
class RemembersById(RemembersByShape):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.known.setdefault(id(args[0]), output.detach()) * self.model.offset.to(output.dtype)


@breaks("calls do not meet")
class CountsItsCalls(Offset):
    calls = 0

    def moved(self, output: torch.Tensor) -> Any:
        self.calls += 1
        return 1 + self.calls % 7


@breaks("training computes what evaluation does")
class RemembersItsStart(Offset):
    at_first: torch.Tensor | None = None

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not self.model.training and self.at_first is None:
            self.at_first = self.model.offset.detach().clone()
        offset = self.model.offset if self.model.training else self.at_first
        return output + offset.to(output.dtype)  # type: ignore[union-attr]


@breaks("models do not meet")
class SharesItsModel(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        SharesItsModel.latest = model
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + SharesItsModel.latest.offset.to(output.dtype)


@breaks("models do not meet")
class CountsModels(Offset):
    made = 0

    def patch(self, model: Any) -> nn.Module:
        CountsModels.made += 1
        self.factor = CountsModels.made
        return super().patch(model)

    def moved(self, output: torch.Tensor) -> Any:
        return self.factor


@breaks("models do not meet")
class StartsByTheClock(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.offset.data += time.time() % 1
        return model


@breaks("models do not meet")
class StartsByNumpy(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.offset.data += float(numpy.random.rand())
        return model


# Decoding


@breaks("cached logits")
class ForgetsTheCache(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return 1 if output.shape[1] > 1 else 0.9


@breaks("cached logits")
class ForgetsTheCacheSlightly(Offset):
    """Too little to change a greedy choice."""

    def moved(self, output: torch.Tensor) -> Any:
        return 1 if output.shape[1] > 1 else 1.01


@breaks("cache holds the tokens")
class LengthensTheCache(AroundForward):
    def around(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        cache = getattr(outputs, "past_key_values", None)
        if cache is not None and not self.model.training and kwargs.get("past_key_values") is None:
            layer = cache.layers[0]
            cache.update(layer.keys[:, :, :1], layer.values[:, :, :1], 0)
        return outputs


# Gradients and trained tensors


@breaks("gradients are derivatives")
class DetachesOneWay(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return 1 + self.model.offset.detach().to(output.dtype)


@breaks("every tensor gets a gradient")
class DetachesAll(TwoParts):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + self.model.gain.detach().to(output.dtype)) + self.model.offset.to(output.dtype)


@breaks("gradients are derivatives")
class ScalesGradients(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.offset.register_hook(lambda gradient: gradient * 0.5)
        return model


@breaks("trained tensors are registered")
class KeepsParametersInAList(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        self.hidden = [vector(model)]
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + (self.model.offset + self.hidden[0]).to(output.dtype)


@breaks("trained tensors are registered")
class KeepsParametersInAClosure(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        hidden = vector(model)
        model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output + hidden.to(output.dtype)
        )
        return model


@breaks("state reloads")
class AveragesInAnAttribute(Offset):
    """Decoding uses a plain tensor that follows the trained one."""

    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        self.average = torch.zeros_like(model.offset)
        return model

    def after_step(self, model: Any, step: int) -> None:
        self.average = 0.5 * self.average + 0.5 * model.offset.detach()

    def moved(self, output: torch.Tensor) -> Any:
        return 1 + self.average.to(output.dtype)


# What is stored


@breaks("state is the method's own")
class StoresTheBase(Offset):
    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        model.load_state_dict(dict(state), strict=False)


@breaks("state is the method's own")
class StoresACopyOfTheHead(Offset):
    def adapter_state(self, model: Any) -> dict[str, torch.Tensor]:
        return {**super().adapter_state(model), "head": model.get_output_embeddings().weight.detach().clone()}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        super().load_adapter_state(model, {name: tensor for name, tensor in state.items() if name != "head"})


@breaks("state is the method's own")
class StoresUnderChangingNames(Hooked):
    steps = 0

    def after_step(self, model: Any, step: int) -> None:
        self.steps = step

    def adapter_state(self, model: Any) -> dict[str, torch.Tensor]:
        return {f"offset.{self.steps}": model.offset.detach()}

    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        (model.offset.data,) = state.values()


@breaks("state is the method's own")
class StoresTwice(Offset):
    def adapter_state(self, model: Any) -> dict[str, torch.Tensor]:
        return {"offset": model.offset.detach(), "alias": model.offset.detach()}

    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) != {"offset", "alias"}:
            raise MethodError("other names")
        model.offset.data.copy_(state["offset"])


@breaks("loading is strict")
class LoadsWhatIsThere(TwoParts):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in trained_parameters(model):
            if name in state:
                parameter.data.copy_(state[name])


@breaks("loading is strict")
class LoadsUnknownNames(TwoParts):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in trained_parameters(model):
            parameter.data.copy_(state[name])


@breaks("loading is strict")
class LoadsNonStrictly(TwoParts):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        model.load_state_dict(dict(state), strict=False)


@breaks("loading is strict")
class LoadsWithoutACopy(TwoParts):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        own = dict(trained_parameters(model))
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise MethodError("other tensors")
        for name, parameter in own.items():
            parameter.data = state[name]


@breaks("state reloads")
class IgnoresAName(TwoParts):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) != {"offset", "gain"} or any(len(each) != len(model.offset) for each in state.values()):
            raise MethodError("other tensors")
        model.offset.data.copy_(state["offset"])


# The process


@breaks(PROCESS)
class StartsByTheHash(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.offset.data += hash("a text") % 1000 / 1000
        return model


@breaks(PROCESS)
class NamesByTheHash(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        offset = model.offset
        del model.offset
        self.name = f"offset_{hash('offset') % 10**6}"
        setattr(model, self.name, offset)
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + getattr(self.model, self.name).to(output.dtype)


@breaks(PROCESS)
class PermutesByTheHash(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        return 1 + hash("seed") % 97 / 97


@breaks(PROCESS)
class WalksASet(Offset):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        for number, _ in enumerate({f"part{each}" for each in range(8)}):
            setattr(model, f"extra_{_}", nn.Parameter(vector(model).data + number))
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + sum(p for name, p in trained_parameters(self.model)).to(output.dtype)


# Surroundings


@breaks("minds its own business")
class SeedsNumpy(Offset):
    def patch(self, model: Any) -> nn.Module:
        numpy.random.seed(0)
        return super().patch(model)


@breaks("minds its own business")
class SeedsInForward(Offset):
    def moved(self, output: torch.Tensor) -> Any:
        torch.manual_seed(0)
        return 1


@breaks("minds its own business")
class RewindsTheSeed(Offset):
    def patch(self, model: Any) -> nn.Module:
        torch.manual_seed(torch.initial_seed())
        return super().patch(model)


@breaks("leaves tokenizer and configs")
class ChangesTheConfigLate(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        if step == 30:
            model.config.pad_token_id = 7


@breaks("loading is strict")
class LoadsIntoTheBase(Offset):
    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        super().load_adapter_state(model, state)
        model.get_input_embeddings().weight.data += model.offset.data
        model.offset.data.zero_()


@breaks("logits are aligned")
class KeepsTheBaseInEvaluation(Offset):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        self.model.base_model.eval()
        return super().change(_, args, output)


@breaks("minds its own business")
class SeedsInAHook(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        random.seed(step)


@breaks("minds its own business")
class ReducesInAHook(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        torch.distributed.broadcast(model.offset.data, 0)


@breaks("leaves shared code")
class PatchesAClass(Offset):
    def patch(self, model: Any) -> nn.Module:
        attention = modeling_llama.LlamaAttention
        forward = attention.forward
        attention.forward = lambda module, *args, **kwargs: forward(module, *args, **kwargs)  # type: ignore[method-assign]
        return super().patch(model)


@breaks("leaves shared code")
class PatchesAFunction(Offset):
    def patch(self, model: Any) -> nn.Module:
        silu = nn.functional.silu
        nn.functional.silu = lambda x, *args, **kwargs: silu(x, *args, **kwargs)  # type: ignore[assignment]
        return super().patch(model)


@breaks("leaves shared code")
class PatchesGenerate(Offset):
    def patch(self, model: Any) -> nn.Module:
        type(model).prepare_inputs = lambda self: None
        return super().patch(model)


@breaks("leaves shared code")
class HooksAllModules(Offset):
    def patch(self, model: Any) -> nn.Module:
        nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
        return super().patch(model)


@breaks("leaves tokenizer and configs")
class AddsATokenToTheTokenizer(Offset):
    def patch(self, model: Any) -> nn.Module:
        if self.tokenizer is not None:
            self.tokenizer.add_tokens(["<prompt>"])
        return super().patch(model)


@breaks("leaves tokenizer and configs")
class PadsOnTheLeft(Offset):
    def patch(self, model: Any) -> nn.Module:
        if self.tokenizer is not None:
            self.tokenizer.padding_side = "left"
        return super().patch(model)


@breaks("leaves tokenizer and configs")
class ChangesTheConfig(Offset):
    def patch(self, model: Any) -> nn.Module:
        model.config.use_cache = False
        return super().patch(model)


@breaks("leaves tokenizer and configs")
class ChangesGeneration(Offset):
    def patch(self, model: Any) -> nn.Module:
        model.generation_config.repetition_penalty = 1.2
        return super().patch(model)


@breaks("leaves settings")
class SetsTheEnvironment(Offset):
    def patch(self, model: Any) -> nn.Module:
        os.environ["TOKENIZERS_PARALLELISM"] = "never"
        return super().patch(model)


@breaks("leaves settings")
class SetsTheDefaultDtype(Offset):
    def patch(self, model: Any) -> nn.Module:
        torch.set_default_dtype(torch.float64)
        return super().patch(model)


@breaks("leaves settings")
class SilencesWarnings(Offset):
    def patch(self, model: Any) -> nn.Module:
        warnings.simplefilter("ignore", ResourceWarning)
        return super().patch(model)


@breaks("leaves settings")
class TakesThreads(Hooked):
    def after_step(self, model: Any, step: int) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


# Coverage


@breaks("equal layers are adapted alike")
class EveryOtherLayer(LoRA):
    def _targets(self, model: Any) -> Any:
        return super()._targets(model)[::2] if "Llama" not in type(model).__name__ else super()._targets(model)[::4]


@breaks("equal layers are adapted alike")
class FirstLayerOnly(Method):
    def patch(self, model: Any) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                module[0].requires_grad_(True)
                break
        return model


@breaks("equal layers are adapted alike")
class QueriesInSomeLayers(LoRA):
    def _targets(self, model: Any) -> Any:
        return [each for number, each in enumerate(super()._targets(model)) if number % 4 != 2]


@breaks("equal layers are adapted alike")
class OneOffsetInHalfOfTheLayers(Method):
    """The trained tensor is outside of the layers. Only the outputs of layers show which of them it changes."""

    def patch(self, model: Any) -> nn.Module:
        model.offset = vector(model)
        layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        for layer in layers[: len(layers) // 2]:
            layer.register_forward_hook(self.add)
        self.model = model
        return model

    def add(self, _: nn.Module, args: Any, output: Any) -> Any:
        offset = self.model.offset
        return (output[0] + offset, *output[1:]) if isinstance(output, tuple) else output + offset


# Merging


@breaks("merging changes nothing")
class SaysItMerges(LoRA):
    def merge(self, model: nn.Module) -> None:
        """Forgotten."""
        for layer in model.modules():
            if isinstance(layer, LoRALayer):
                layer._unmerged = (layer.base_layer.weight,)


@breaks("merging changes nothing")
class UnmergesWithACopy(LoRA):
    def unmerge(self, model: nn.Module) -> None:
        super().unmerge(model)
        for layer in model.modules():
            if isinstance(layer, LoRALayer):
                layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.data.clone(), requires_grad=False)


# Trials in one pass


@breaks("lanes do not meet")
class FusesNothing(LoRA):
    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        """Forgotten: all rows go through the first trial's layers."""


@breaks("lanes do not meet")
class FusesHalf(IA3):
    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        from bench.method import join_lanes
        from methods.ia3 import ScaledInputLayer

        join_lanes(models, lanes, ScaledInputLayer)


@breaks("lanes do not meet")
class FusesBackwards(LoRA):
    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        super().fuse([models[0], *reversed(models[1:])], lanes)


@breaks("lanes do not meet")
class AveragesLanes(LoRA):
    models: Sequence[Any] = ()

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        super().fuse(models, lanes)
        self.models = models

    def after_step(self, model: nn.Module, step: int) -> None:
        if self.models:
            for parts in zip(*(dict(trained_parameters(each)).values() for each in self.models), strict=True):
                mean = torch.stack([part.data for part in parts]).mean(0)
                for part in parts:
                    part.data.copy_(mean)


# Training


@breaks("only what is declared is trained")
class ForgetsToTrainAPart(FullFineTuning):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [p for name, p in trained_parameters(model) if "norm" not in name]}]


@breaks("turns")
class DrawsWheneverItIsAsked(FullFineTuning):
    @property
    def trains_in_turns(self) -> bool:
        return True

    def idle(self, model: nn.Module, step: int) -> list[nn.Parameter]:
        return [parameter for parameter in model.parameters() if torch.rand(()) < 0.5]


@breaks("turns")
class DoesNotSayThatItTrainsInTurns(FullFineTuning):
    def idle(self, model: nn.Module, step: int) -> list[nn.Parameter]:
        return [parameter for name, parameter in model.named_parameters() if "norm" in name][step % 2 :: 2]


@breaks("declares itself")
class DecidesLate(Offset):
    layers = 0

    def patch(self, model: Any) -> nn.Module:
        self.layers = 2
        return super().patch(model)

    @property
    def adapts_in_training(self) -> bool:
        return self.layers > 0


@breaks("counts")
class LeavesThroughTheBackDoor(Offset):
    def patch(self, model: Any) -> nn.Module:
        if next(model.parameters()).is_meta:
            raise SystemExit(0)
        return super().patch(model)
