"""The names of a model's cache in transformers: since 5.24 ``cache`` everywhere, before that one of three names."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

STATES = "cache_params"  # of decoders that keep states and no keys, before 5.24
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24.dev0") else "past_key_values"
CACHE_NAMES = tuple(dict.fromkeys((CACHE, "past_key_values", STATES)))
# Names of decoders' memories that are no cache of transformers and do not know how many tokens they hold.
OTHER_MEMORIES = tuple(name for name in ("state", "mems", "cache", "past_buckets_states") if name != CACHE)


def cache_of(output: Any) -> Any:
    """The cache that a model's output holds; None if it holds none."""
    return next((cache for name in CACHE_NAMES if (cache := getattr(output, name, None)) is not None), None)
