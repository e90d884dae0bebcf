"""Attention layers whose tokens also attend to a trained prefix, in the parametrisations of prefix tuning.

B batch, H key/value heads, T tokens in this call, P prompt tokens, D hidden size, C head channels, M hidden size of the
reparametrisation, N number of layers that it serves, K trials that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from bench.method import of_lanes
from methods.parts.attention_prefix import (
    KeptWhileDecoding,
    KeysValues,
    NotHandedDown,
    attend_with_prefix,
    keys_values_of,
    widen_mask,
)
from methods.parts.attention_sites import AttentionSite, Rotary
from methods.parts.prefix_literal import attend_literally

Prefixes = dict[str, list[KeysValues]]
"""Keys and values for the attention layers of a role, in order of the layers."""


class PrefixTuningAttentionLayer(nn.Module):
    """An attention layer whose tokens also attend to trained prompt embeddings.

    The specification is the path ``literal``: ``prompt_embeddings(prompt_tokens)``, shape ``(P, D)``, is concatenated
    in front of the hidden states along the sequence, the result goes through ``base_attention_layer`` with its keyword
    arguments, and the prompt positions are cut off again. For the tokens this is attention over
    ``[W_k p; W_k x]`` and ``[W_v p; W_v x]`` with the layer's own frozen projections. Cross-attention makes its keys
    and values of the encoder's output: there the prompt is concatenated to that.

    The path ``fused`` computes the prompt's keys and values once for the whole batch and puts them in front of the
    layer's own. It equals the literal path to rounding, without B copies of the prompt and without queries and outputs
    for prompt positions of every row.

    On both paths the prompt is not in the key/value cache.

    Args:
        base_attention_layer: An attention layer of transformers; it stays frozen.
        prompt_embeddings: ``nn.Embedding(P, D)`` in the space of the layer's hidden states (after a norm that precedes
            it).
        prompt_tokens: ``(P,)`` int64, the rows of ``prompt_embeddings`` to use, in order.
        site: The place of ``base_attention_layer`` in its model.
        prompt_rotary: ``(cos, sin)``, each ``(1, P, C)``, or one complex tensor, for layers with rotary positions.
        bias_source: The layer that makes the relative position bias which this one shares, if there is one.
        path: ``fused`` or ``literal``.
        infix: Whether only some tokens see the prompt, so that a call needs ``prompt_visible``.
        others: Further arguments of the layer for the prompt; see LayerInput.
    """

    prompt_tokens: torch.Tensor
    prompt_cos: torch.Tensor | None
    prompt_sin: torch.Tensor | None

    def __init__(
        self,
        base_attention_layer: nn.Module,
        prompt_embeddings: nn.Embedding,
        prompt_tokens: torch.Tensor,
        site: AttentionSite,
        prompt_rotary: Rotary | None = None,
        bias_source: Any = None,
        path: Literal["fused", "literal"] = "fused",
        infix: bool = False,
        others: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.infix = infix
        self.base_attention_layer = base_attention_layer
        self.prompt_embeddings = prompt_embeddings
        self.site = site
        self.path = path
        self._bias_source = (bias_source,)  # in a tuple, so that it is no submodule
        self.register_buffer("prompt_tokens", prompt_tokens, persistent=False)
        cos, sin = (*(prompt_rotary or ()), None, None)[:2]
        self.register_buffer("prompt_cos", cos, persistent=False)
        self.register_buffer("prompt_sin", sin, persistent=False)
        self._others = dict(others or {})
        for name, value in self._others.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(f"prompt_{name}", value, persistent=False)
        self._kept = KeptWhileDecoding(list(prompt_embeddings.parameters()))

    def forward(self, *args: Any, prompt_visible: torch.Tensor | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Call the base layer, and return its outputs. ``prompt_visible`` ``(B, T)``: tokens that see the prompt."""
        require_visibility(self, prompt_visible)
        (bias_source,) = self._bias_source
        if self.path == "literal":
            prompt = self.prompt_embeddings(self.prompt_tokens)
            rotary, others = self._rotary(), self.others()
            return attend_literally(self.site, prompt, rotary, args, kwargs, bias_source, prompt_visible, others)
        prefix = self._kept.get(self, self.prompt_keys_values)
        return attend_with_prefix(self.site, prefix, args, kwargs, bias_source, prompt_visible)

    def prompt_keys_values(self) -> KeysValues:
        """The keys and values that the layer makes of the prompt, ``(K, H, P, C)`` each."""
        prompts = of_lanes(self, lambda layer: layer.prompt_embeddings(layer.prompt_tokens))  # (K, P, D)
        return keys_values_of(self.site, prompts, self._rotary(), self.others())

    def others(self) -> dict[str, Any]:
        """Further arguments of the layer, on the device of this module."""
        return {name: self._buffers.get(f"prompt_{name}", value) for name, value in self._others.items()}

    def _rotary(self) -> Rotary | None:
        parts = tuple(part for part in (self.prompt_cos, self.prompt_sin) if part is not None)
        return parts or None


class SharedPrefixAttentionLayer(nn.Module):
    """An attention layer that attends to the keys and values of an earlier layer, including that layer's prefix.

    Gemma 3n and Gemma 4 have such layers. They make no keys, so that their own prefix would have no effect. Only their
    mask gets columns for the prefix.

    Args:
        base_attention_layer: An attention layer of transformers; it stays frozen.
        site: The place of ``base_attention_layer`` in its model.
        num_prompt_tokens: P.
        infix: Whether only some tokens see the prefix, so that a call needs ``prompt_visible``.
    """

    def __init__(
        self, base_attention_layer: nn.Module, site: AttentionSite, num_prompt_tokens: int, infix: bool = False
    ) -> None:
        super().__init__()
        self.infix = infix
        self.base_attention_layer = base_attention_layer
        self.site = site
        self.num_prompt_tokens = num_prompt_tokens

    def forward(
        self, *args: Any, prompt_visible: torch.Tensor | None = None, prefixes: Prefixes | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Call the base layer, and return its outputs. It has the arguments of the other layers here."""
        require_visibility(self, prompt_visible)
        call = self.site.named(args, kwargs)
        if call.get(self.site.names.mask) is None:
            call[self.site.names.mask] = self._causal_mask(call)
        widen_mask(self.site, call, self.num_prompt_tokens, prompt_visible)
        outputs: tuple[Any, ...] = self.base_attention_layer(**call)
        return outputs

    def _causal_mask(self, call: dict[str, Any]) -> torch.Tensor | None:
        """``(1, 1, T, S)``. The tokens of this call are the last of those whose keys are shared."""
        if self.site.config._attn_implementation.startswith("flash"):
            return None
        layer = self.site.layer
        # Before transformers 5.23 the key is the number of the layer that made them, since then the kind of layer.
        kept_under = getattr(layer, "kv_shared_layer_index", None)
        keys, _ = call["shared_kv_states"][layer.layer_type if kept_under is None else kept_under]
        num_tokens, num_keys = call["hidden_states"].shape[1], keys.shape[2] - self.num_prompt_tokens
        seen = torch.ones(num_tokens, num_keys, dtype=torch.bool, device=keys.device)
        return seen.tril(num_keys - num_tokens)[None, None]


class KeyValuePrefixAttentionLayer(nn.Module):
    """An attention layer whose tokens also attend to free keys and values.

    Args:
        base_attention_layer: An attention layer of transformers; it stays frozen.
        site: The place of ``base_attention_layer`` in its model.
        index: The position of this layer's keys and values among those of its role, if a :class:`Reparametrization`
            makes them.
        bias_source: The layer that makes the relative position bias which this one shares, if there is one.
        infix: Whether only some tokens see the prefix, so that a call needs ``prompt_visible``.
    """

    prefix_keys: nn.Parameter | None  # (H, P, C); None if a Reparametrization makes keys and values
    prefix_values: nn.Parameter | None

    def __init__(
        self,
        base_attention_layer: nn.Module,
        site: AttentionSite,
        index: int,
        bias_source: Any = None,
        infix: bool = False,
    ) -> None:
        super().__init__()
        self.infix = infix
        self.base_attention_layer = base_attention_layer
        self.site = site
        self.index = index
        self.made_by: tuple[Reparametrization, ...] = ()  # in a tuple, so that it is no submodule
        self._bias_source = (bias_source,)  # in a tuple, so that it is no submodule
        self.register_parameter("prefix_keys", None)
        self.register_parameter("prefix_values", None)

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make copies of keys and values, each ``(H, P, C)``, parameters of this layer."""
        self.prefix_keys, self.prefix_values = (nn.Parameter(part.detach().clone()) for part in (keys, values))
        self.made_by = ()

    def forward(
        self,
        *args: Any,
        prompt_visible: torch.Tensor | None = None,
        prefixes: Prefixes | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Call the base layer, and return its outputs.

        Args:
            args: Of the base layer.
            prompt_visible: ``(B, T)`` boolean, the tokens that see the prefix; None is all.
            prefixes: Keys and values for all layers, if they are not parameters of this layer.
            kwargs: Of the base layer.
        """
        require_visibility(self, prompt_visible)
        (bias_source,) = self._bias_source
        return attend_with_prefix(self.site, self._keys_values(prefixes), args, kwargs, bias_source, prompt_visible)

    def _keys_values(self, prefixes: Prefixes | None) -> KeysValues:
        if self.prefix_keys is not None and self.prefix_values is not None:
            return of_lanes(self, lambda layer: layer.prefix_keys), of_lanes(self, lambda layer: layer.prefix_values)
        if prefixes is None:  # some decoders pass no keyword arguments on to their layers (BLOOM, MPT, GPT-J, ...)
            (reparametrization,) = self.made_by
            return cast(KeysValues, reparametrization()[self.index])
        return prefixes[self.site.role][self.index]


def require_visibility(layer: Any, prompt_visible: torch.Tensor | None) -> None:
    """Check that a layer with an infix gets the tokens that see it.

    Raises:
        NotHandedDown: It does not: the model does not pass ``prompt_visible`` on.
    """
    if layer.infix and prompt_visible is None:
        raise NotHandedDown(
            f"{type(layer.base_attention_layer).__name__} {layer.base_attention_layer.layer_idx} was not told which "
            "tokens see the prompt: this model does not hand keyword arguments down to its attention layers, which "
            "infix needs"
        )


class Reparametrization(nn.Module):
    """Li & Liang's MLP, which makes the keys and values of all layers of one role from an embedding per prompt token.

    Source: Li & Liang 2021, section 4.3, and their ``gpt2/train_control.py`` lines 106 to 111 (Embedding, Linear, Tanh,
    Linear).

    Args:
        num_prompt_tokens: P.
        width: D, of the embedding.
        hidden: M.
        shapes: ``(H, C)`` of each layer's keys and values.
        like: A tensor with the device and dtype of the parameters.
    """

    def __init__(
        self, num_prompt_tokens: int, width: int, hidden: int, shapes: Sequence[tuple[int, int]], like: torch.Tensor
    ) -> None:
        super().__init__()
        factory: Any = {"device": like.device, "dtype": like.dtype}
        self.shapes = list(shapes)
        self.embedding = nn.Embedding(num_prompt_tokens, width, **factory)
        size = sum(2 * heads * channels for heads, channels in shapes)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, **factory), nn.Tanh(), nn.Linear(hidden, size, **factory))
        self.register_buffer("prompt_tokens", torch.arange(num_prompt_tokens, device=like.device), persistent=False)
        self._kept = KeptWhileDecoding(list(self.parameters()))

    def forward(self) -> list[KeysValues]:
        """Keys and values, ``(K, H, P, C)`` each, of each layer."""
        kept: list[KeysValues] = self._kept.get(self, self._keys_values)
        return kept

    def _keys_values(self) -> list[KeysValues]:
        flat = of_lanes(self, lambda module: module.mlp(module.embedding(module.prompt_tokens)))  # (K, P, sum of 2 H C)
        layers = torch.split(flat, [2 * heads * channels for heads, channels in self.shapes], dim=-1)
        keys_values: list[KeysValues] = []
        for layer, (heads, channels) in zip(layers, self.shapes, strict=True):
            halves = layer.reshape(*flat.shape[:2], 2, heads, channels)  # (K, P, 2, H, C)
            keys, values = halves.permute(2, 0, 3, 1, 4)  # (K, H, P, C) each
            keys_values.append((keys, values))
        return keys_values

    def serve(self, stack: nn.Module, role: str, layers: Sequence[KeyValuePrefixAttentionLayer]) -> None:
        """Become a submodule of ``stack``, and pass keys and values to its layers of this role in every forward.

        If the stack does not pass keyword arguments on to its layers, each layer calls this module itself, so that the
        same keys and values are computed once for each layer.
        """
        for layer in layers:
            layer.made_by = (self,)

        def pass_prefixes(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "prefixes": {**kwargs.get("prefixes", {}), role: self()}}

        stack.add_module(f"prefix_{role}", self)
        self.role = role
        self._hook = stack.register_forward_pre_hook(pass_prefixes, with_kwargs=True)

    def retire(self, stack: nn.Module) -> None:
        """Undo :meth:`serve`."""
        self._hook.remove()
        delattr(stack, f"prefix_{self.role}")

    def start_from(self, targets: Sequence[KeysValues]) -> None:
        """Change the last layer by as little as possible so that :meth:`forward` returns ``targets``.

        The authors fit the whole MLP to the frozen model's keys and values by 500 steps of Adam
        (``lowdata_init_train3``). The closed form used here is the limit of fitting the last layer by gradient descent.
        It is exact to rounding as long as P is at most M.
        """
        with torch.no_grad():
            flat = [part[0].transpose(0, 1).flatten(1) for pair in targets for part in pair]  # (P, H C) each
            hidden = self.mlp[:2](self.embedding(self.prompt_tokens)).double()  # (P, M)
            last: Any = self.mlp[2]
            missing = torch.cat(flat, dim=-1).double() - (hidden @ last.weight.double().T + last.bias.double())
            last.weight += (torch.linalg.pinv(hidden) @ missing).T.to(last.weight.dtype)
