"""Temporary folders that do not outlive whoever made them for long, however that went."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

OWNER_FILE = ".owner"


def owned_folder(prefix: str) -> Path:
    """A new temporary folder, which is this process's until it ends. Removes those whose owners have ended.

    The system's lock on a file in the folder says who lives; it goes with its process. A file system that knows no
    locks keeps its folders.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # Never closed, so that the lock is held for as long as this process runs. It has its name when it is locked.
    new = folder / f"{OWNER_FILE}.new"
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return folder
    new.rename(folder / OWNER_FILE)
    for other in folder.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if other != folder and not other.is_symlink() and other.stat().st_uid == os.geteuid():
                _remove_if_abandoned(other)
    return folder


def _remove_if_abandoned(folder: Path) -> None:
    try:
        file = os.open(folder / OWNER_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # None of ours, or just being made.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # Its owner lives.
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
