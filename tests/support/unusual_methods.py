"""Correct but unusual methods, which no check of the contract may fail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from broken_methods import Offset, TwoParts, vector
from torch import nn

from bench.method import Method, MethodConfig, MethodError, copy_state, trained_parameters
from methods.lora import LoRA


class TrainsTheEmbeddings(Method):
    """Embeddings, which many models share with their head."""

    def patch(self, model: Any) -> nn.Module:
        model.get_input_embeddings().weight.requires_grad_(True)
        return model


class TrainsTheHead(Method):
    """The output head, and its bias where there is none."""

    def patch(self, model: Any) -> nn.Module:
        head = model.get_output_embeddings()
        head.weight.requires_grad_(True)
        return model


class AddsABiasToTheHead(Method):
    """Logits get a trained bias, behind the head."""

    def patch(self, model: Any) -> nn.Module:
        model.logit_bias = vector(model, model.config.vocab_size)
        model.get_output_embeddings().register_forward_hook(
            lambda module, args, output: output + model.logit_bias.to(output.dtype)
        )
        return model


class TrainsTheNorms(Method):
    """The scales of all norms, by the names of their classes."""

    def patch(self, model: Any) -> nn.Module:
        norms = [module for module in model.modules() if "Norm" in type(module).__name__]
        for norm in norms:
            norm.requires_grad_(True)
        return model


class InDecodersOnly(Method):
    """Bottlenecks behind the layers of the decoder; the encoder, if there is one, stays as it is."""

    def patch(self, model: Any) -> nn.Module:
        decoder = model.get_decoder()
        layers = next(module for module in decoder.modules() if isinstance(module, nn.ModuleList))
        width = model.get_input_embeddings().weight.shape[1]
        like = {"dtype": model.dtype, "device": model.device}
        for layer in layers:
            layer.bottleneck = nn.Sequential(
                nn.Linear(width, 3, **like), nn.Tanh(), nn.Linear(3, width, bias=False, **like)
            )
            layer.register_forward_hook(self.add)
        return model

    def add(self, layer: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + layer.bottleneck(output[0]), *output[1:])
        return output + layer.bottleneck(output)


class AddsALayer(Method):
    """A new block behind the last norm, as in block expansion."""

    def patch(self, model: Any) -> nn.Module:
        if model.config.is_encoder_decoder:
            raise MethodError(f"{type(model).__name__} has an encoder; this is for decoders alone")
        width = model.get_input_embeddings().weight.shape[1]
        like = {"dtype": model.dtype, "device": model.device}
        model.extra = nn.Sequential(
            nn.Linear(width, 8, **like), nn.GELU(), nn.Linear(8, width, **like), nn.LayerNorm(width, **like)
        )
        model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: (args[0] + model.extra(args[0]), *args[1:])
        )
        return model


class StoresABuffer(Offset):
    """A random direction, drawn from the trial's seed, that is a buffer and stored with what is trained."""

    def patch(self, model: Any) -> nn.Module:
        model.register_buffer("direction", torch.randn_like(vector(model)))
        return super().patch(model)

    def moved(self, output: torch.Tensor) -> Any:
        return self.model.direction.to(output.dtype)

    def adapter_state(self, model: Any) -> dict[str, torch.Tensor]:
        return {**super().adapter_state(model), "direction": model.direction}

    def load_adapter_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        copy_state({**dict(trained_parameters(model)), "direction": model.direction}, state)


class DropsOutInTraining(Offset):
    """Dropout on what is added, in training only."""

    def moved(self, output: torch.Tensor) -> Any:
        return nn.functional.dropout(torch.ones_like(output), 0.3, training=self.model.training)


class DropsPathsInTraining(Offset):
    """Noise of its own making, in training only."""

    def moved(self, output: torch.Tensor) -> Any:
        return 1 + 0.1 * torch.randn_like(output) if self.model.training else 1


class ReadsPositions(Offset):
    """The offset turns with the position of a token, which it is given or counts itself."""

    positions: torch.Tensor | None = None

    def patch(self, model: Any) -> nn.Module:
        if model.config.is_encoder_decoder:
            raise MethodError(f"{type(model).__name__} has no position_ids")
        super().patch(model)
        forward = model.forward

        def with_positions(
            input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
        ) -> Any:
            if position_ids is None:
                past = kwargs.get("past_key_values")
                start = 0 if past is None else past.get_seq_length()
                length = (kwargs["inputs_embeds"] if input_ids is None else input_ids).shape[1]
                position_ids = torch.arange(start, start + length, device=model.device)[None]
            self.positions = position_ids
            return forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)

        model.forward = with_positions
        return model

    def moved(self, output: torch.Tensor) -> Any:
        positions = self.positions
        return 1.0 if positions is None else torch.cos(0.3 * positions)[..., None].to(output.dtype)


class ClampsAfterSteps(Offset):
    """Edits what it trains after steps, and says so."""

    @property
    def adapts_in_training(self) -> bool:
        return True

    def after_step(self, model: Any, step: int) -> None:
        with torch.no_grad():
            model.offset.clamp_(-0.05, 0.05)


class TrainsFewEntries(TwoParts):
    """A sparse update: gradients of all but the largest entries are set to zero before each step."""

    @property
    def adapts_in_training(self) -> bool:
        return True

    def before_step(self, model: Any, step: int) -> None:
        for _, parameter in trained_parameters(model):
            if parameter.grad is not None:
                small = parameter.grad.abs() < parameter.grad.abs().quantile(0.5)
                parameter.grad[small] = 0


class HasTwoRates(TwoParts):
    """One part learns faster, as in LoRA+."""

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return [{"params": [model.offset], "lr_scale": 16.0}, {"params": iter([model.gain])}]


class TiesItsParts(Offset):
    """One parameter under two names."""

    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.second_name = model.offset
        return model

    def moved(self, output: torch.Tensor) -> Any:
        return 1 + self.model.second_name.to(output.dtype)


class ChoosesLayers(LoRA):
    """Adapts the layers that a setting names."""

    class Config(LoRA.Config):
        """Settings."""

        layers: tuple[int, ...] = (0,)

    def _targets(self, model: Any) -> Any:
        chosen = {f".{number}." for number in self.config.layers}
        return [each for each in super()._targets(model) if any(part in each[0].name for part in chosen)]


class CountsSteps(Offset):
    """Its hook keeps a number that nothing depends on."""

    def after_step(self, model: Any, step: int) -> None:
        self.progress = math.sqrt(step)


class Wraps(Method):
    """Returns another module around the model."""

    class Config(MethodConfig):
        """No settings."""

    def patch(self, model: Any) -> nn.Module:
        Offset(self.config).patch(model)
        return Wrapper(model)


class Wrapper(nn.Module):
    """Hands everything on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.wrapped = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(*args, **kwargs)


UNUSUAL: list[type[Method]] = [
    Offset,
    TwoParts,
    TrainsTheEmbeddings,
    TrainsTheHead,
    AddsABiasToTheHead,
    TrainsTheNorms,
    InDecodersOnly,
    AddsALayer,
    StoresABuffer,
    DropsOutInTraining,
    DropsPathsInTraining,
    ReadsPositions,
    ClampsAfterSteps,
    TrainsFewEntries,
    HasTwoRates,
    TiesItsParts,
    ChoosesLayers,
    CountsSteps,
    Wraps,
]
