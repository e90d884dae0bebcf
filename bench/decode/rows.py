"""How many sources are decoded at once: what the sweep says, or what a share of the device's memory holds."""

from __future__ import annotations

from typing import Any

from bench.schema.trial import DecodeSpec

# Of the device's memory, for keys, values and logits where the sweep does not say how many sources are decoded at once.
# Decoding then takes less than most trainings, and several trials may share a machine.
SHARE_OF_MEMORY = 1 / 16
# On a CPU products hardly become faster with more hypotheses than this at once, and their keys leave its caches.
MOST_HYPOTHESES_ON_CPU = 128
# float64 and int64 tensors of the size of the logits that are alive while tokens are drawn (bench/decode/sampling.py).
COPIES_OF_DRAWING = 5


def rows_at_once(
    decode: DecodeSpec, config: Any, element_bytes: int, source_tokens: float, memory_bytes: int, on_cpu: bool
) -> int:
    """The number of sources that are decoded at once, at least one.

    Args:
        decode: Of the sweep. Its ``batch_size`` is the answer if it is set.
        config: Of the base model.
        element_bytes: Of a key.
        source_tokens: Of the longest source.
        memory_bytes: Of the device.
        on_cpu: Whether that is a CPU.
    """
    if decode.batch_size is not None:
        return decode.batch_size
    per_row = decode_bytes(decode, config, element_bytes, 1, source_tokens)
    rows = int(SHARE_OF_MEMORY * memory_bytes / per_row)
    if on_cpu:
        rows = min(rows, MOST_HYPOTHESES_ON_CPU // decode.beams)
    return max(1, rows)


def decode_bytes(decode: DecodeSpec, config: Any, element_bytes: int, rows: int, source_tokens: float) -> float:
    """Keys and values of so many sources and hypotheses, and logits in fp32, of which drawing makes several copies."""
    tokens = rows * (source_tokens + decode.beams * decode.max_new_tokens)
    cache = 2 * key_channels(config) * element_bytes * tokens
    of_logits = 3 * 4 + (COPIES_OF_DRAWING * 8 if decode.temperature else 0)
    return float(cache + of_logits * rows * decode.beams * config.vocab_size)


def layers_of(config: Any) -> int:
    """Layers of the part that decodes."""
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    return int(next(layers for name in names if (layers := getattr(config, name, None)) is not None))


def key_channels(config: Any) -> int:
    """Channels of a token's keys in all layers together, which have as many values; 0 without attention (Mamba)."""
    if getattr(config, "is_heterogeneous", False):  # heads of several sizes, as in Gemma 4
        return sum(map(_key_channels_of_layer, config.per_layer_config))
    return layers_of(config) * _key_channels_of_layer(config)


def _key_channels_of_layer(config: Any) -> int:
    if (heads := getattr(config, "num_attention_heads", None)) is None:
        return 0
    head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return int(getattr(config, "num_key_value_heads", None) or heads) * int(head)
