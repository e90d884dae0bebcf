"""Reads data files into numbered rows. A malformed file raises an error that names file and line."""

from __future__ import annotations

import bisect
import csv
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.schema.digests import sha256_of
from bench.schema.printable import in_brief
from bench.task import TaskError
from bench.tasks.file_forms import refuse_foreign, unpacked

# Possible delimiters of a table. The first one with which the header has the columns is used.
DELIMITERS = (",", ";", "\t", "|")
NAMES_OF_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def is_remote(location: str) -> bool:
    """Whether a location is a URL and not a path."""
    return "://" in location


@functools.cache
def local_copy(location: str, sha256: str | None = None) -> Path:
    """The path of a file. A URL is downloaded once, to the cache of ``datasets``.

    Args:
        location: Path or URL.
        sha256: The checksum of the file at a URL; None if it is unknown.

    Raises:
        TaskError: The file cannot be downloaded, or has another checksum.
    """
    if not is_remote(location):
        return Path(location)
    import datasets

    datasets.disable_progress_bars()
    # The URLs name a revision, so that a copy never gets old, and the server need not be asked again.
    how = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH, use_etag=False)
    try:
        path = Path(datasets.DownloadManager(download_config=how).download(location))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(
            f"{location}: cannot be downloaded: {error}. Without a network, set task.path to a folder with the files"
        ) from error
    if sha256 is not None and (own := sha256_of(path)) != sha256:
        raise TaskError(f"{location}: its sha256 is {own}, expected {sha256}; the download is damaged or has changed")
    return path


def read_text(location: str, sha256: str | None = None) -> str:
    """The text of a file or URL in UTF-8. It may be packed by gzip, bzip2, Zstandard or xz.

    Raises:
        TaskError: It cannot be read, or has another encoding. The message names the first line that shows it.
    """
    try:
        content = local_copy(location, sha256).read_bytes()
    except OSError as error:
        raise TaskError(f"{location}: cannot be read: {error}") from error
    content = unpacked(content, location)
    refuse_foreign(content, location)
    return decoded(content, location)


def decoded(content: bytes, where: str) -> str:
    """Bytes as UTF-8 text, without a byte order mark.

    Raises:
        TaskError: The bytes have another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong_byte = content[error.start : error.start + 1].hex()
        raise TaskError(
            f"{where}: line {line}: not UTF-8: byte 0x{wrong_byte} ({error.reason}); convert the file, e.g. from "
            "Windows-1252, which covers Latin-1: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Line numbers from 1 and lines. Only ``\n`` ends a line, because texts may hold other separators of Unicode."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def read_csv(
    location: str, columns: Sequence[str], sha256: str | None = None, delimiter: str | None = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a header, each with the number of its first line.

    Args:
        location: Path or URL.
        columns: Columns that the table must have.
        sha256: See :func:`local_copy`.
        delimiter: Between cells. None: the first of :data:`DELIMITERS` with which the header has the columns, unless
            the file begins with a line such as ``sep=;``, which Excel writes.

    Raises:
        TaskError: It cannot be read, a column is missing, or a row has another number of fields than the header. The
            message names the delimiter or the format if they may be the cause.
    """
    text = read_text(location, sha256)
    skipped = 0
    if delimiter is None and (first_line := re.match(r"sep=(.)\r?\n", text)):
        delimiter, skipped, text = first_line[1], 1, text[first_line.end() :]
    elif delimiter is None:
        delimiter = _delimiter(text, columns)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be as long as the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    read_as = f"read as separated by {NAMES_OF_DELIMITERS.get(delimiter, repr(delimiter))}"
    line = 1 + skipped
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in columns:
            if column not in header:
                if not text.strip():
                    raise TaskError(f"{location}: is empty; its first line names the columns {', '.join(columns)}")
                json_hint = ". It looks like JSON: read it with the task jsonl" if text.lstrip()[:1] in "{[" else ""
                raise TaskError(
                    f"{location}: line {line}: no column {column!r}; the columns are {', '.join(header)}, {read_as} "
                    f"(task.delimiter){json_hint}"
                )
        if twice := next((column for column in header if header.count(column) > 1), None):
            raise TaskError(f"{location}: line {line}: two columns are called {twice!r}")
        line = reader.line_num + 1 + skipped
        for fields in reader:
            if fields:
                if len(fields) != len(header):
                    raise TaskError(
                        f"{location}: line {line}: {len(fields)} fields, the header has {len(header)}, {read_as}; a "
                        "cell that holds the separator stands in double quotes, or task.delimiter is another one"
                    )
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise TaskError(f"{location}: line {line}: not valid CSV: {error}, {read_as}") from error


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """The delimiter with which the header has all columns; if there is none, the one that gives it most cells."""
    line = next(iter(io.StringIO(text)), "")
    headers = {delimiter: [name.strip() for name in _cells(line, delimiter)] for delimiter in DELIMITERS}
    fitting = (delimiter for delimiter, header in headers.items() if columns and set(columns) <= set(header))
    return next(fitting, max(headers, key=lambda delimiter: len(headers[delimiter])))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def read_json_lines(location: str, sha256: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank, or of every element if the file is one array.

    Raises:
        TaskError: A line or an element is no JSON object, or an object has a key twice.
    """
    text = read_text(location, sha256)
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        yield from read_json_array(text, location, is_all=True)
        return
    for number, line in numbered_lines(text):
        if line.strip():
            try:
                value = _json(line, f"{location}: line {number}")
            except _RepeatedKeyError as error:
                raise TaskError(f"{location}: line {number}: {error}") from error
            except TaskError as error:
                raise TaskError(f"{error}{_why_no_json_lines(text)}") from error
            yield number, _object(value, f"{location}: line {number}")


def _why_no_json_lines(text: str) -> str:
    """The end of a message that names the file's real form, if it is recognised."""
    if text.lstrip()[:1] not in "{[":
        is_table = any(delimiter in text.lstrip().partition("\n")[0] for delimiter in DELIMITERS)
        return ". It looks like a table: read it with the task csv" if is_table else ""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return f". The file is one object ({', '.join(whole)}); save the array within it, or one object a line"


def read_json_array(
    text: str, where: str, start: int = 0, is_all: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every element of the JSON array that begins at ``start``.

    Args:
        text: That holds the array.
        where: What messages call it.
        start: Of the array.
        is_all: Whether nothing may follow.

    Raises:
        TaskError: The text is no array of objects, or an object has a key twice. The message names the first line of a
            malformed element.
    """
    breaks = [match.start() for match in re.finditer("\n", text)]

    def place(position: int) -> str:
        return f"{where}: line {bisect.bisect(breaks, position) + 1}"

    position = _skip_space(text, start)
    if text[position : position + 1] != "[":
        raise TaskError(f"{place(position)}: expected a JSON array, got {text[position : position + 40]!r}")
    position = _skip_space(text, position + 1)
    more = text[position : position + 1] != "]"
    if not more:
        position = _skip_space(text, position + 1)
    while more:
        try:
            element, end = _DECODER.raw_decode(text, position)
        except _RepeatedKeyError as error:
            raise TaskError(f"{place(position)}: {error}") from error
        except json.JSONDecodeError as error:
            raise TaskError(f"{place(position)}: not valid JSON: {error.msg} in line {error.lineno}") from error
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{place(position)}: JSON that cannot be read: {error}") from error
        yield bisect.bisect(breaks, position) + 1, _object(element, place(position))
        position = _skip_space(text, end)
        if text[position : position + 1] not in (",", "]"):
            found = repr(text[position : position + 20]) if position < len(text) else "the end of the file"
            raise TaskError(f"{place(position)}: expected ',' or ']', got {found}")
        more = text[position] == ","
        position = _skip_space(text, position + 1)
    if is_all and (rest := text[position : position + 20]):
        raise TaskError(
            f"{place(position)}: nothing may follow the array, got {rest!r}; save one array, or one object a line"
        )


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


class _RepeatedKeyError(Exception):
    """An object has a key twice, of which JSON would keep the last value."""


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"the key {in_brief(twice)} occurs twice in an object")
    return found


# One for all texts, because making it takes longer than reading a line. Objects within objects are looked at as well.
_DECODER = json.JSONDecoder(object_pairs_hook=_with_each_key_once)


def _json(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        why = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        hint = "; one object stands on a line, and nothing else" if error.msg == "Extra data" else ""
        raise TaskError(f"{where}: not valid JSON: {why}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deeply nested brackets
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
