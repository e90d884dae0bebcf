"""Writes the rows of data sets that ship with Tuneoff, or checks that the committed files are what a builder makes."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def seeded(*parts: object) -> random.Random:
    """A generator that depends on nothing but the given parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return random.Random(int(digest, 16))


def write_or_check(folder: Path, texts: Mapping[str, str], builder: str, argv: Sequence[str] | None) -> int:
    """Write ``SPLIT.jsonl.gz`` into a folder, always the same bytes; with ``--check``, only compare.

    Args:
        folder: Of the files.
        texts: JSON lines of each split.
        builder: The module that makes them.
        argv: Of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {builder}", description=f"Build the files of {folder}.")
    parser.add_argument("--check", action="store_true", help="only compare the committed files with a fresh build")
    check = parser.parse_args(argv).check
    for split, text in texts.items():
        path = folder / f"{split}.jsonl.gz"
        if not check:
            # No file name and no time in the header, so that equal rows give equal bytes.
            with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                packed.write(text.encode("utf-8"))
        elif not path.is_file() or gzip.decompress(path.read_bytes()).decode("utf-8") != text:
            sys.stderr.write(f"{path.name} is not what the builder makes: run python -m {builder}\n")
            return 1
        sys.stdout.write(f"{path.name}: {text.count(chr(10))} rows, {len(text.encode('utf-8'))} bytes of text\n")
    return 0
