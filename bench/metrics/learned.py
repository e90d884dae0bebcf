"""Metrics by downloaded models: BERTScore, BLEURT, MAUVE. They need their packages and weights.

Nothing is downloaded for a score: the weights must be in the cache of the hub, or in a folder that a variable names.
"""

from __future__ import annotations

import importlib.util
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.metrics.metric import MeanOfSources, Measured, NoFunctionOfSums, Sources
from bench.metrics.texts import Texts
from bench.schema.digests import sha256_of

# Metric -> variable with a folder of weights, hub id of the weights, package.
NEEDS = {
    "bertscore": ("TUNEOFF_BERTSCORE_MODEL", "roberta-large", "bert_score"),
    "bleurt": ("TUNEOFF_BLEURT_MODEL", "Elron/bleurt-large-512", "bleurt_pytorch"),
    "mauve": ("TUNEOFF_MAUVE_MODEL", "gpt2-large", "mauve"),
}


def missing(name: str) -> str | None:
    """The package or weights that a metric lacks here; None if it lacks nothing."""
    variable, model, package = NEEDS[name]
    if importlib.util.find_spec(package) is None:
        return f"the package {package.replace('_', '-')} is not installed"
    if _weights(name) is None:
        return f"the weights of {model} are not in the hub's cache, and {variable} names no folder"
    return None


def _weights(name: str) -> str | None:
    """Folder with the weights."""
    variable, model, _ = NEEDS[name]
    if folder := os.environ.get(variable):
        return folder if Path(folder).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else None


class BertScore(MeanOfSources):
    """BERTScore F1 (Zhang et al. 2020) of the best reference, times 100, averaged over sources; not rescaled."""

    name = "bertscore"
    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        return missing(self.name)

    def signature(self, texts: Texts) -> str:
        return f"F1|best reference|{_label(self.name)}"

    def values(self, texts: Texts) -> list[float]:
        bert_score = importlib.import_module("bert_score")
        folder = str(_weights(self.name))
        _, _, f1 = bert_score.score(
            list(texts.predictions),
            [list(some) for some in texts.references],
            model_type=folder,
            num_layers=_num_layers(folder),
            lang="en",
        )
        return [100.0 * float(value) for value in f1]


def _num_layers(folder: str) -> int:
    """The layer that the authors chose for roberta-large; for another model, three quarters of its layers."""
    layers = int(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])
    return 17 if layers == 24 else max(1, layers - layers // 4)


class Bleurt(MeanOfSources):
    """BLEURT (Sellam et al. 2020) of the best reference, times 100, averaged over sources."""

    name = "bleurt"
    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        return missing(self.name)

    def signature(self, texts: Texts) -> str:
        return f"best reference|{_label(self.name)}"

    def values(self, texts: Texts) -> list[float]:
        package: Any = importlib.import_module("bleurt_pytorch")
        torch: Any = importlib.import_module("torch")
        folder = str(_weights(self.name))
        model = package.BleurtForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = package.BleurtTokenizer.from_pretrained(folder)
        values = []
        for prediction, references in zip(texts.predictions, texts.references, strict=True):
            with torch.inference_mode():
                inputs = tokenizer(
                    list(references), [prediction] * len(references), padding=True, truncation=True, return_tensors="pt"
                )
                values.append(100.0 * float(model(**inputs).logits.max()))
        return values


class Mauve(NoFunctionOfSums):
    """MAUVE (Pillutla et al. 2021), times 100: the closeness of the distributions of predictions and references."""

    name = "mauve"
    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        return missing(self.name)

    def signature(self, texts: Texts) -> str:
        return f"first reference|{_label(self.name)}"

    def measure(self, texts: Texts) -> Measured:
        package: Any = importlib.import_module("mauve")
        folder = str(_weights(self.name))

        def over(sources: Sources) -> float:
            result = package.compute_mauve(
                p_text=[texts.references[index][0] for index in sources],
                q_text=[texts.predictions[index] for index in sources],
                featurize_model_name=folder,
                max_text_length=256,
                verbose=False,
            )
            return 100.0 * float(result.mauve)

        return Measured(self.signature(texts), over, None)


def _label(name: str) -> str:
    """The model and the package, for a signature."""
    package = {"bertscore": "bert-score", "bleurt": "bleurt-pytorch", "mauve": "mauve-text"}[name]
    return f"{_model(name)}|{package}:{version(package)}"


def _model(name: str) -> str:
    """The hub's id, or the folder that the variable names instead, with a hash that tells its model from others."""
    variable, model, _ = NEEDS[name]
    if not (folder := os.environ.get(variable)):
        return model
    config = Path(folder) / "config.json"
    digest = f" (config {sha256_of(config)[:8]})" if config.is_file() else ""
    return f"{Path(folder).resolve().name}{digest}"
