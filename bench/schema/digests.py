"""Hashes of files and values, and readable parts of names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hash of a value of JSON. The order of its keys makes no difference."""
    return sha256_of_text(json.dumps(value, sort_keys=True))


def sha256_of_text(text: str) -> str:
    """Hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def slug(*parts: str, length: int) -> str:
    """Join texts to a part of a file's name: at most ``length`` letters, digits and ``._=-``, without empty texts."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join(filter(None, parts)))[:length].strip("-")
