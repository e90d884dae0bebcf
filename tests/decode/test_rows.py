"""How many sources are decoded at once, in every family of models."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from text_families import untrained_family

from bench.conformance.tiny_models import FAMILIES as CORE
from bench.decode.rows import key_channels, rows_at_once
from bench.schema.trial import DecodeSpec


@pytest.mark.parametrize("family", FAMILIES.values())
def test_every_family_has_a_number_of_rows(family: str) -> None:
    with torch.device("meta"):
        config = (CORE[family]() if family in CORE else untrained_family(family)).config
    assert rows_at_once(DecodeSpec(batch_size=None, max_new_tokens=8), config, 4, 10, 2**30, on_cpu=True) > 1


def test_keys_of_heads_of_several_sizes_are_added_up() -> None:
    """Two key heads, of 8 channels in sliding layers and of 16 in others, in turns; states have none."""
    with torch.device("meta"):
        assert key_channels(untrained_family("gemma4_text").config) == 2 * (8 + 16 + 8 + 16)
        assert key_channels(untrained_family("qwen3_moe").config) == 2 * 2 * 8
        assert key_channels(untrained_family("mamba2").config) == 0
