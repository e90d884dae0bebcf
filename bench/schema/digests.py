"""Hashes of files and of values, and what they are called beside them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def slug(*parts: str, length: int) -> str:
    """Some texts as part of a file's name: letters, digits and ``._=-``, at most so many. Empty texts are left out."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join(filter(None, parts)))[:length].strip("-")
