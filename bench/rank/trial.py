"""What one rank does, readable top to bottom: load, patch, train, validate, save, decode, score.

Every launcher calls :func:`run_rank` in a fresh process. This module and those below import torch and DeepSpeed.
"""

from __future__ import annotations

import platform
import random
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from bench.measure.phases import PhaseMeter
from bench.measure.provenance import code_sha256, collect, installed_version, sources_sha256
from bench.method import Method, MethodError
from bench.models import base as models
from bench.models.adapter import save_adapter
from bench.models.architecture import Architecture, Pair
from bench.models.coverage import patch_and_count
from bench.models.hub_files import download, is_on_hub
from bench.models.loaded import load_into, size_of
from bench.models.masters import compute_in
from bench.models.split_data import data_summary
from bench.models.token_check import lost_references
from bench.plugins.registry import RegistryError, load_any, make_method
from bench.plugins.source import PluginError, plugin_source
from bench.rank.context import (
    RankContext,
    device_name,
    failure,
    in_shards,
    join_process_group,
    member_context,
    select_device,
    share_json,
    tell_downloaded,
    tell_phase,
    wait_for_all,
)
from bench.rank.data import TrialData, read_data
from bench.rank.scoring import Scored, Scoring
from bench.schema.record import (
    DOWNLOAD,
    Completed,
    Forecast,
    Outcome,
    ParameterCounts,
    Probed,
    Provenance,
    Ran,
    RankCost,
    RankReport,
)
from bench.schema.trial import TrialSpec
from bench.shards.slices import gather_in_forward, misread, place
from bench.store.outbox import member_prefix
from bench.task import Split
from bench.train.checkpoint import Checkpoints
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Diverged, Lane, Trained
from bench.train.loop import Training
from bench.train.zero3 import give_freed_memory_back

# Packages that compute what a checkpoint continues.
SEALED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes")
# For a state that is not kept in memory, in the folder of an attempt.
STATE_FOLDER = ".state"


def run_rank(spec: TrialSpec, context: RankContext, other_members: Sequence[TrialSpec] = ()) -> RankReport:
    """Run this rank's part of a trial, or of all members of a fused launch. Exceptions become outcomes."""
    meter: PhaseMeter | None = None
    provenance: Provenance | None = None
    try:
        if context.driver_code_sha256 != sources_sha256():
            raise RuntimeError(  # noqa: TRY301
                "this rank has other sources of bench and methods than the driver had at its start; install the same "
                "revision on all nodes, or let the sweep ship its code. If they were edited meanwhile, run the same "
                "command again, with --retry-failed"
            )
        require_plugins(spec)
        device = select_device(spec, context)
        torch.set_num_threads(context.threads)
        quantizes = ("bitsandbytes",) if spec.model.stored_in is not None else ()
        provenance = collect(device_name(device), context.threads, quantizes)
        contexts = [context, *(member_context(context, number) for number in range(1, 1 + len(other_members)))]
        meter = PhaseMeter(device, on_enter=partial(tell_phase, contexts))
        if in_shards(spec) and device.type == "cpu":
            give_freed_memory_back()
        join_process_group(context, device)
        if is_on_hub(spec.scored_model):
            with meter.phase(DOWNLOAD):
                download(spec.scored_model, partial(tell_downloaded, contexts) if context.rank == 0 else None)
                wait_for_all(context, "downloaded")
        trials = [
            _Trial(each, own, device, meter, not other_members)
            for each, own in zip([spec, *other_members], contexts, strict=True)
        ]
        report = run_trials(trials)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - every failure is a result
        reason = failure(error, meter.current if meter else None, context.rank)
        return RankReport(outcome=reason, provenance=provenance)
    return report.model_copy(update={"provenance": provenance})


def require_plugins(spec: TrialSpec) -> None:
    """Check that this node has the plugins of a trial in the version that the driver has.

    Raises:
        RegistryError: It has not. The message names plugin, node and remedy.
    """
    for kind, part in spec.resolved:
        if part.source_sha256 is None:
            continue
        where = f"node {platform.node()}: the {kind} {part.name!r} of {part.origin}"
        try:
            load_any(kind, part.target)
            source = plugin_source(part.target)
        except (PluginError, RegistryError) as error:
            what = "it and what it imports must be on all nodes"
            raise RegistryError(f"{where} is missing here, {what}: {error}") from error
        if source is None or source.sha256() != part.source_sha256:
            here = source.origin if source is not None else "Tuneoff"
            raise RegistryError(
                f"{where} is another version here ({here}) than where the sweep was started; install the same one on "
                "all nodes, or uninstall it here and let the sweep ship its code"
            )


def run_trials(trials: Sequence[_Trial]) -> RankReport:
    """Read the data, train all members of a launch in one pass, and finish one member after the other."""
    first = trials[0]
    data = first.read()
    trains = first.spec.loaded is None and first.method(data).trains
    results: Sequence[_TrainedTrial | None] = train(trials, data) if trains else [None]
    if len(trials) == 1:
        return RankReport(outcome=first.finish(data, results[0]), provenance=None)
    shared_seconds = first.meter.seconds
    outcomes = [trial.finish_as_member(data, result) for trial, result in zip(trials, results, strict=True)]
    for number, trial in enumerate(trials[1:], start=1):
        # The driver collects the files of all members from one folder.
        for path in trial.context.outbox.iterdir():
            path.rename(first.context.outbox / f"{member_prefix(number)}{path.name}")
    return RankReport(outcome=outcomes[0], provenance=None, other_outcomes=outcomes[1:], shared_seconds=shared_seconds)


def train(trials: Sequence[_Trial], data: TrialData) -> list[_TrainedTrial]:
    """Train trials whose models share the frozen weights of one base model."""
    first = trials[0]
    bases = copies_sharing_weights(first.base_model("train"), len(trials))
    methods = [trial.method(data) for trial in trials]
    patched = [trial.patched(method, base) for trial, method, base in zip(trials, methods, bases, strict=True)]
    training = Training(
        lanes=[
            Lane(
                method,
                model,
                trial.spec.train,
                trial.spec.seed,
                trial.context.progress,
                trial.spec.stop_after_steps,
                trial.context.outbox / STATE_FOLDER if in_shards(trial.spec) else None,
            )
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
class _TrainedTrial:
    result: Trained | Diverged
    counts: ParameterCounts


@dataclass
class _Trial:
    """One rank's part of a trial, phase by phase."""

    spec: TrialSpec
    context: RankContext
    device: torch.device
    meter: PhaseMeter
    alone: bool = True  # False: the launch has other members, so that its cost is compared with no forecast

    def read(self) -> TrialData:
        """The data of this trial."""
        with self.meter.phase("load"):
            return read_data(self.spec)

    def finish_as_member(self, data: TrialData, trained: _TrainedTrial | None) -> Outcome:
        """As :meth:`finish` for a member of a fused launch. A failure becomes an outcome and ends no other member."""
        self.meter = self.meter.branch(partial(tell_phase, [self.context]))
        try:
            outcome = self.finish(data, trained)
        except Exception as error:  # noqa: BLE001 - every failure is a result
            return failure(error, self.meter.current, self.context.rank)
        if outcome is None:
            raise RuntimeError("only rank 0 has an outcome, and fused trials have one rank")
        return outcome

    def finish(self, data: TrialData, trained_trial: _TrainedTrial | None) -> Completed | Probed | None:
        """Save, score and account for the trial after its training. Returns the outcome on rank 0, None elsewhere."""
        spec = self.spec
        trained: Trained | None = None
        counts: ParameterCounts | None = None
        adapter_bytes = 0 if spec.loaded is None else size_of(spec.loaded)
        if trained_trial is not None:
            if isinstance(trained_trial.result, Diverged):
                raise trained_trial.result
            trained, counts = trained_trial.result, trained_trial.counts
            with self.meter.phase("save"):
                if self.context.rank == 0:
                    adapter_bytes = save_adapter(self.context.outbox, spec, data.task.config, trained.state)
        scored: Scored | None = None
        if spec.scored_split is not None:
            scored, counts = self._scored(data, spec.scored_split, trained, counts)
        ranks = self._gathered_costs()
        if self.context.rank != 0:
            return None
        forecast: Forecast | None = None
        if trained is not None and self.alone:
            with self.meter.phase("plan"):  # after all measurements, because it takes memory itself
                decoded = data.splits[spec.scored_split].examples if spec.scored_split else []
                choices = len(decoded[0].choices) if decoded else 0
                forecast = self._forecast(data.tokens.architecture, data.pairs, len(decoded), choices)
            names = sorted({cost.device for cost in ranks if cost.device is not None})
            if forecast is not None and len(names) > 1:  # rates are known of each kind alone
                forecast = forecast.without_seconds(" and ".join(names))
        return self._outcome(data, trained, scored, ranks, forecast, counts, adapter_bytes)

    def _outcome(
        self,
        data: TrialData,
        trained: Trained | None,
        scored: Scored | None,
        ranks: list[RankCost],
        forecast: Forecast | None,
        counts: ParameterCounts | None,
        adapter_bytes: int,
    ) -> Completed | Probed:
        assert counts is not None  # a trial trains or is scored
        stored_dev_loss = None if scored is None else scored.stored_dev_loss
        examples = {split: part.examples for split, part in data.splits.items()}
        lost = lost_references(data.tokens, examples, self.spec.decode.stop)
        ran = Ran(
            parameters=counts,
            dev_loss=stored_dev_loss if trained is None else trained.best.loss,
            stored_dev_loss=stored_dev_loss,
            best_step=None if trained is None else trained.best.step,
            train_curve=[] if trained is None else trained.train_curve,
            dev_curve=[] if trained is None else trained.dev_curve,
            train=None if trained is None else trained.cost,
            ranks=ranks,
            adapter_bytes=adapter_bytes,
            data={**data_summary(data.splits), **lost},
            predicted=forecast,
            merged_decode=None if scored is None else scored.merged_decode,
        )
        if self.spec.stage != "final":
            scores, decode = (None, None) if scored is None else (scored.scores, scored.decode)
            return Probed(**dict(ran), dev_scores=scores, decode=decode)
        assert scored is not None and scored.scores is not None and scored.test_loss is not None
        return Completed(**dict(ran), scores=scored.scores, test_loss=scored.test_loss, decode=scored.decode)

    def method(self, data: TrialData) -> Method:
        """The method as this trial configures it."""
        return make_method(self.spec.method, data.tokens.tokenizer)

    def checkpoints(self) -> Checkpoints | None:
        """The checkpoints of this trial; None if it makes none."""
        every_steps = self.spec.checkpoint_every_steps
        if every_steps is None or self.context.checkpoints is None:
            return None
        seal = {
            "trial": self.spec.trial_id,
            "code": code_sha256(),
            "versions": {name: installed_version(name) for name in SEALED_PACKAGES},
            "kind of device": self.device.type,
        }
        return Checkpoints(self.context.checkpoints, every_steps, seal)

    def base_model(self, purpose: Literal["train", "score"]) -> Any:
        """A fresh base model, frozen, once all ranks have theirs. A trial loads it once for each purpose."""
        with self.meter.phase("load"):
            dtype = models.weights_dtype(self.spec.resources.precision)
            shards_on = self.device if in_shards(self.spec) else None
            model = models.load_model(self.spec.scored_model, dtype, self.spec.train.dropout, shards_on)
            # Machines read at different speeds, and rank 0 may still save; a collective operation would give up.
            wait_for_all(self.context, f"loaded to {purpose}")
        return model

    def patched(self, method: Method, model: Any) -> tuple[Any, ParameterCounts]:
        """Patch a base model under the trial's seed, and count its parameters before an engine shards them."""
        with self.meter.phase("patch"):
            seed_everything(self.spec.seed)
            model, counts = patch_and_count(method, model)
            compute_in(models.weights_dtype(self.spec.resources.precision), model)
            if in_shards(self.spec):
                require_weights_were_read(model, self.spec.method.name)
                gather_in_forward(model)
            if method.trains and counts.trained == 0:
                raise RuntimeError(f"the method {self.spec.name} trains nothing in this model")
            # Ranks see different rows, so that each draws dropout of its own.
            seed_everything(self.spec.seed + 1_000_003 * self.context.rank)
        return model, counts

    def _scored(
        self,
        data: TrialData,
        split: Literal["dev", "test"],
        trained: Trained | None,
        counts: ParameterCounts | None,
    ) -> tuple[Scored, ParameterCounts]:
        """Score the stored adapter in a fresh base model, not whatever the engine holds at the end."""
        method = self.method(data)
        model, fresh_counts = self.patched(method, self.base_model("score"))
        with self.meter.phase("load"):
            if trained is not None:
                method.load_adapter_state(model, trained.state)
            elif self.spec.loaded is not None:
                load_into(method, model, self.spec.loaded)
        model = place(model, self.device).eval()
        scoring = Scoring(self.spec, self.context, self.device, self.meter, self._compares_merged)
        scored = scoring.score(method, model, data, split, None if trained is None else trained.best)
        return scored, counts or fresh_counts

    @property
    def _compares_merged(self) -> bool:
        """Whether decoding is also timed with the adapter merged.

        Not where another trial of the sweep does that, while tuning (the budget covers only what the choice needs),
        when trials shared a launch (their costs cannot be told apart), or where no rank holds the weights that would be
        merged.
        """
        spec = self.spec
        return spec.compares_merged and self.alone and spec.stage != "tune" and not in_shards(spec)

    def _gathered_costs(self) -> list[RankCost]:
        cost = self.meter.rank_cost(self.context.rank, device_name(self.device))
        shares = share_json(self.context, "costs", cost.model_dump(mode="json"))
        return [RankCost.model_validate(share) for share in shares]

    def _forecast(
        self, architecture: Architecture, pairs: Mapping[Split, Sequence[Pair]], num_decoded: int, choices: int
    ) -> Forecast | None:
        """The forecast of the planner; None if the method cannot be traced."""
        # The planner is imported late, because its imports take memory that would be measured.
        from bench.plan.cost_model import forecast_of
        from bench.plan.devices import known_gpu, measured_cpu
        from bench.plan.trace import TraceError
        from bench.plan.workload import workload

        name = device_name(self.device)
        try:
            work = workload(self.spec, architecture, pairs, num_decoded, choices)
            if self.device.type == "cuda":
                device = known_gpu(name)
            else:
                precision, tokens = self.spec.resources.precision, work.micro_batch_tokens
                device = measured_cpu(self.context.threads, precision, tokens=tokens)
            return forecast_of(self.spec, work, device, name)
        except TraceError:
            return None
        except Exception:  # noqa: BLE001 - a trial that has finished must not fail for the lack of a forecast
            traceback.print_exc()
            return None


def seed_everything(seed: int) -> None:
    """Seed Python and torch. The order of data has a generator of its own."""
    random.seed(seed)
    torch.manual_seed(seed)


def require_weights_were_read(model: nn.Module, method: str) -> None:
    """See that a method that has patched a model in shards saw the weights that it starts from.

    Raises:
        MethodError: Naming a tensor that was made of weights which were not there.
    """
    if (name := misread(model)) is not None:
        raise MethodError(
            f"{method}: {name} was made of a frozen weight that under resources.zero_stage: 3 lies in slices on all "
            "ranks; in patch, call the module, or read the weight within bench.method.whole([weight])"
        )
