"""State-space layers call their projections in training, where mamba-ssm has a kernel that reads weights past them."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_families import small_model

from bench.models.base import load_model
from bench.models.whole_layers import FUSED_WITH_PROJECTIONS
from bench.schema.trial import ModelSpec


@pytest.mark.parametrize("family", ["Mamba2ForCausalLM", "MambaForCausalLM", "FalconH1ForCausalLM"])
def test_projections_are_called_in_training_too(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(family)
    model.save_pretrained(tmp_path)
    library = sys.modules[type(model).__module__]
    (name,) = [name for name in FUSED_WITH_PROJECTIONS if hasattr(library, name)]
    plain = inspect.unwrap(getattr(library, name))

    @functools.wraps(plain)
    def with_kernel(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel got the weights of projections")

    monkeypatch.setattr(library, name, with_kernel)
    attention = "sdpa" if family.startswith("Falcon") else "eager"
    model = load_model(ModelSpec(path=str(tmp_path), attention=attention), torch.float32).train()
    called = []
    for module_name, module in model.named_modules():
        if module_name.endswith("out_proj"):
            module.register_forward_hook(lambda *_: called.append(1))
    model(input_ids=torch.tensor([[5, 9, 3, 7]]), use_cache=False)
    assert len(called) == 2
