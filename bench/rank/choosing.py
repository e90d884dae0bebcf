"""Labels by likelihood: which of its choices a model finds likeliest behind each source.

Every choice is a target behind its source, as in training, so that whatever a method does to a model it does here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.models.architecture import Pair
from bench.models.tokens import Tokenization
from bench.rank.context import RankContext, share_json
from bench.rank.data import TrialData
from bench.task import Example
from bench.train.loss import TargetLoss

Key = tuple[tuple[int, ...], tuple[int, ...]]  # what is read, and what stands behind it
Likelihoods = dict[str, float]  # label to its log-likelihood, in nats


@dataclass(frozen=True)
class Chosen:
    """What was chosen for each source.

    Attributes:
        labels: The likeliest choice; of equal ones the first.
        likelihoods: Of all choices, after what the task makes of lengths and priors.
        target_tokens: Of all choices that were scored, each once.
    """

    labels: list[str]
    likelihoods: list[Likelihoods]
    target_tokens: int


@dataclass(frozen=True)
class Chooser:
    """Scores choices on this rank, together with the other ranks of the trial.

    Args:
        model: A patched language model in evaluation mode, on the device.
        tokens: How texts become tokens, with the settings of the task.
        context: Of this rank.
        device: Of the model.
        batch_size: Choices in a forward pass.
    """

    model: Any
    tokens: Tokenization
    context: RankContext
    device: torch.device
    batch_size: int

    def choose(self, examples: Sequence[Example], shares: Mapping[str, float] | None) -> Chosen:
        """The likeliest choice of each example. The same source with the same choice is scored once.

        Args:
            examples: With their choices.
            shares: Prior of each label, in place of the model's own; None leaves the model's.
        """
        candidates = [self.tokens.candidates(example) for example in examples]
        priors: dict[tuple[str, ...], list[Pair]] = {}
        if shares is not None:
            priors = {choices: self.tokens.without_source(choices) for choices in {one.choices for one in examples}}
        pairs = {_key(pair): pair for some in (*candidates, *priors.values()) for pair in some}
        known = self._log_likelihoods(pairs)
        of_priors = {choices: self._values_of_choices(some, known) for choices, some in priors.items()}
        likelihoods: list[Likelihoods] = []
        for example, some in zip(examples, candidates, strict=True):
            values = self._values_of_choices(some, known)
            if shares is not None:
                values = [
                    value - own + math.log(shares[choice])
                    for value, own, choice in zip(values, of_priors[example.choices], example.choices, strict=True)
                ]
            likelihoods.append(dict(zip(example.choices, values, strict=True)))
        labels = [max(values, key=lambda choice: _or_least(values[choice])) for values in likelihoods]
        return Chosen(labels, likelihoods, sum(len(pair.target_ids) for pair in pairs.values()))

    def _values_of_choices(self, pairs: Sequence[Pair], known: Mapping[Key, float]) -> list[float]:
        """The log-likelihood of each label, or its mean over tokens, as the task has it."""
        settings = self.tokens.config.choices
        per_token = settings is not None and settings.likelihood == "token"
        return [known[_key(pair)] / (len(pair.target_ids) if per_token else 1) for pair in pairs]

    def _log_likelihoods(self, pairs: Mapping[Key, Pair]) -> dict[Key, float]:
        """Of each target behind its source; ranks share the work and make the same number of forward passes."""
        loss = TargetLoss(self.model).eval()
        pad_token_id = self.tokens.tokenizer.pad_token_id
        ordered = sorted(pairs.values(), key=lambda pair: (pair.num_tokens, pair.source_ids, pair.target_ids))
        batches = [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]
        rank, ranks = self.context.rank, self.context.ranks
        own: dict[int, list[float]] = {}
        with torch.no_grad():
            for first in range(0, len(batches), ranks):
                counts = first + rank < len(batches)
                chosen = batches[first + rank] if counts else batches[0]
                batch = self.tokens.architecture.batch(chosen, pad_token_id).to(self.device)
                sums = loss(**vars(batch), shares=[len(pair.target_ids) for pair in chosen])
                if counts:
                    own[first + rank] = (-sums).tolist()
                self.context.progress({"decoded": len(own), "of": -(-len(batches) // ranks)})
        found: dict[Key, float] = {}
        for share in share_json(self.context, "choices", {str(number): values for number, values in own.items()}):
            for number, values in share.items():
                found |= {_key(pair): value for pair, value in zip(batches[int(number)], values, strict=True)}
        return found


def shares_of(data: TrialData) -> dict[str, float] | None:
    """The prior of each label that the task asks for; None leaves the model's own.

    A label that is in no training example has the share of half an example.
    """
    settings = data.task.config.choices
    if settings is None or settings.prior == "none":
        return None
    if isinstance(settings.prior, dict):
        return dict(settings.prior)
    if settings.prior == "training":
        counts = Counter(one.references[0] for one in data.splits["train"].examples)
        total = sum(counts.values())
        return {label: max(counts[label], 0.5) / total for label in settings.labels}
    labels = {label for split in data.splits.values() for one in split.examples for label in one.choices}
    return dict.fromkeys(labels, 1.0)


def _key(pair: Pair) -> Key:
    return tuple(pair.source_ids), tuple(pair.target_ids)


def _or_least(value: float) -> float:
    """A number that can be compared: what is none is the least likely."""
    return value if value == value else -math.inf
