"""Compares another model with an adapted one, by logits of both on a few rows of arbitrary tokens."""

from __future__ import annotations

from typing import Any

import torch

from bench.models.adapter import Restored
from bench.models.architecture import Pair, accepted_inputs

PROBE_LENGTHS = (9, 17, 5)
# The allowed difference as a fraction of the largest logit: fp32 rounds equal sums in another order differently.
TOLERANCE = 1e-4


class LogitProbe:
    """The present logits of an adapted model, for comparison with those of other models.

    Args:
        restored: The adapted model, on the CPU.
    """

    def __init__(self, restored: Restored) -> None:
        generator = torch.Generator().manual_seed(0)
        vocabulary = restored.model.get_input_embeddings().weight.shape[0]
        rows = [torch.randint(0, vocabulary, (length + 4,), generator=generator).tolist() for length in PROBE_LENGTHS]
        pairs = [Pair(ids[:length], ids[length:]) for ids, length in zip(rows, PROBE_LENGTHS, strict=True)]
        self._inputs = [restored.architecture.batch([pair], pad_token_id=0).inputs for pair in pairs]
        self._expected = [_logits(restored.model, inputs) for inputs in self._inputs]

    def difference(self, model: Any) -> float:
        """Largest difference of logits, as a fraction of the largest logit."""
        largest, difference = 0.0, 0.0
        for inputs, expected in zip(self._inputs, self._expected, strict=True):
            logits = _logits(model, inputs)
            if logits.shape[1] > expected.shape[1]:  # peft's prompt tuning keeps the positions of the prompt
                logits = logits[:, logits.shape[1] - expected.shape[1] :]
            largest = max(largest, float(expected.abs().max()))
            difference = max(difference, float((expected - logits).abs().max()))
        return difference / largest


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    own = {name: part for name, part in accepted_inputs(model, inputs).items() if name != "position_ids"}
    with torch.no_grad():
        logits: torch.Tensor = model(**own).logits.float()
    return logits
