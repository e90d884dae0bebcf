"""What transformers calls the cache of a model: since 5.24 ``cache`` everywhere, before that one of three names."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

STATES = "cache_params"  # of decoders that keep states and no keys, before 5.24
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24.dev0") else "past_key_values"
CACHE_NAMES = tuple(dict.fromkeys((CACHE, "past_key_values", STATES)))
# What decoders call a memory that is no cache of transformers: nothing tells how many tokens are in it.
OTHER_MEMORIES = tuple(name for name in ("state", "mems", "cache", "past_buckets_states") if name != CACHE)


def cache_of(output: Any) -> Any:
    """The cache that a model's output holds; None if it holds none."""
    return next((cache for name in CACHE_NAMES if (cache := getattr(output, name, None)) is not None), None)
