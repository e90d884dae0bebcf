"""Puts a fault into a process: into functions that are there already, or into a module that is imported later."""

from __future__ import annotations

import functools
import gc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from mutants.mutations import Mutant


class LiveFunctions:
    """The functions of some files that this process has made."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.root = root
        paths = {str(root / file) for file in files}
        self._by_place: dict[tuple[str, int, str], list[FunctionType]] = defaultdict(list)
        gc.unfreeze()  # what is frozen is not listed
        for one in gc.get_objects():
            if type(one) is FunctionType and one.__code__.co_filename in paths:
                self._by_place[_place(one.__code__)].append(one)

    def replaced(self, mutant: Mutant) -> bool:
        """Give them the code of a mutant. False if that is not enough: it is in what runs when a module is imported."""
        path = self.root / mutant.file
        old = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
        new = compile(mutant.source, str(path), "exec", dont_inherit=True)
        changed = _changed_functions(old, new)
        if not changed:
            return False
        for before, after in changed:
            for function in self._by_place[_place(before)]:
                if function.__code__.co_freevars != after.co_freevars:
                    return False
                function.__code__ = after
        return True


def _place(code: CodeType) -> tuple[str, int, str]:
    return code.co_filename, code.co_firstlineno, code.co_qualname


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _own(code: CodeType) -> tuple[object, ...]:
    """What a code object does, but for the functions in it and the numbers of its lines."""
    constants = [(type(constant), repr(constant)) for constant in code.co_consts if not isinstance(constant, CodeType)]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, constants, names, code.co_exceptiontable, code.co_flags, len(_inner(code))


def _same(old: CodeType, new: CodeType) -> bool:
    return _own(old) == _own(new) and all(map(_same, _inner(old), _inner(new)))


def _changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]]:
    """Functions with other code, and those around them; none if a module's or a class's own code is another."""
    if _same(old, new):
        return []
    pairs = [pair for pair in zip(_inner(old), _inner(new), strict=False) if not _same(*pair)]
    if old.co_flags & inspect.CO_OPTIMIZED:  # a function
        alike = len(_inner(old)) == len(_inner(new))
        return [(old, new), *(one for pair in pairs if alike for one in _changed_functions(*pair))]
    if _own(old) != _own(new):
        return []
    return [one for pair in pairs for one in _changed_functions(*pair)]


def forget_what_was_cached() -> None:
    """Empty the caches of functions, which hold what the code without a fault returned."""
    gc.unfreeze()  # what is frozen is not listed
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.__module__.startswith(("bench", "methods")):
            one.cache_clear()


def import_with(root: Path, mutant: Mutant) -> None:
    """From now on an import gets the mutant's file with its fault."""
    sys.meta_path.insert(0, _Finder(root, mutant))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


class _Finder:
    def __init__(self, root: Path, mutant: Mutant) -> None:
        self._path, self._source = root / mutant.file, mutant.source
        parts = Path(mutant.file).with_suffix("").parts
        self._is_package = parts[-1] == "__init__"
        self._name = ".".join(parts[:-1] if self._is_package else parts)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(
            name,
            self._path,
            loader=_Loader(name, str(self._path), self._source),
            submodule_search_locations=[str(self._path.parent)] if self._is_package else None,
        )
