"""Temporary folders of a process. The next process removes those that a crash has left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

OWNER_FILE = ".owner"


def owned_folder(prefix: str) -> Path:
    """Make a temporary folder that belongs to this process, and remove those whose owners have ended.

    A lock on a file in the folder says whether its owner lives, because the system releases it when the process ends.
    Without such locks, folders stay.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # The file is never closed, so that its lock lasts as long as this process. It gets its name once it is locked.
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
        return  # Not a folder of ours, or one that is just being made.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # Its owner lives.
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
