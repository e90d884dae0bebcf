"""Any method of Hugging Face peft behind our interface.

B batch, P virtual tokens, T tokens, D hidden size.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn

from bench.method import (
    Method,
    MethodConfig,
    MethodError,
    PeftAdapter,
    computes_like,
    copy_state,
    quantization_of,
    trained_parameters,
    whole,
)
from methods.parts.transformer_parts import linear_layers_in
from methods.parts.weight_reads import uses_of

# Fields of peft's configurations that this method sets itself, or that do not concern a method.
OWN_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)

# Types that are refused with any settings.
REFUSED = {
    "MULTITASK_PROMPT_TUNING": "it wants a task id with every example, which no task here has",
    "POLY": "it wants a task id with every example, which no task here has",
}

# Starts of LoRA that cannot be had, by the beginning of their name.
_DATA = (
    "it needs data that peft does not get here, and without them it starts as by default; the method {} does get them"
)
_BASE = "it changes base weights, which a method leaves as they are; the method {} starts so and leaves them"
REFUSED_STARTS = {
    **{name: _DATA.format(name) for name in ("corda", "eva", "lora_ga")},
    **{name: _BASE.format(name) for name in ("olora", "pissa")},
    "loftq": "it quantises weights itself; the method loftq starts so on a base model with model.quantization",
}

# Types that break the contract without an error, so that another function would be scored than was trained.
PADDING_BREAKS = (
    "peft puts its virtual tokens in front of the padding and ignores positions, so that rows of a left-padded batch "
    "are decoded by another model than was trained; the method prompt_tuning does not"
)
BREAKS_CONTRACT = {
    "CPT": PADDING_BREAKS,
    "LILY": "its router averages over all tokens and rows of a batch, so that later tokens and other rows, padding "
    "among them, change what a token sees",
    "P_TUNING": PADDING_BREAKS,
    "PROMPT_TUNING": PADDING_BREAKS,
}


# Buffers in which types of peft keep singular vectors of base weights.
FACTORS_OF_WEIGHTS = frozenset({"_psoft_A_cache", "_psoft_B_cache", "tinylora_A", "tinylora_B"})

# Types whose trained virtual tokens are stored by peft without a change.
PLAIN_PROMPTS = ("PREFIX_TUNING", "PROMPT_TUNING")


class HfPeft(Method):
    """Any method of Hugging Face peft, by its peft_type and the settings of that type.

    Source: https://github.com/huggingface/peft, version 0.21; docs/methods/methods.md shows which keep the contract.

    Deviations: adapters have the dtype of the model. AdaLoRA's regulariser changes the gradients and not the reported
    loss, and importance is computed from gradients before they are clipped. All trained tensors of prompt encoders are
    stored, also those that peft would drop after computing the prompt.
    """

    class Config(MethodConfig):
        """The type. All other keys are fields of peft's configuration class for that type."""

        model_config = ConfigDict(extra="allow")

        peft_type: str = Field(
            examples=["LOHA"],
            description="type of peft, such as LOHA; all further keys are fields of peft's configuration for that type",
        )
        despite_contract: bool = Field(
            False, description="run a type that is known to break the contract, such as PROMPT_TUNING"
        )

        @model_validator(mode="after")
        def _known_to_peft(self) -> HfPeft.Config:
            peft_config(self.peft_type, self.model_extra)
            reason = BREAKS_CONTRACT.get(self.peft_type)
            if reason and not self.despite_contract:
                raise ValueError(
                    f"peft_type: {self.peft_type} breaks the contract of methods: {reason}. To run it nevertheless, "
                    "set despite_contract: true"
                )
            if self.despite_contract and not reason:
                raise ValueError(f"despite_contract has no effect with peft_type: {self.peft_type}; leave it out")
            return self

        @property
        def needed_steps(self) -> tuple[float, str]:
            if self.peft_type != "ADALORA":
                return 0, ""
            adalora = peft_config(self.peft_type, self.model_extra)
            last = adalora.total_step - adalora.tfinal
            reason = f"total_step: {adalora.total_step}: AdaLoRA has cut ranks to target_r after {last:,} steps"
            return last, reason + (f" (tfinal: {adalora.tfinal})" if adalora.tfinal else "")

    paper: ClassVar[str] = "Mangrulkar et al. 2022, github.com/huggingface/peft"

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        super().__init__(config, tokenizer)
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}

    def patch(self, model: Any) -> nn.Module:
        from peft import get_peft_model

        name, uses, kind = type(model).__name__, uses_of(model), quantization_of(model)
        like, frozen = computes_like(model), {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        layers = {layer.name: layer.module for layer in linear_layers_in(model)}
        task_type = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        try:
            config = peft_config(self.config.peft_type, self.config.model_extra, task_type)
            with whole_targets(config), warnings.catch_warnings():
                # peft asks transformers by names that transformers warns of, which is nothing for users of either.
                warnings.simplefilter("ignore", FutureWarning)
                patched: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
        except Exception as error:
            if kind is not None and not like.is_meta and not isinstance(error, ValueError):
                raise MethodError(_needs_weights(self.config.peft_type, kind)) from None
            stored = "" if kind is None else f", whose weights are stored in {kind}"
            raise MethodError(f"peft cannot apply {self.config.peft_type} to {name}{stored}: {error}") from error
        if not any(True for _ in trained_parameters(patched)):
            raise MethodError(f"peft finds nothing to train with {self.config.peft_type} in {name}")
        now = dict(model.named_modules())
        for layer, module in layers.items():
            reason = uses.why_without_part(layer)
            if reason is not None and now.get(layer) is not module:
                raise MethodError(f"{self.config.peft_type} adapts {layer}, which has no effect: {reason}; name others")
        if config.is_prompt_learning:
            return PromptedModel(patched)
        if kind is not None:
            # peft gives its tensors the dtype of the weights, which is wrong for packed weights.
            for tensor in (*patched.parameters(), *patched.buffers()):
                if id(tensor) not in frozen and tensor.is_floating_point():
                    tensor.data = tensor.data.to(like.dtype)
            if uses.complete and not uses_of(patched).complete:
                raise MethodError(_needs_weights(self.config.peft_type, kind))
        return patched

    @property
    def adapts_in_training(self) -> bool:
        return bool(self.config.peft_type == "ADALORA")

    def before_step(self, model: Any, step: int) -> None:
        if not self.adapts_in_training:
            return
        named = dict(trained_parameters(model))
        penalty = model.active_peft_config.orth_reg_weight * orthogonality_penalty(named)
        of_penalty = torch.autograd.grad(penalty, list(named.values()), allow_unused=True, materialize_grads=True)
        for (name, parameter), gradient in zip(named.items(), of_penalty, strict=True):
            if parameter.grad is None:
                raise RuntimeError(f"{name} has no gradient before the optimiser step, so that AdaLoRA cannot rank it")
            parameter.grad += gradient
            self._gradients[parameter] = parameter.grad.clone()

    def after_step(self, model: Any, step: int) -> None:
        if not self.adapts_in_training:
            return
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        model.base_model.update_and_allocate(step)
        for parameter in self._gradients:
            parameter.grad = None
        self._gradients = {}

    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The trained tensors, and those that a fresh model need not have.

        They are all others of a prompt encoder (CARTRIDGE freezes its first tokens), and frozen singular vectors of
        base weights (TINYLORA, PSOFT, LoRA with ``init_lora_weights: mica``), whose signs depend on the machine.
        """
        return {name: tensor.detach() for name, tensor in _stored(model).items()}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        copy_state(_stored(model), state)

    def merged_weights(self, model: Any) -> dict[str, torch.Tensor]:
        if isinstance(model, PromptedModel):
            raise MethodError(f"{self.config.peft_type} of peft cannot be merged: virtual tokens are no weights")
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise MethodError(f"{self.config.peft_type} of peft cannot be merged: {error}") from error
        return {name: parameter.detach() for name, parameter in merged.named_parameters()}

    def load_peft_state(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        from peft import set_peft_model_state_dict

        peft_model = model.peft_model if isinstance(model, PromptedModel) else model
        if peft_model.active_peft_config.is_prompt_learning and self.config.peft_type not in PLAIN_PROMPTS:
            raise MethodError(f"of {self.config.peft_type} peft stores what its encoder makes, which it cannot undo")
        try:
            loaded: Any = set_peft_model_state_dict(peft_model, dict(state))
        except (RuntimeError, KeyError, ValueError) as error:
            raise MethodError(" ".join(str(error).split())) from error
        if peft_model.active_peft_config.is_prompt_learning:
            return
        trained = {name for name, _ in trained_parameters(peft_model)}
        if lacking := sorted(trained.intersection(loaded.missing_keys)):
            raise MethodError(f"its file lacks {len(lacking)} tensors, among them {lacking[0]!r}")
        if extra := loaded.unexpected_keys:
            raise MethodError(f"its file has {len(extra)} tensors without a place, among them {extra[0]!r}")

    def to_peft(self, model: Any) -> PeftAdapter:
        from peft import get_peft_model_state_dict

        peft_model = model.peft_model if isinstance(model, PromptedModel) else model
        config = {"peft_type": self.config.peft_type, **self.config.model_extra}
        return PeftAdapter(config, get_peft_model_state_dict(peft_model, save_embedding_layers=False))


def _needs_weights(peft_type: str, kind: str) -> str:
    return (
        f"{peft_type} of peft computes with the weights of the layers that it adapts, which are stored in {kind} here; "
        "leave model.quantization out, or choose a type that adds to what layers put out, such as LORA"
    )


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, the rest of a prompt encoder, and frozen factors of the base weights."""
    factors = tuple(
        f"{name}.{part}.{adapter}"
        for name, module in model.named_modules()
        for adapter, parts in getattr(module, "frozen_peft_weight_names", {}).items()
        for part in parts
    )
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or ".prompt_encoder." in name or name.startswith(factors)
    }
    buffers = {name: each for name, each in model.named_buffers() if not FACTORS_OF_WEIGHTS.isdisjoint(name.split("."))}
    return {**parameters, **buffers}


@contextmanager
def whole_targets(config: Any) -> Iterator[None]:
    """Inside the block peft sees the weights of a layer that it adapts, even if ranks hold slices of them.

    Some types compute their start from these weights.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if tuner is None or not hasattr(tuner, "_create_and_replace"):  # virtual tokens, which adapt no layer
        yield
        return
    adapt = tuner._create_and_replace

    def adapt_whole(self: Any, peft_config: Any, adapter_name: str, target: Any, *others: Any, **named: Any) -> None:
        with whole(target.parameters()):
            adapt(self, peft_config, adapter_name, target, *others, **named)

    tuner._create_and_replace = adapt_whole
    try:
        yield
    finally:
        tuner._create_and_replace = adapt


def peft_config_classes() -> dict[str, Any]:
    """The configuration class of every type that the installed peft has."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    return {str(getattr(name, "value", name)): kind for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def peft_config(peft_type: str, settings: Mapping[str, Any] | None, task_type: str = "CAUSAL_LM") -> Any:
    """The configuration of peft for a type.

    Raises:
        ValueError: The type is unknown or refused, a setting is unknown or has no effect, or peft refuses a value.
    """
    known = peft_config_classes()
    if peft_type not in known:
        raise ValueError(f"peft_type: peft has no {peft_type!r}; {_meant(peft_type.upper(), known)}")
    if peft_type in REFUSED:
        raise ValueError(f"peft_type: {peft_type} cannot take part: {REFUSED[peft_type]}")
    fields = {field.name for field in dataclasses.fields(known[peft_type])} - OWN_FIELDS
    settings = settings or {}
    if unknown := sorted(settings.keys() - fields):
        raise ValueError(f"{unknown[0]}: {peft_type} has no such setting; {_meant(unknown[0], fields)}")
    if peft_type == "ADAMSS" and settings.get("use_asa"):
        raise ValueError("use_asa: it changes during training which tensors are trained, which DeepSpeed cannot follow")
    if peft_type == "LORA" and settings.get("alora_invocation_tokens") is not None:
        raise ValueError(
            "alora_invocation_tokens: peft looks for them in each call, and decoding with a cache gives it one token, "
            "so that another model would be scored than was trained; leave it out"
        )
    start = str(settings.get("init_lora_weights")).lower()
    for refused, reason in REFUSED_STARTS.items():
        if start.startswith(refused):
            raise ValueError(f"init_lora_weights: {start} cannot be had here: {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of settings that it ignores
        try:
            return known[peft_type](**settings, task_type=task_type)
        except Exception as error:
            raise ValueError(f"{peft_type}: {error}") from error


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(sorted(known))}"


def orthogonality_penalty(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean distance of AdaLoRA's A and B from orthogonality (Zhang et al. 2023, section 3.1, as peft computes it).

    peft adds it to the loss only if a model gets labels. The harness passes none, because it computes its own losses.
    """
    distances = []
    for name, parameter in parameters.items():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            distances.append(torch.linalg.matrix_norm(product - identity))
    return torch.stack(distances).mean()


class PromptedModel(nn.Module):
    """A model of peft with virtual tokens in front, which returns logits for the real tokens only.

    If peft puts virtual tokens into the input, its model returns P + T positions. Those of virtual tokens are dropped
    before the output head, so that no logits are computed for them.

    Args:
        peft_model: The result of ``peft.get_peft_model`` for a prompt-learning type.
    """

    _supports_attention_backend: ClassVar[bool] = False
    """Masks and positions of the batched decoder leave no room for virtual tokens; ``generate`` is used instead."""

    def __init__(self, peft_model: Any) -> None:
        super().__init__()
        self.peft_model = peft_model
        self._num_tokens: int | None = None
        peft_model.get_output_embeddings().register_forward_pre_hook(self._drop_virtual_tokens)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # config, generate, ... of the model inside
            return getattr(super().__getattr__("peft_model"), name)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if decoder_input_ids is not None:
            kwargs["decoder_input_ids"] = decoder_input_ids
        self._num_tokens = (input_ids if decoder_input_ids is None else decoder_input_ids).shape[1]
        try:
            outputs = self.peft_model(input_ids=input_ids, **kwargs)
        finally:
            self._num_tokens = None
        if labels is not None:
            loss_function = self.peft_model.get_base_model().loss_function
            outputs.loss = loss_function(outputs.logits, labels, vocab_size=outputs.logits.shape[-1])
        return outputs

    def _drop_virtual_tokens(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._num_tokens is None:
            return None
        return (args[0][:, -self._num_tokens :], *args[1:])
