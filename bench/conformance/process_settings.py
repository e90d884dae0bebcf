"""The settings of a process that a plugin could change: how each is read and restored. Imports no torch."""

from __future__ import annotations

import gc
import locale
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy

Settings = dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]


def _set_environment(value: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


PROCESS_SETTINGS: Settings = {
    "the environment (os.environ)": (lambda: dict(os.environ), _set_environment),
    "the working directory": (os.getcwd, os.chdir),
    "sys.path": (lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
    "warnings.filters": (
        lambda: list(warnings.filters),
        lambda value: setattr(warnings, "filters", value),
    ),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "whether garbage is collected": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    "numpy's treatment of errors": (numpy.geterr, lambda value: numpy.seterr(**value)),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
}
