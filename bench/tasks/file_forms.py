"""Recognises packed files, and files of another format, by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable

from bench.task import TaskError

# Endings that the name of a packed file may have after the name that a task looks for.
PACKED_ENDINGS = (".gz", ".bz2", ".zst", ".xz")


def _unpack_zstandard(content: bytes) -> bytes:
    import pyarrow

    unpacked: bytes = pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read()
    return unpacked


PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\x28\xb5\x2f\xfd": _unpack_zstandard,
    b"\xfd7zXZ\x00": lzma.decompress,
}

FOREIGN = {
    b"PAR1": "is Parquet; read it with the task parquet",
    b"ARROW1": "is an Arrow file; save it as Parquet and read it with the task parquet",
    b"PK\x03\x04": "is a zip archive, as Excel's workbooks are; unpack it, or save the sheet as CSV",
    b"SQLite format 3": "is an SQLite data base; save its table as CSV",
    b"version https://git-lfs": "is a Git LFS pointer, whose file was never fetched: git lfs pull",
    b"\xff\xfe": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
}


def unpacked(content: bytes, where: str) -> bytes:
    """The content of a file, unpacked if it is packed by gzip, bzip2, Zstandard or xz.

    Raises:
        TaskError: The packed data are damaged.
    """
    unpack = next((unpack for start, unpack in PACKED.items() if content.startswith(start)), None)
    if unpack is None:
        return content
    try:
        return unpack(content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise TaskError(f"{where}: cannot be read: {error}") from error


def refuse_foreign(content: bytes, where: str) -> None:
    """Refuse files of known formats that are no UTF-8 text.

    Raises:
        TaskError: The file is one. The message names the format and the remedy.
    """
    for start, what in FOREIGN.items():
        if content.startswith(start):
            raise TaskError(f"{where}: {what}")
