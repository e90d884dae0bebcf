"""Data files into numbered rows. A malformed file is one error that names it and the line."""

from __future__ import annotations

import bisect
import csv
import functools
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.task import TaskError

Facts = tuple[tuple[str, ...], ...]


def is_remote(location: str) -> bool:
    """Whether it is a URL rather than a path."""
    return "://" in location


@functools.cache
def local_copy(location: str, sha256: str | None = None) -> Path:
    """The file itself, or the copy of a URL in the cache of ``datasets``, where it is downloaded once.

    Args:
        location: Path or URL.
        sha256: What the bytes behind a URL hash to; None where no checksum is known beforehand.

    Raises:
        TaskError: It is not there, cannot be downloaded, or has other bytes.
    """
    if not is_remote(location):
        return Path(location)
    import datasets

    datasets.disable_progress_bars()
    # Addresses name a revision, so that a copy is good for ever and needs no network.
    how = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH, use_etag=False)
    try:
        path = Path(datasets.DownloadManager(download_config=how).download(location))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(
            f"{location}: cannot be downloaded: {error}. Without a network, set task.path to a folder with the files"
        ) from error
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise TaskError(f"{location}: its sha256 is {found}, expected {sha256}; the download is damaged or has changed")
    return path


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(location: str, sha256: str | None = None) -> str:
    """The text of a file or URL in UTF-8, with or without gzip.

    Raises:
        TaskError: It cannot be read, or is in another encoding; the message names the first line that shows it.
    """
    try:
        content = local_copy(location, sha256).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{location}: cannot be read: {error}") from error
    return decoded(content, location)


def decoded(content: bytes, where: str) -> str:
    """Bytes as UTF-8 text, without a byte order mark.

    Raises:
        TaskError: They are in another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start : error.start + 1].hex()
        raise TaskError(f"{where}: line {line}: not UTF-8: byte 0x{found} ({error.reason})") from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Line numbers from 1 and lines. Only ``\n`` ends a line: texts may hold other separators that Unicode knows."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def read_csv(location: str, columns: Sequence[str], sha256: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the line that a row begins on, and the row, of a CSV file with these columns at least.

    Raises:
        TaskError: It cannot be read, a column is missing, or a row has another number of fields than the header.
    """
    reader = csv.reader(io.StringIO(read_text(location, sha256), newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        for column in columns:
            if column not in header:
                raise TaskError(f"{location}: line 1: no column {column!r}; the columns are {', '.join(header)}")
        if twice := next((column for column in header if header.count(column) > 1), None):
            raise TaskError(f"{location}: line 1: two columns are called {twice!r}")
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                if len(fields) != len(header):
                    raise TaskError(f"{location}: line {line}: {len(fields)} fields, the header has {len(header)}")
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(f"{location}: line {line}: not valid CSV: {error}") from error


def read_json_lines(location: str, sha256: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank.

    Raises:
        TaskError: A line is not a JSON object.
    """
    for number, line in numbered_lines(read_text(location, sha256)):
        if line.strip():
            yield number, _object(_json(line, f"{location}: line {number}"), f"{location}: line {number}")


def read_json_array(text: str, where: str, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every element of the JSON array that begins at ``start``.

    Raises:
        TaskError: It is not an array of objects; what is malformed or cut off is named by the line it begins on.
    """
    decoder = json.JSONDecoder()
    breaks = [match.start() for match in re.finditer("\n", text)]

    def place(position: int) -> str:
        return f"{where}: line {bisect.bisect(breaks, position) + 1}"

    position = _skip_space(text, start)
    if text[position : position + 1] != "[":
        raise TaskError(f"{place(position)}: expected a JSON array, got {text[position : position + 40]!r}")
    position = _skip_space(text, position + 1)
    more = text[position : position + 1] != "]"
    while more:
        try:
            element, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise TaskError(f"{place(position)}: not valid JSON: {error.msg} in line {error.lineno}") from error
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{place(position)}: JSON that cannot be read: {error}") from error
        yield bisect.bisect(breaks, position) + 1, _object(element, place(position))
        position = _skip_space(text, end)
        if text[position : position + 1] not in (",", "]"):
            raise TaskError(f"{place(position)}: expected ',' or ']', got {text[position : position + 20]!r}")
        more = text[position] == ","
        position = _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise TaskError(f"{where}: JSON that cannot be read: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: expected an object, got {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise TaskError(
            f"{where}: half of a surrogate pair, which is no character: {error.object[error.start]!a}"
        ) from error
    return value
