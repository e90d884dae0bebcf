"""Measures how much of a model a method adapts: for each kind of layer, adapted places of all that could be.

It is measured without the method's help, so that it holds for plugins as well: a place is adapted if its own weights
are trained, or if a module inside it or right around it has trained parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.method import Method, MethodError
from bench.models.parameters import count_parameters
from bench.quantized.linear import only_infers, stored_in
from bench.schema.printable import in_brief
from bench.schema.record import ParameterCounts
from methods.parts.roles import Site, sites, whole_parts

Coverage = dict[str, tuple[int, int]]


def patch_and_count(method: Method, model: Any) -> tuple[Any, ParameterCounts]:
    """Patch a base model, and count its parameters and coverage. Call it before an engine shards the model.

    Raises:
        MethodError: The method refuses the model, returns none, or trains what the model keeps more exact than fp16,
            or beside weights that have no gradients.
    """
    base = BaseModel(model)
    patched = method.patch(model)
    if not isinstance(patched, nn.Module):
        name = type(method).__name__
        raise MethodError(f"patch of {name} returned {in_brief(patched)}; it has to return the patched model")
    base.require_kept_exact(patched)
    counts = count_parameters(method, patched)
    if counts.trained and only_infers(model):
        raise MethodError(
            f"transformers only infers with weights that are stored in {stored_in(model)}, without gradients for what "
            "is trained beside them; name a checkpoint that is not quantised, and set model.quantization if it is to be"
        )
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
        self._kept_exact = kept_in_fp32(model)

    def require_kept_exact(self, patched: nn.Module) -> None:
        """Check that nothing is trained in fp32 in or around the modules that a model in fp16 keeps in fp32.

        All trained tensors are computed with in fp16. These modules would meet two dtypes, or be rounded themselves.

        Raises:
            MethodError: Something is. The message names the first module.
        """
        parents = _parents(patched)
        for name, module in self._kept_exact.items():
            if any(tensor.dtype == torch.float32 for _, tensor in self._trained_at(module, parents)):
                raise MethodError(
                    f"transformers keeps {name} in fp32 under fp16, where fp16 would overflow, and what is trained "
                    "there would be in fp16; set resources.precision: bf16 or fp32"
                )

    def coverage(self, patched: nn.Module) -> Coverage:
        """For each kind of layer the number of adapted places, and of all places.

        Args:
            patched: The same model after a method has patched it.
        """
        parents = _parents(patched)
        coverage: Coverage = {}
        for site in self.sites:
            names = [name for name, _ in self._trained_at(site.module, parents)]
            _count(coverage, site.kind, names if site.tensor is None else _of_tensor(names, site, self.sites))
        for kind, modules in self.parts.items():
            around = [any(True for _ in self._trained_around(module, parents)) for module in modules]
            if any(around):  # counted only for methods that adapt a part as a whole, such as prefixes
                coverage[kind] = (sum(around), len(around))
        return coverage

    def _trained_at(self, module: nn.Module, parents: Mapping[int, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters of a module, and of modules that were put into it or around it, with their names."""
        yield from self._trained_in(module)
        yield from self._trained_around(module, parents)

    def _trained_around(
        self, module: nn.Module, parents: Mapping[int, nn.Module]
    ) -> Iterator[tuple[str, nn.Parameter]]:
        parent = parents.get(id(module))
        while parent is not None and id(parent) not in self.modules:
            yield from self._trained_in(parent)
            parent = parents.get(id(parent))

    def _trained_in(self, module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield f"{prefix}{name}", parameter
        for name, child in module.named_children():
            if id(child) not in self.modules:
                yield from self._trained_in(child, f"{prefix}{name}.")


def kept_in_fp32(model: nn.Module) -> dict[str, nn.Module]:
    """The modules, by name, that have weights in fp32 in a model whose weights are in fp16 else.

    transformers keeps layers so whose outputs leave the range of fp16, such as ``wo`` of T5.
    """
    if all(parameter.dtype != torch.float16 for parameter in model.parameters()):
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if any(parameter.dtype == torch.float32 for parameter in module.parameters(recurse=False))
    }


def _parents(model: nn.Module) -> dict[int, nn.Module]:
    """The module around each one, by the id() of the inner one."""
    return {id(child): parent for parent in model.modules() for child in parent.children()}


def _count(coverage: Coverage, kind: str, trained: Sequence[str]) -> None:
    adapted, number = coverage.get(kind, (0, 0))
    coverage[kind] = (adapted + bool(trained), number + 1)


def _of_tensor(names: Sequence[str], site: Site, every: Sequence[Site]) -> list[str]:
    """The names of trained parameters at a module that belong to one of its tensors: they contain its name, or none."""
    tensors = [str(other.tensor) for other in every if other.module is site.module]
    return [name for name in names if str(site.tensor) in name or not any(tensor in name for tensor in tensors)]
