"""The method that the entry point names."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat
from torch import nn

from bench.method import Method, MethodConfig
from embedding_offset.offset import Offset


class EmbeddingOffset(Method):
    """One trained vector is added to every input embedding."""

    class Config(MethodConfig):
        """Settings of the plugin."""

        init_std: NonNegativeFloat = Field(0.0, description="standard deviation of the vector at the start")

    paper: ClassVar[str] = "none; an example"

    def patch(self, model: Any) -> nn.Module:
        weight = model.get_input_embeddings().weight
        offset = model.input_offset = Offset(weight, self.config.init_std)
        for module in model.modules():  # an encoder and its decoder share the weight, in embedding layers of their own
            if isinstance(module, nn.Embedding) and module.weight is weight:
                module.register_forward_hook(lambda module, args, output: offset(output))
        patched: nn.Module = model
        return patched
