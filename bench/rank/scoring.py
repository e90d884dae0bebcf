"""How a rank scores a model: losses, texts, what decoding costs, and the scores of the texts."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.decode.generate import decode_cost, generate
from bench.decode.lm_evaluation import evaluate
from bench.decode.merged import MOST_SOURCES, decode_both_ways, over_ranks
from bench.measure.phases import PhaseMeter, synchronize
from bench.method import Method, stored_in
from bench.metrics.scoring import score_examples, with_perplexity
from bench.models.architecture import Pair
from bench.models.tokens import Tokenization
from bench.plugins.registry import metrics_of
from bench.rank.choosing import Chooser, Likelihoods, shares_of
from bench.rank.context import RankContext, in_shards, share_json, wait_for
from bench.rank.data import TrialData
from bench.rank.stored import require_what_was_trained
from bench.schema.record import DecodeCost, DevPoint, MergedDecode, Scores
from bench.schema.trial import JsonDict, TrialSpec
from bench.store.predictions import write_predictions, write_samples
from bench.task import Example, Task
from bench.train.loop import mean_losses
from bench.train.loss import TargetLoss
from bench.train.order import rows_evaluated_at_once

# Set in the store of the ranks once rank 0 has asked all questions of the evaluations.
EVALUATED = "evaluated"


@dataclass(frozen=True)
class Scored:
    """What came of scoring a model."""

    stored_dev_loss: float
    test_loss: float | None  # None where the trial does not read the test split
    decode: DecodeCost
    merged_decode: MergedDecode | None
    scores: Scores | None  # on rank 0 alone


@dataclass(frozen=True)
class Scoring:
    """Scores models on this rank, together with the other ranks of the trial.

    Args:
        spec: The trial.
        context: Of this rank.
        device: Where the model is.
        meter: Told the phases.
        compares_merged: Whether decoding is also timed with the adapter merged, where the method can be.
    """

    spec: TrialSpec
    context: RankContext
    device: torch.device
    meter: PhaseMeter
    compares_merged: bool

    def score(
        self, method: Method, model: Any, data: TrialData, split: Literal["dev", "test"], best: DevPoint | None
    ) -> Scored:
        """Take losses, decode the sources of a split or choose their labels, and score the texts.

        Args:
            method: Of the trial.
            model: A fresh base model with the stored adapter, on the device.
            data: Of the trial.
            split: Whose sources are decoded.
            best: What training saw when it kept the state; None where nothing was trained.

        Raises:
            StoredStateError: The stored adapter has another dev loss than training saw.
        """
        tokens, pairs = data.tokens, data.pairs
        test_loss: float | None = None
        with self.meter.phase("validate"):
            stored_dev_loss = self._mean_loss(model, pairs["dev"], tokens)
            if best is not None:
                # Quantised weights may be multiplied in less than the rest.
                coarse = self.spec.model.quantization_compute == "bf16"
                precision = "bf16" if coarse else self.spec.resources.precision
                require_what_was_trained(stored_dev_loss, best, precision, self.spec.method.name)
            if "test" in pairs:
                test_loss = self._mean_loss(model, pairs["test"], tokens)
        sources = data.splits[split].sources()
        chooses = data.task.config.choices is not None
        likelihoods: list[Likelihoods] | None = None
        with self.meter.phase("decode"):
            if chooses:
                predictions, likelihoods, cost = self._choices(model, data, split)
                truncated = [False] * len(predictions)
            else:
                predictions, truncated, cost = self._predictions(model, tokens, sources)
        merged_decode: MergedDecode | None = None
        if method.mergeable and self.compares_merged and not chooses and stored_in(model) is None:
            with self.meter.phase("compare_merged"):
                merged_decode = self._merged_decode(method, model, tokens, sources)
        scores: Scores | None = None
        if self.context.rank == 0:
            with self.meter.phase("score"):
                dev_loss = stored_dev_loss if best is None else best.loss
                loss = dev_loss if test_loss is None else test_loss
                examples = list(data.splits[split].examples)
                scores = self._scores(data.task, examples, predictions, truncated, loss, likelihoods)
        if self.spec.evaluations and self.spec.stage == "final":
            with self.meter.phase("evaluate"):
                scores = self._evaluated(model, tokens, scores)
        return Scored(stored_dev_loss, test_loss, cost, merged_decode, scores)

    def _evaluated(self, model: Any, tokens: Tokenization, scores: Scores | None) -> Scores | None:
        """The scores with those of further tasks behind them. Rank 0 asks the model; the others wait for it."""
        if scores is None:
            wait_for(self.context, EVALUATED)
            return None
        evaluated = evaluate(model, tokens.tokenizer, self.spec.evaluations, self.spec.decode.padded_batch_size)
        write_samples(self.context.outbox, evaluated.samples)
        self.context.store.set(EVALUATED, "")
        return evaluated.beside(scores)

    def _mean_loss(self, model: Any, pairs: Sequence[Pair], tokens: Tokenization) -> float:
        loss, pad_token_id = TargetLoss(model).eval(), tokens.tokenizer.pad_token_id

        def losses_of(chosen: Sequence[Pair]) -> torch.Tensor:
            return loss.of(tokens.architecture.batch(chosen, pad_token_id).to(self.device))[None]

        rows = rows_evaluated_at_once(self.spec.train, self.spec.resources.ranks)
        (mean,) = mean_losses(losses_of, pairs, rows, self.device)
        return mean

    def _predictions(
        self, model: Any, tokens: Tokenization, sources: Sequence[tuple[int, ...]]
    ) -> tuple[list[str], list[bool], DecodeCost]:
        """Predictions in the order of ``sources``, whether each was cut off, and their cost.

        Equal sources are decoded once.
        """
        context = self.context
        unique = {source: number for number, source in enumerate(dict.fromkeys(sources))}
        decoded = generate(
            model,
            tokens.tokenizer,
            tokens.architecture,
            [list(source) for source in unique],
            self.spec.drawing,
            self.device,
            context.rank,
            context.ranks,
            context.progress,
            in_step=in_shards(self.spec),
        )
        shares = share_json(context, "predictions", dataclasses.asdict(decoded))
        texts = {int(index): text for share in shares for index, text in share["texts"].items()}
        truncated = {index for share in shares for index in share["truncated"]}
        cost = decode_cost(
            sources=len(unique),
            new_tokens=sum(share["new_tokens"] for share in shares),
            seconds=max(share["seconds"] for share in shares),
            engine=decoded.engine,
        )
        positions = [unique[source] for source in sources]
        return [texts[position] for position in positions], [position in truncated for position in positions], cost

    def _choices(
        self, model: Any, data: TrialData, split: Literal["dev", "test"]
    ) -> tuple[list[str], list[Likelihoods], DecodeCost]:
        """The likeliest choice for each source, the likelihoods of all, and what they cost."""
        chooser = Chooser(model, data.tokens, self.context, self.device, self.spec.decode.padded_batch_size)
        synchronize(self.device)
        started = time.perf_counter()
        chosen = chooser.choose(list(data.splits[split].examples), shares_of(data))
        synchronize(self.device)
        seconds = time.perf_counter() - started
        cost = decode_cost(
            sources=len(chosen.labels), new_tokens=chosen.target_tokens, seconds=seconds, engine="likelihood"
        )
        return chosen.labels, chosen.likelihoods, cost

    def _merged_decode(
        self, method: Method, model: Any, tokens: Tokenization, sources: Sequence[tuple[int, ...]]
    ) -> MergedDecode | None:
        """What decoding the first few sources costs merged and unmerged; None where a rank could not, say for memory.

        Merged weights lie in memory beside the base weights.
        """
        few = [list(source) for source in dict.fromkeys(sources)][:MOST_SOURCES]
        own: JsonDict = {}
        try:
            mine = few[self.context.rank :: self.context.ranks]
            cost = decode_both_ways(
                method, model, tokens.tokenizer, tokens.architecture, mine, self.spec.drawing, self.device
            )
            own = {"cost": cost.model_dump(mode="json")}
        except Exception:  # noqa: BLE001 - a scored trial is worth more than one more cost of it
            traceback.print_exc()
        shares = share_json(self.context, "merged_decode", own)
        if not all(shares):
            return None
        return over_ranks([MergedDecode.model_validate(share["cost"]) for share in shares])

    def _scores(
        self,
        task: Task,
        examples: Sequence[Example],
        predictions: Sequence[str],
        truncated: Sequence[bool],
        loss: float,
        likelihoods: Sequence[Likelihoods] | None,
    ) -> Scores:
        system = score_examples(
            examples, predictions, task.scoring, truncated, task.config.metrics, metrics_of(self.spec.task)
        )
        of_sources = [system.source_scores(index) for index in range(len(examples))]
        write_predictions(self.context.outbox, examples, predictions, truncated, of_sources, likelihoods)
        return with_perplexity(system.scores(), loss, task.config.loss_references)
