"""What each matrix of a model is for: one answer for all methods, and for what a record says of coverage."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bench.method import MethodError
from methods.blocks import block_modules
from methods.transformer_parts import Projection, attention_projections


def projections_in_every_block(model: Any, roles: Collection[str]) -> list[Projection]:
    """The projections of attention that have one of these roles.

    Raises:
        MethodError: A block has none with a role that is asked for. Blocks without attention (state-space layers of a
            hybrid) are such; adapting the others alone would be another method than was asked for.
    """
    found = [projection for projection in attention_projections(model) if projection.role in roles]
    for name, block in block_modules(model):
        inner = {id(module) for module in block.modules()}
        own = {projection.role for projection in found if id(projection.attention) in inner}
        if any(getattr(module, "is_kv_shared_layer", False) for module in block.modules()):
            own |= {"key", "value"}  # those of an earlier block, where they are adapted
        if missing := set(roles) - own:
            raise MethodError(
                f"{name} ({type(block).__name__}) makes no {' and no '.join(sorted(missing))} that is known, so "
                "that the method would change some blocks only; name the modules to adapt instead"
            )
    return found
