"""Names of tasks of the lm-evaluation-harness to what loads them. Imports that package, which is an optional one."""

from __future__ import annotations

import difflib
import functools
from typing import Any

from bench.plugins.registry import RegistryError


def manager_with(name: str, include_path: str | None) -> Any:
    """The package's task manager that knows a task or group, with those of a folder of the user's own before its own.

    To index all tasks of the package takes seconds, and a task of the user's own needs none of them. A group may.

    Args:
        name: Of the task or group.
        include_path: A folder with YAML files of tasks; None: those of the package alone.

    Raises:
        RegistryError: There is none of this name; the message has those that come close.
    """
    if include_path is not None:
        own = manager(include_path, include_defaults=False)
        if name in own.all_subtasks:
            return own
    whole = manager(include_path, include_defaults=True)
    if name in whole.all_tasks:
        return whole
    close = difflib.get_close_matches(name, whole.all_tasks, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; lm-eval ls tasks lists them"
    raise RegistryError(f"lm-eval has no task or group {name!r}{hint}")


@functools.cache
def manager(include_path: str | None, *, include_defaults: bool) -> Any:
    """A task manager, made once for each choice of folders."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=include_defaults)
