"""Measures how much of a model a method adapts: for each kind of layer, adapted places of all that could be.

It is measured without the method's help, so that it holds for plugins as well: a place is adapted if its own weights
are trained, or if a module inside it or right around it has trained parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bench.method import Method, MethodError
from bench.models.parameters import count_parameters
from bench.schema.printable import in_brief
from bench.schema.record import ParameterCounts
from methods.parts.roles import Site, sites, whole_parts

Coverage = dict[str, tuple[int, int]]


def patch_and_count(method: Method, model: Any) -> tuple[Any, ParameterCounts]:
    """Patch a base model, and count its parameters and coverage. Call it before an engine shards the model.

    Raises:
        MethodError: The method refuses the model, or returns none.
    """
    base = BaseModel(model)
    patched = method.patch(model)
    if not isinstance(patched, nn.Module):
        name = type(method).__name__
        raise MethodError(f"patch of {name} returned {in_brief(patched)}; it has to return the patched model")
    counts = count_parameters(method, patched)
    return patched, counts.model_copy(update={"coverage": base.coverage(patched)})


class BaseModel:
    """The places of a base model, listed before a method patches it.

    Args:
        model: The base model, before a method patches it.
    """

    def __init__(self, model: Any) -> None:
        self.sites: Sequence[Site] = sites(model)
        self.parts = whole_parts(model)
        # The modules are kept alive, so that no other object gets the id() of one.
        self.modules = {id(module): module for module in model.modules()}

    def coverage(self, patched: nn.Module) -> Coverage:
        """For each kind of layer the number of adapted places, and of all places.

        Args:
            patched: The same model after a method has patched it.
        """
        parents = {id(child): parent for parent in patched.modules() for child in parent.children()}
        coverage: Coverage = {}
        for site in self.sites:
            names = list(self._trained_at(site.module, parents))
            _count(coverage, site.kind, names if site.tensor is None else _of_tensor(names, site, self.sites))
        for kind, modules in self.parts.items():
            around = [any(True for _ in self._trained_around(module, parents)) for module in modules]
            if any(around):  # counted only for methods that adapt a part as a whole, such as prefixes
                coverage[kind] = (sum(around), len(around))
        return coverage

    def _trained_at(self, module: nn.Module, parents: Mapping[int, nn.Module]) -> Iterator[str]:
        """Names of the trained parameters of a module, and of modules that were put into it or around it."""
        yield from self._trained_in(module)
        yield from self._trained_around(module, parents)

    def _trained_around(self, module: nn.Module, parents: Mapping[int, nn.Module]) -> Iterator[str]:
        parent = parents.get(id(module))
        while parent is not None and id(parent) not in self.modules:
            yield from self._trained_in(parent)
            parent = parents.get(id(parent))

    def _trained_in(self, module: nn.Module, prefix: str = "") -> Iterator[str]:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield f"{prefix}{name}"
        for name, child in module.named_children():
            if id(child) not in self.modules:
                yield from self._trained_in(child, f"{prefix}{name}.")


def _count(coverage: Coverage, kind: str, trained: Sequence[str]) -> None:
    adapted, number = coverage.get(kind, (0, 0))
    coverage[kind] = (adapted + bool(trained), number + 1)


def _of_tensor(names: Sequence[str], site: Site, every: Sequence[Site]) -> list[str]:
    """The names of trained parameters at a module that belong to one of its tensors: they contain its name, or none."""
    tensors = [str(other.tensor) for other in every if other.module is site.module]
    return [name for name in names if str(site.tensor) in name or not any(tensor in name for tensor in tensors)]
