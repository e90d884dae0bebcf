"""What one rank does, readable top to bottom: load, patch, train, validate, save, decode, score.

Both launchers call :func:`run_rank` in a fresh process. Imports of torch and DeepSpeed happen here and below.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import random
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from bench.decode.generate import decode_cost, generate
from bench.decode.merged import MOST_SOURCES, decode_both_ways, over_ranks
from bench.measure.phases import PhaseMeter
from bench.measure.provenance import code_sha256, collect, installed_version, sources_sha256
from bench.method import Method
from bench.metrics.scoring import score_examples, with_perplexity
from bench.models import base as models
from bench.models.adapter import save_adapter
from bench.models.architecture import Architecture, Pair
from bench.models.coverage import patch_and_count
from bench.models.loaded import load_into, size_of
from bench.models.masters import compute_in
from bench.models.split_data import Pairs, SplitData, told_of
from bench.models.token_cache import read_split
from bench.models.token_check import lost_references
from bench.models.tokens import Tokenization, tokenization
from bench.plugins.registry import Kind, RegistryError, load, make_method, make_task
from bench.plugins.source import PluginError, plugin_source
from bench.rank.context import (
    RankContext,
    device_name,
    failure,
    join_process_group,
    member_context,
    select_device,
    share_json,
    tell_phase,
)
from bench.rank.stored import require_what_was_trained
from bench.schema.record import (
    Completed,
    DecodeCost,
    MergedDecode,
    Outcome,
    ParameterCounts,
    Prediction,
    Probed,
    Provenance,
    RankCost,
    RankReport,
    Scores,
)
from bench.schema.trial import JsonDict, ResolvedSpec, TrialSpec
from bench.store.outbox import member_prefix
from bench.store.predictions import write_predictions
from bench.task import Example, Split, Task
from bench.train.checkpoint import Checkpoints
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Diverged, Lane, Trained
from bench.train.loop import Training, mean_losses
from bench.train.loss import TargetLoss


def run_rank(spec: TrialSpec, context: RankContext, companions: Sequence[TrialSpec] = ()) -> RankReport:
    """Run this rank's part of a trial, or of several that share the launch. Exceptions become outcomes."""
    meter: PhaseMeter | None = None
    provenance: Provenance | None = None
    try:
        if context.driver_code_sha256 != sources_sha256():
            raise RuntimeError(  # noqa: TRY301
                "this rank has other sources of bench and methods than the driver; install the same revision on all "
                "nodes, or let the sweep ship its code"
            )
        require_plugins(spec)
        device = select_device(spec, context)
        torch.set_num_threads(context.threads)
        provenance = collect(device_name(device), context.threads)
        contexts = [context, *(member_context(context, number) for number in range(1, 1 + len(companions)))]
        meter = PhaseMeter(device, on_enter=partial(tell_phase, contexts))
        join_process_group(context, device)
        trials = [
            _Trial(each, own, device, meter, not companions)
            for each, own in zip([spec, *companions], contexts, strict=True)
        ]
        report = run_trials(trials)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - every failure is a result
        reason = failure(error, meter.current if meter else None, context.rank)
        return RankReport(outcome=reason, provenance=provenance)
    return report.model_copy(update={"provenance": provenance})


def require_plugins(spec: TrialSpec) -> None:
    """See that this node has the plugins of a trial, in the version that the driver has.

    Raises:
        RegistryError: Naming plugin, node and remedy.
    """
    parts: tuple[tuple[Kind, ResolvedSpec], ...] = (("method", spec.method), ("task", spec.task))
    for kind, part in parts:
        if part.source_sha256 is None:
            continue
        where = f"node {platform.node()}: the {kind} {part.name!r} of {part.origin}"
        try:
            load(kind, part.target)
            source = plugin_source(part.target)
        except (PluginError, RegistryError) as error:
            what = "it and what it imports must be on all nodes"
            raise RegistryError(f"{where} is missing here, {what}: {error}") from error
        if source is None or source.sha256() != part.source_sha256:
            found = source.origin if source is not None else "Tuneoff"
            raise RegistryError(
                f"{where} is another version here ({found}) than where the sweep was started; install the same one on "
                "all nodes, or uninstall it here and let the sweep ship its code"
            )


def run_trials(trials: Sequence[_Trial]) -> RankReport:
    """Read the data, train (several trials in one pass), and finish one trial after the other."""
    first = trials[0]
    data = first.read()
    trains = first.spec.loaded is None and first.method(data).trains
    results: Sequence[_TrainedTrial | None] = train(trials, data) if trains else [None]
    if len(trials) == 1:
        return RankReport(outcome=first.finish(data, results[0]), provenance=None)
    shared_seconds = first.meter.seconds
    outcomes = [trial.finish_in_company(data, result) for trial, result in zip(trials, results, strict=True)]
    for number, trial in enumerate(trials[1:], start=1):
        # The files of a launch lie in one folder.
        for path in trial.context.outbox.iterdir():
            path.rename(first.context.outbox / f"{member_prefix(number)}{path.name}")
    return RankReport(outcome=outcomes[0], provenance=None, companions=outcomes[1:], shared_seconds=shared_seconds)


def train(trials: Sequence[_Trial], data: _Data) -> list[_TrainedTrial]:
    """Train trials that share the frozen weights of one base model."""
    first = trials[0]
    bases = copies_sharing_weights(first.base_model(), len(trials))
    methods = [trial.method(data) for trial in trials]
    patched = [trial.patched(method, base) for trial, method, base in zip(trials, methods, bases, strict=True)]
    training = Training(
        lanes=[
            Lane(method, model, trial.spec.train, trial.spec.seed, trial.context.progress, trial.spec.stop_after_steps)
            for trial, method, (model, _) in zip(trials, methods, patched, strict=True)
        ],
        architecture=data.tokens.architecture,
        resources=first.spec.resources,
        rank=first.context.rank,
        device=first.device,
        pad_token_id=data.tokens.tokenizer.pad_token_id,
        meter=first.meter,
        checkpoints=first.checkpoints(),
    )
    results = training.run(data.pairs["train"], data.pairs["dev"])
    return [_TrainedTrial(result, counts) for result, (_, counts) in zip(results, patched, strict=True)]


@dataclass(frozen=True)
class _Data:
    """What a trial trains on and is scored by. Trials that share a launch share it."""

    task: Task
    splits: dict[Split, SplitData]
    tokens: Tokenization

    @functools.cached_property
    def pairs(self) -> dict[Split, Pairs]:
        """What is trained on and what losses are taken of."""
        return {split: data.pairs for split, data in self.splits.items()}


@dataclass(frozen=True)
class _TrainedTrial:
    result: Trained | Diverged
    counts: ParameterCounts


@dataclass
class _Trial:
    """One rank's walk through the phases."""

    spec: TrialSpec
    context: RankContext
    device: torch.device
    meter: PhaseMeter
    alone: bool = True  # False: it shares the launch, so that no plan can be held against what is measured

    def read(self) -> _Data:
        spec = self.spec
        with self.meter.phase("load"):
            task = make_task(spec.task)
            tokens = tokenization(spec.scored_model, task.config)
            splits = {split: read_split(spec.task, task, split, tokens, _say) for split in spec.splits}
        return _Data(task, splits, tokens)

    def finish_in_company(self, data: _Data, trained: _TrainedTrial | None) -> Outcome:
        """As :meth:`finish`, where a failure is this trial's alone."""
        self.meter = self.meter.branch(partial(tell_phase, [self.context]))
        try:
            outcome = self.finish(data, trained)
        except Exception as error:  # noqa: BLE001 - every failure is a result
            return failure(error, self.meter.current, self.context.rank)
        if outcome is None:
            raise RuntimeError("only rank 0 has an outcome, and trials that share a launch have one rank")
        return outcome

    def finish(self, data: _Data, trained_trial: _TrainedTrial | None) -> Completed | Probed | None:
        """What follows the training. On rank 0, what came of it."""
        spec, meter, tokens, splits, pairs = self.spec, self.meter, data.tokens, data.splits, data.pairs
        trained, counts, adapter_bytes = None, None, 0
        if trained_trial is not None:
            if isinstance(trained_trial.result, Diverged):
                raise trained_trial.result
            trained, counts = trained_trial.result, trained_trial.counts
            with meter.phase("save"):
                if self.context.rank == 0:
                    adapter_bytes = save_adapter(self.context.outbox, spec, data.task.config, trained.state)
        ran = _what_training_tells(trained)
        scores, decode_cost = None, None
        if spec.scored_split is not None:
            # What is scored is the stored adapter in a fresh base model, not whatever the engine holds at the end.
            method = self.method(data)
            model, fresh_counts = self._scorable_model(method, trained)
            if spec.loaded is not None:
                adapter_bytes = size_of(spec.loaded)
            counts = counts or fresh_counts
            with meter.phase("validate"):
                ran["stored_dev_loss"] = self._mean_loss(model, pairs["dev"], tokens)
                if trained is None:
                    ran["dev_loss"] = ran["stored_dev_loss"]
                else:
                    precision = spec.resources.precision
                    require_what_was_trained(ran["stored_dev_loss"], trained.best, precision, spec.method.name)
                if "test" in pairs:
                    ran["test_loss"] = self._mean_loss(model, pairs["test"], tokens)
            examples = list(splits[spec.scored_split].examples)
            with meter.phase("decode"):
                sources = splits[spec.scored_split].sources()
                predictions, truncated, decode_cost = self._predictions(model, tokens, sources)
            if method.mergeable and self.alone and spec.stage != "tune":
                # A search's budget pays for no more than it chooses by, and what shared its launch has no cost to show.
                with meter.phase("compare_merged"):
                    ran["merged_decode"] = self._merged_decode(method, model, tokens, sources)
            if self.context.rank == 0:
                with meter.phase("score"):
                    loss = ran["test_loss"] if "test" in pairs else ran["dev_loss"]
                    scores = self._scores(data.task, examples, predictions, truncated, loss)
        ranks = self._gathered_costs()
        if self.context.rank != 0:
            return None
        if trained is not None and self.alone:
            with meter.phase("plan"):  # after all that is measured: it takes memory of its own
                num_decoded = len(splits[spec.scored_split].examples) if spec.scored_split else 0
                ran["predicted"] = self._predicted(tokens.architecture, pairs, num_decoded)
        ran |= {"parameters": counts, "decode": decode_cost, "ranks": ranks, "adapter_bytes": adapter_bytes}
        examples_of = {split: part.examples for split, part in splits.items()}
        ran["data"] = {**told_of(splits), **lost_references(tokens, examples_of, spec.decode.stop)}
        return Completed(scores=scores, **ran) if spec.stage == "final" else Probed(dev_scores=scores, **ran)

    def method(self, data: _Data) -> Method:
        """The method as this trial configures it."""
        return make_method(self.spec.method, data.tokens.tokenizer)

    def checkpoints(self) -> Checkpoints | None:
        """Where this trial leaves and finds checkpoints; None if it makes none."""
        every_steps = self.spec.checkpoint_every_steps
        if every_steps is None or self.context.checkpoints is None:
            return None
        seal = {
            "trial": self.spec.trial_id,
            "code": code_sha256(),
            "versions": {name: installed_version(name) for name in ("torch", "deepspeed", "transformers")},
            "kind of device": self.device.type,
        }
        return Checkpoints(self.context.checkpoints, every_steps, seal)

    def base_model(self) -> Any:
        """A fresh base model, frozen."""
        with self.meter.phase("load"):
            dtype = models.weights_dtype(self.spec.resources.precision)
            return models.load_model(self.spec.scored_model, dtype, self.spec.train.dropout)

    def patched(self, method: Method, model: Any) -> tuple[Any, ParameterCounts]:
        """A base model, patched under the trial's seed, and counted before any engine shards it."""
        with self.meter.phase("patch"):
            seed_everything(self.spec.seed)
            model, counts = patch_and_count(method, model)
            compute_in(models.weights_dtype(self.spec.resources.precision), model)
            if method.trains and counts.trained == 0:
                raise RuntimeError(f"the method {self.spec.name} trains nothing in this model")
            # Dropout differs between ranks, which see different rows.
            seed_everything(self.spec.seed + 1_000_003 * self.context.rank)
        return model, counts

    def _scorable_model(self, method: Method, trained: Trained | None) -> tuple[Any, ParameterCounts]:
        """A fresh base model with what was stored, now or before."""
        model, counts = self.patched(method, self.base_model())
        with self.meter.phase("load"):
            if trained is not None:
                method.load_adapter_state(model, trained.state)
            elif self.spec.loaded is not None:
                load_into(method, model, self.spec.loaded)
        return model.to(self.device).eval(), counts

    def _mean_loss(self, model: Any, pairs: Sequence[Pair], tokens: Tokenization) -> float:
        loss, pad_token_id = TargetLoss(model).eval(), tokens.tokenizer.pad_token_id

        def losses_of(chosen: Sequence[Pair]) -> torch.Tensor:
            return loss.of(tokens.architecture.batch(chosen, pad_token_id).to(self.device))[None]

        (mean,) = mean_losses(losses_of, pairs, self.spec.train.batch_size, self.device)
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
            self.spec.decode,
            self.device,
            context.rank,
            context.ranks,
            context.progress,
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
                method, model, tokens.tokenizer, tokens.architecture, mine, self.spec.decode, self.device
            )
            own = {"cost": cost.model_dump(mode="json")}
        except Exception:  # noqa: BLE001 - a scored trial is worth more than one more cost of it
            traceback.print_exc()
        shares = share_json(self.context, "merged_decode", own)
        if not all(shares):
            return None
        return over_ranks([MergedDecode.model_validate(share["cost"]) for share in shares])

    def _gathered_costs(self) -> list[RankCost]:
        cost = self.meter.rank_cost(self.context.rank)
        shares = share_json(self.context, "costs", cost.model_dump(mode="json"))
        return [RankCost.model_validate(share) for share in shares]

    def _predicted(
        self, architecture: Architecture, pairs: Mapping[Split, Sequence[Pair]], num_decoded: int
    ) -> Prediction | None:
        """What the planner would have said; None where the method cannot be traced."""
        from bench.plan.cost_model import (
            predict,  # imports of its own, which no trial should carry while it is measured
        )
        from bench.plan.devices import known_gpu, measured_cpu
        from bench.plan.trace import TraceError
        from bench.plan.workload import workload

        name = device_name(self.device)
        device = known_gpu(name) if self.device.type == "cuda" else measured_cpu(self.context.threads)
        try:
            return predict(self.spec, workload(self.spec, architecture, pairs, num_decoded), device, name)
        except TraceError:
            return None
        except Exception:  # noqa: BLE001 - a finished trial is worth more than what was expected of it
            traceback.print_exc()
            return None

    def _scores(
        self,
        task: Task,
        examples: Sequence[Example],
        predictions: Sequence[str],
        truncated: Sequence[bool],
        loss: float,
    ) -> Scores:
        system = score_examples(examples, predictions, task.scoring, truncated, task.config.metrics)
        of_sources = [system.of_source(index) for index in range(len(examples))]
        write_predictions(self.context.outbox, examples, predictions, truncated, of_sources)
        return with_perplexity(system.scores(), loss, task.config.loss_references)


def _what_training_tells(trained: Trained | None) -> JsonDict:
    """The fields of a record that say how a trial was trained; all absent where nothing was."""
    return {
        "dev_loss": trained.best.loss if trained else None,
        "best_step": trained.best.step if trained else None,
        "train_curve": trained.train_curve if trained else [],
        "dev_curve": trained.dev_curve if trained else [],
        "train": trained.cost if trained else None,
    }


def _say(message: str) -> None:
    """A line of the rank's log."""
    print(message, file=sys.stderr)  # noqa: T201


def seed_everything(seed: int) -> None:
    """Seed Python and torch. Data order has generators of its own."""
    random.seed(seed)
    torch.manual_seed(seed)
