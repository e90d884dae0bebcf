"""What a tokenizer's tokens depend on, as one hash."""

from __future__ import annotations

import json
from typing import Any

from bench.schema.digests import sha256_of_json


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """Hash of a tokenizer's content, in any folder; None if its content cannot be hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if isinstance(value, str | int | float | bool | None) and "path" not in name and "file" not in name
    }
    parts = [
        type(tokenizer).__qualname__,
        _content(backend),
        settings,
        tokenizer.bos_token,
        tokenizer.eos_token,
        getattr(tokenizer, "chat_template", None),
    ]
    return sha256_of_json(parts)


def _content(backend: Any) -> str:
    """The tokenizer's file as a text, which has some megabytes: it is taken apart only where that changes it."""
    text: str = backend.to_str()
    if backend.truncation is None and backend.padding is None:
        return text
    # Both are set by calls, and by none of ours.
    content = json.loads(text) | {"truncation": None, "padding": None}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
