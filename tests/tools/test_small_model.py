"""The small model of the three-stage sweep: made by the harness itself, from facts and restaurants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.models import base
from bench.schema.trial import ModelSpec
from bench.schema.validation import ConfigError
from bench.tools import small_model

ROWS = (
    ("name[Alimentum], food[Thai]", "Alimentum serves Thai food."),
    ("name[Aromi], area[riverside]", "Aromi is there."),
)


@pytest.fixture
def restaurants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a training file in E2E's form but not of its size; the shipped facts are left out too, for time."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    lines = [f'"{meaning}","{text}"' for meaning, text in ROWS * 30]
    (folder / "trainset.csv").write_text("mr,ref\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(small_model, "DEV_ROWS", 1)
    monkeypatch.setattr(small_model.E2E, "_check_counts", lambda *_: None)
    monkeypatch.setattr(small_model.Facts, "load", lambda *_: [])
    return folder


@pytest.mark.full
def test_a_model_is_made_once_and_is_a_base_like_any_other(restaurants: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    loss = small_model.make(folder, restaurants, steps=2)
    assert 0 < loss < 10
    spec = ModelSpec(path=str(folder))
    model, tokenizer = base.load_model(spec, torch.float32), base.load_tokenizer(spec)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tokenizer.decode(tokenizer("Alimentum serves")["input_ids"]) == "Alimentum serves"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e2e", "small"], "nothing else is left"
    with pytest.raises(ConfigError, match="is there already; remove it"):
        small_model.make(folder, restaurants)
