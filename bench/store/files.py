"""Writes files that are whole or not there at all, and that lie where they seem to lie.

People pass results folders on, so that a name in them may be a link that leads elsewhere. Each file is therefore
created under a name that nobody can guess and then renamed, which replaces a link instead of following it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bench.store.crash_points import CrashPoint, reached

# The end of a file's name while it is written.
PARTIAL_SUFFIX = ".partial"


def write_atomically(path: Path, content: str | bytes, crash_point: CrashPoint | None = None) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut.

    Args:
        path: The file.
        content: All of it; text is written in UTF-8.
        crash_point: Reached when everything is written, before the file gets its name.
    """
    with replacing(path, crash_point) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, crash_point: CrashPoint | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file for the block to write to. It replaces ``path`` afterwards, or not at all if the block raises.

    Args:
        path: The file that is replaced.
        crash_point: Reached before the new file gets its name.
        durable: Whether this holds after a power cut, too, which takes the disk some time.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        with created(temporary) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if crash_point is not None:
            reached(crash_point)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def created(path: Path) -> BinaryIO:
    """Create a file and open it for writing.

    Raises:
        FileExistsError: There is a file or a link of this name already.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder for the block to fill. It gets the name ``path`` afterwards, or not at all if the block raises.

    Only this user can read it.

    Raises:
        FileExistsError: Somebody has made a folder of this name meanwhile; it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError as error:
            if path.is_dir():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there already.

    Raises:
        OSError: A link is in its place, which might lead anywhere.
    """
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link; put a folder in its place", str(path))


def sync_folder(folder: Path) -> None:
    """Write the names of a folder to the disk, so that they survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
