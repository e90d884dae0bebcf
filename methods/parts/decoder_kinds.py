"""The kind of a base model's decoder: the memory of its layers, its arguments, and how it treats padding.

A soft prompt precedes a text. It works only in decoders that hide later tokens from earlier ones, read embeddings
instead of token ids, and compute the same for a text with any padding in front.

B batch, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer

from bench.method import MethodError, positions_of
from methods.parts.attention_sites import AttentionSite, cache_layers, keeps_states_alone, stacks
from methods.parts.cache_names import CACHE_NAMES, OTHER_MEMORIES

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer)

NUM_PADS = 3
# Relative differences by rounding are smaller. Those by wrong tokens, positions or masks are larger.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
COARSE_TOLERANCE = 0.05


def arguments_of(decoder: Any) -> frozenset[str]:
    """The names of the arguments of a decoder's forward."""
    return frozenset(inspect.signature(decoder.forward).parameters)


def cache_name(decoder: Any) -> str | None:
    """The name of a decoder's cache argument; None if it takes no cache.

    Raises:
        MethodError: The decoder has a memory that is no cache of transformers.
    """
    names = arguments_of(decoder)
    if own := names.intersection(OTHER_MEMORIES):
        raise MethodError(
            f"{type(decoder).__name__} remembers tokens in {min(own)!r}, which is no cache of transformers: nothing "
            "tells whether a prompt is in it already"
        )
    return next((name for name in CACHE_NAMES if name in names), None)


def keeps_prompt_apart(model: Any, sites: Sequence[AttentionSite]) -> bool:
    """Whether a prompt can be computed once for all rows and passed to attention layers as keys and values.

    It can if tokens influence later ones only by the keys and values of attention layers. It cannot with states or
    convolutions, keys that layers share, attention in chunks, biases by distance, or layers that run several times. It
    cannot with sliding windows in flash attention either, which counts the window in keys and not in positions.
    """
    kept, config = cache_layers(model), model.config.get_text_config(decoder=True)
    windows = any(type(layer) is DynamicSlidingWindowLayer for layer in kept)
    flash = str(config._attn_implementation).startswith("flash")
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in kept)
        and not (windows and flash)
        and "chunked_attention" not in (getattr(config, "layer_types", None) or ())
        and [site.layer.layer_idx for site in sites] == list(range(len(kept)))
        and all(set(site.names.others) <= {"position_ids"} for site in sites)
        and "position_ids" in arguments_of(stacks(model)["decoder"])
    )


def require_keys_and_values(model: Any, sites: Sequence[AttentionSite]) -> None:
    """Refuse attention layers that keep more of a token than one key and value of each head.

    Raises:
        MethodError: A layer also keeps data that selects or compresses keys, which a prefix does not have.
    """
    if stacks(model).keys() != {"decoder"}:
        return
    kept = cache_layers(model)
    for site in sites:
        if not 0 <= site.layer.layer_idx < len(kept):
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} of {type(model).__name__} serves several places: "
                "a prefix needs an attention layer for each"
            )
        layer = kept[site.layer.layer_idx]
        if type(layer) not in KEYS_AND_VALUES:
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} keeps more than keys and values of its tokens "
                f"({type(layer).__name__}), so that it can have no prefix"
            )


def require_readable(model: Any, by_embeddings: bool = True) -> None:
    """Refuse a decoder in which a soft prompt would silently not work like words in front of a text.

    The decoder reads short texts with its own weights. Without weights (on the meta device) only its arguments are
    checked.

    Args:
        model: A base model.
        by_embeddings: Whether it has to read embeddings instead of token ids.

    Raises:
        MethodError: The decoder sees later tokens, needs token ids besides their embeddings, counts padding in front as
            text, computes another function with its cache, or cannot be called like decoders of transformers.
    """
    decoder = stacks(model)["decoder"]
    name = type(model).__name__
    cache_name(decoder)
    if by_embeddings and "inputs_embeds" not in arguments_of(decoder):
        raise MethodError(f"{type(decoder).__name__} takes no inputs_embeds, so that there is no place for a prompt")
    embedding = decoder.get_input_embeddings()
    if embedding.weight.is_meta:
        return
    ids = torch.arange(2, 5, device=embedding.weight.device)[None] % len(embedding.weight)  # (1, 3)
    # The harness passes positions to models that take them. Some do not pass them on to their decoder (Whisper).
    positions = "position_ids" in arguments_of(decoder) & arguments_of(model)
    with torch.no_grad(), _evaluating(decoder):
        try:
            whole = _read(decoder, ids, positions)
            embedded = _read(decoder, ids, positions, as_embeddings=True) if by_embeddings else whole
            shorter = _read(decoder, ids[:, :2], positions)
            padded_ids = torch.cat([ids[:, :1].expand(-1, NUM_PADS), ids], dim=1)
            padded = _read(decoder, padded_ids, positions, NUM_PADS)
            continued = _continue(decoder, padded_ids, NUM_PADS, positions)
        except Exception as error:
            raise MethodError(
                f"{name} cannot be read as a decoder of transformers: {type(error).__name__}: {error}"
            ) from error
    if not _alike(embedded, whole):
        raise MethodError(f"{name} needs token ids besides their embeddings, and a trained prompt token has no id")
    if not _alike(shorter, whole[:, :2]):
        raise MethodError(
            f"in {name} tokens see later ones, so that it is no language model of this kind; models like BERT need "
            "is_decoder: true in their config.json"
        )
    # In float64, which only tests use, eager attention of padding that sees no key is not a number.
    if not torch.isfinite(padded).all():
        return
    if not _alike(padded[:, NUM_PADS:], whole):
        raise MethodError(
            f"padding in front of a text changes what {name} makes of it, with a prompt or without one, so that "
            "batches of sources would be decoded wrongly"
        )
    if continued is not None and not _alike(continued, whole[:, -1:]):
        raise MethodError(
            f"{name} reads a token behind padding and a cache in another way than behind its text, with a prompt or "
            "without one, so that it would be decoded wrongly"
        )


def _continue(decoder: Any, ids: torch.Tensor, num_pads: int, takes_positions: bool) -> torch.Tensor | None:
    """Hidden states ``(1, 1, D)`` of the last token, read after the others with a cache; None if there is no cache."""
    name = cache_name(decoder)
    if name is None:
        return None
    mask = torch.ones_like(ids)
    mask[:, :num_pads] = 0
    positions = positions_of(mask)
    steps: list[dict[str, Any]] = [
        {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]},
        {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]},
    ]
    if not takes_positions:
        steps = [{key: value for key, value in step.items() if key != "position_ids"} for step in steps]
    if keeps_states_alone(decoder):  # generate passes no mask, because states do not contain padding
        del steps[1]["attention_mask"]
    if (cache := decoder(**steps[0], use_cache=True).get(name)) is None:
        return None
    hidden: torch.Tensor = decoder(**steps[1], use_cache=True, **{name: cache})[0]
    return hidden


def _read(
    decoder: Any, ids: torch.Tensor, takes_positions: bool, num_pads: int = 0, as_embeddings: bool = False
) -> torch.Tensor:
    """Hidden states ``(1, T, D)`` of a text of which the first ``num_pads`` tokens are padding."""
    mask = torch.ones_like(ids)
    mask[:, :num_pads] = 0
    arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
    if takes_positions:
        arguments["position_ids"] = positions_of(mask)
    if as_embeddings:
        arguments["inputs_embeds"] = decoder.get_input_embeddings()(ids)
        if (per_layer := per_layer_inputs(decoder, ids)) is not None:
            arguments["per_layer_inputs"] = per_layer
    else:
        arguments["input_ids"] = ids
    hidden: torch.Tensor = decoder(**arguments)[0]
    return hidden


def per_layer_inputs(decoder: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Each layer's own embedding of the tokens, ``(B, T, layers, channels)``; None in most models.

    Gemma 3n and Gemma 4 have a second, wide embedding, of which every layer reads a part.
    """
    if not getattr(decoder, "hidden_size_per_layer_input", None):
        return None
    embed = decoder.get_per_layer_inputs
    # transformers 5.10 requires inputs_embeds, from which it could find the ids.
    others = {"inputs_embeds": None} if "inputs_embeds" in inspect.signature(embed).parameters else {}
    per_layer: torch.Tensor = embed(ids, **others)
    return per_layer


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return bool(difference <= TOLERANCE.get(expected.dtype, COARSE_TOLERANCE))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block the module is in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
