"""The only training loop. It trains one trial on a DeepSpeed engine on every rank, or the members of a fused launch.

It names no method. K lanes, one for each trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.lane_rows import Lanes
from bench.measure.phases import PhaseMeter, StepClock, percentile, steady_start
from bench.models.adapter_files import StreamedState
from bench.models.architecture import Architecture, Pair
from bench.models.checkpointed_activations import compute_activations_twice
from bench.models.shared_heads import sharing_heads
from bench.schema.record import TrainCost
from bench.schema.trial import ResourceSpec
from bench.store.crash_points import reached
from bench.train.checkpoint import Checkpoints, shared_hashes
from bench.train.compiled import Compiler, compiled_layers
from bench.train.data_start import start_from_examples
from bench.train.deepspeed_engine import make_engine
from bench.train.engine_checkpoint import load_engine, save_engine
from bench.train.fused_engine import FusedEngine
from bench.train.gradient_watch import GradientWatch
from bench.train.lane import Diverged, Lane, Trained, num_targets
from bench.train.loss import TargetLoss
from bench.train.loss_scale import is_exhausted, own_scale
from bench.train.optimizer import optimizer_of
from bench.train.order import micro_batches, rows_evaluated_at_once, rows_trained_at_once
from bench.train.zero3 import free

# Losses are reduced over ranks, checked and reported every so many steps, because a GPU would be slower if the host
# waited for it at every step.
REPORT_EVERY_STEPS = 5


@dataclass
class Training:
    """The training of one trial on one of its ranks, or of all members of a fused launch on its only rank.

    The loss of a step is the mean over all target tokens of the global batch, however ranks and micro-batches divide
    it, so that the number of ranks changes rounding alone. ``loss_reduction`` may ask for another scale of gradients,
    the sum over a sequence's target tokens averaged over sequences; the reported loss stays the mean over tokens.

    Fused trials have equally many rows in every pass, and models that share frozen weights. A trial that ends before
    the others, or diverges, has no rows in later passes.
    """

    lanes: Sequence[Lane]
    architecture: Architecture
    resources: ResourceSpec
    rank: int
    device: torch.device
    pad_token_id: int
    meter: PhaseMeter
    checkpoints: Checkpoints | None = None  # of a single trial
    shared_rows: Lanes = field(default_factory=Lanes, init=False)
    compiler: Compiler = field(default_factory=Compiler, init=False)
    compiling_steps: set[int] = field(default_factory=set, init=False)
    file_hashes: dict[str, str] = field(default_factory=dict, init=False)  # of what lies beside the last checkpoint

    def run(self, pairs: Sequence[Pair], dev_pairs: Sequence[Pair]) -> list[Trained | Diverged]:
        """Train, from the last checkpoint if there is one.

        Returns:
            For each lane the state with the lowest dev loss, or how it diverged.

        Raises:
            Diverged: All lanes have diverged.
        """
        models = [lane.model for lane in self.lanes]
        compiled = compiled_layers(models) if self.resources.compile else nullcontext(Compiler())
        with sharing_heads(*models), compiled as self.compiler:
            return self._run(pairs, dev_pairs)

    def _run(self, pairs: Sequence[Pair], dev_pairs: Sequence[Pair]) -> list[Trained | Diverged]:
        with self.meter.phase("initialise"):
            for lane in self.lanes:
                lane.begin(pairs, self.device)
                start_from_examples(lane.method, lane.model, pairs, lane.seed, self.architecture, self.device)
            engine = self._engine()
            for lane in self.lanes:
                lane.watch = GradientWatch(lane.method, lane.model, self.device)
            step = self._continued(engine)
            clock = StepClock(self.device)
        with self.meter.phase("train"):
            engine.train()
            clock.resume()
            while running := [number for number, lane in enumerate(self.lanes) if step < lane.steps]:
                step += 1
                self._step(engine, running, pairs, step)
                if self.rank == self.resources.ranks - 1:
                    reached("rank.after_step")
                clock.tick()
                if self.compiler.worked():
                    self.compiling_steps.add(step)
                evaluating = [number for number in running if self.lanes[number].evaluates_after(step)]
                saving = self._saves_after(step)
                for number in running if saving or step % REPORT_EVERY_STEPS == 0 else evaluating:
                    self.lanes[number].report(pairs, clock.durations())
                self._require_survivors()
                if evaluating := [number for number in evaluating if self.lanes[number].diverged is None]:
                    with self.meter.phase("validate"):
                        self._validate(engine, evaluating, dev_pairs, step)
                        self._require_survivors()
                    self.compiler.worked()  # Compiling for validation is no part of a step.
                    engine.train()
                    clock.resume()
                if saving:
                    with self.meter.phase("checkpoint"):
                        self._save(engine, step)
                    clock.resume()
        results = [
            lane.diverged or lane.trained(self._cost(lane, clock.durations(), pairs, int(engine.skipped_steps)))
            for lane in self.lanes
        ]
        if self.resources.zero_stage == 3:
            free(engine)
        else:
            engine.destroy()
        return results

    @property
    def micro_batch_size(self) -> int:
        """Pairs of one trial in a forward pass of one rank."""
        return rows_trained_at_once(self.lanes[0].train, self.resources.ranks)

    @property
    def _kept_by_engine(self) -> bool:
        """Whether DeepSpeed alone has what is trained and the moments, in pieces."""
        return self.resources.zero_stage > 0

    def _continued(self, engine: Any) -> int:
        """Take up the last checkpoint. Returns the steps that were made before it; 0 where there is none."""
        if self.checkpoints is not None:
            (lane,) = self.lanes
            self.checkpoints = self.checkpoints.sealed_for(lane.order)
            if lane.state_folder is not None:
                lane.state_folder = self.checkpoints.folder
            if (found := self.checkpoints.latest(self.device)) is not None:
                if self._kept_by_engine:
                    load_engine(engine, self.checkpoints.folder, found.step)
                lane.continue_from(found, self.device, self._kept_by_engine)
                self.file_hashes = dict(found.facts.get("files", {}))
                if (scale := own_scale(engine)) is not None:
                    scale.load_state_dict(found.facts["loss_scale"])
                    engine.skipped_steps = found.facts["skipped_steps"]
        return self.lanes[0].done

    def _saves_after(self, step: int) -> bool:
        return self.checkpoints is not None and step < self.lanes[0].steps and step % self.checkpoints.every_steps == 0

    def _save(self, engine: Any, step: int) -> None:
        if self.checkpoints is None:
            return
        (lane,) = self.lanes
        files = save_engine(engine, self.checkpoints.folder, step) if self._kept_by_engine else {}
        if files is None:
            return
        checkpoint = lane.checkpoint(step, self.device, self._kept_by_engine)
        if (scale := own_scale(engine)) is not None:
            checkpoint.facts.update(loss_scale=scale.state_dict(), skipped_steps=engine.skipped_steps)
        if isinstance(lane.state, StreamedState):
            files |= self._state_hashes(self.checkpoints.folder, lane.state)
        if files:
            self.file_hashes = checkpoint.facts["files"] = dict(sorted(files.items()))
        if self.rank == 0:
            if files:
                reached("rank.within_checkpoint")
            if self.checkpoints.save(checkpoint):
                lane.sealed_state = (checkpoint.facts.get("best_files") or {}).get("folder")

    def _state_hashes(self, folder: Path, state: StreamedState) -> dict[str, str]:
        """Hashes of the files of a state. The folder of one that was hashed before has its step, so it is unchanged."""
        known = {name: self.file_hashes[name] for name in state.files if name in self.file_hashes}
        return known if len(known) == len(state.files) else shared_hashes(folder, state.files, self.device)

    def _engine(self) -> Any:
        lane = self.lanes[0]
        loss = TargetLoss(lane.model, lane.train.label_smoothing)
        if lane.train.gradient_checkpointing:
            compute_activations_twice(lane.model)
        if len(self.lanes) == 1:
            return make_engine(
                loss, lane.optimizer, lane.scheduler, lane.train, self.resources, self.micro_batch_size, self.device
            )
        lane.method.fuse([lane.model for lane in self.lanes], self.shared_rows)
        return FusedEngine(loss, self.lanes, self.shared_rows, lane.train.batch_size // self.micro_batch_size)

    def _step(self, engine: Any, running: Sequence[int], pairs: Sequence[Pair], step: int) -> None:
        """Make one optimiser step in these lanes."""
        lanes = [self.lanes[number] for number in running]
        batches = [lane.order[step - 1] for lane in lanes]
        chosen = [[pairs[index] for index in batch] for batch in batches]
        divisors = [lane.divisor(batch) for lane, batch in zip(lanes, chosen, strict=True)]
        learning_rates = [lane.learning_rate for lane in lanes]
        passes = list(zip(*map(self._micro_batches, batches), strict=True))
        for lane in lanes:
            lane.passes_begin(step)
        totals: list[torch.Tensor] = []
        for number, micros in enumerate(passes, start=1):
            with self.shared_rows.sharing(running):
                losses = self._losses(engine, [[pairs[index] for index in micro] for micro in micros])
                means = [loss / divisor for loss, divisor in zip(losses.unbind(), divisors, strict=True)]
                # The engine divides by the accumulation steps and averages gradients over ranks: undo both.
                minimised = torch.stack(means).sum() * (len(passes) * self.resources.ranks)
                lanes[0].require_graph(minimised)
                engine.backward(minimised)
            if number == len(passes):
                for lane in lanes:
                    lane.gradients_came(step)
                    lane.method.before_step(lane.model, step)
            skipped_before = engine.skipped_steps
            engine.step()
            if engine.skipped_steps > skipped_before:
                self._skipped(engine, lanes, step)
            totals.append(losses.detach())
        for at, lane in enumerate(lanes):
            total = torch.stack([losses[at] for losses in totals]).sum()
            lane.stepped(step, total / num_targets(chosen[at]), learning_rates[at])

    def _skipped(self, engine: Any, lanes: Sequence[Lane], step: int) -> None:
        """A step is skipped where gradients are not finite. In fp16 that is how the scale of losses is found."""
        if self.resources.precision != "fp16":
            raise Diverged(f"the gradient of step {step} is not finite")
        if is_exhausted(engine):
            raise Diverged(f"the gradient of step {step} is not finite at any scale of the loss")
        for lane in lanes:
            if engine.skipped_steps == lane.steps:
                raise Diverged(
                    f"all {lane.steps} steps were skipped, because gradients overflowed at every scale of the loss "
                    "that was tried, so that nothing is trained; train longer, or set resources.precision: bf16"
                )
            lane.step_was_skipped()

    def _micro_batches(self, batch: Sequence[int]) -> list[Sequence[int]]:
        return micro_batches(batch, self.rank, self.resources.ranks, self.micro_batch_size)

    def _losses(self, engine: Any, chosen: Sequence[Sequence[Pair]]) -> torch.Tensor:
        """The loss of each lane's pairs ``(K,)``, summed over target tokens."""
        together = [pair for of_lane in chosen for pair in of_lane]
        batch = self.architecture.batch(together, self.pad_token_id).to(self.device)
        losses: torch.Tensor = engine(**vars(batch), shares=[num_targets(of_lane) for of_lane in chosen])
        return losses

    def _validate(self, engine: Any, evaluating: Sequence[int], dev_pairs: Sequence[Pair], step: int) -> None:
        engine.eval()
        with ExitStack() as scored:
            for number in evaluating:
                scored.enter_context(self.lanes[number].scored_weights())
            self._validate_scored(engine, evaluating, dev_pairs, step)

    def _validate_scored(self, engine: Any, evaluating: Sequence[int], dev_pairs: Sequence[Pair], step: int) -> None:
        with self.shared_rows.sharing(evaluating):
            losses = mean_losses(
                lambda chosen: self._losses(engine, [chosen] * len(evaluating)),
                dev_pairs,
                rows_evaluated_at_once(self.lanes[0].train, self.resources.ranks),
                self.device,
            )
        for number, loss in zip(evaluating, losses, strict=True):
            self.lanes[number].evaluated(step, loss)

    def _require_survivors(self) -> None:
        diverged = [lane.diverged for lane in self.lanes if lane.diverged is not None]
        if len(diverged) == len(self.lanes):
            raise diverged[0]

    def _cost(self, lane: Lane, durations: Sequence[float], pairs: Sequence[Pair], skipped_steps: int) -> TrainCost:
        """The cost of a lane's steps in this attempt. Time and padding are those of passes, which may be fused."""
        seconds_of = dict(enumerate(durations[: lane.steps - lane.done], start=lane.done + 1))
        steady = self._steady(list(seconds_of))
        durations = [seconds_of[step] for step in steady]
        window = torch.tensor([sum(durations)], dtype=torch.float64, device=self.device)
        dist.all_reduce(window, op=dist.ReduceOp.MAX)
        seconds = float(window)
        batches = [[pairs[index] for index in lane.order[step - 1]] for step in steady]
        tokens = sum(pair.num_tokens for batch in batches for pair in batch)
        targets = sum(map(num_targets, batches))
        padded = sum(self._padded_tokens(pairs, step) for step in steady)
        return TrainCost(
            steps=lane.steps,
            steady_steps=len(steady),
            tokens_per_second=tokens / seconds if seconds else None,
            target_tokens_per_second=targets / seconds if seconds else None,
            useful_token_fraction=tokens / padded,
            step_seconds_p50=percentile(durations, 0.5),
            step_seconds_p90=percentile(durations, 0.9),
            step_seconds_p99=percentile(durations, 0.99),
            step_seconds_mean=seconds / len(steady) if seconds else None,
            skipped_steps=skipped_steps,
            optimizer_period=optimizer_of(lane.train).period(),
            continued_after_steps=lane.continued_after_steps,
            unreached_tensors=lane.watch.unreached if lane.watch is not None else [],
        )

    def _steady(self, steps: Sequence[int]) -> list[int]:
        """The steps after the warm-up in which no rank compiled; if ranks compiled in each of them, all of them."""
        steady = steps[steady_start(len(steps)) :]
        compiling = torch.tensor([step in self.compiling_steps for step in steady], device=self.device).int()
        dist.all_reduce(compiling, op=dist.ReduceOp.MAX)
        return [step for step, late in zip(steady, compiling.tolist(), strict=True) if not late] or list(steady)

    def _padded_tokens(self, pairs: Sequence[Pair], step: int) -> float:
        """One lane's share of the tokens of a step on all ranks, padding included."""
        batches = [lane.order[step - 1] for lane in self.lanes if step <= lane.steps]
        together = (
            [pairs[index] for micro in micros for index in micro]
            for rank in range(self.resources.ranks)
            for micros in zip(
                *(micro_batches(batch, rank, self.resources.ranks, self.micro_batch_size) for batch in batches),
                strict=True,
            )
        )
        return sum(map(self.architecture.padded_tokens, together)) / len(batches)


def mean_losses(
    losses_of: Callable[[Sequence[Pair]], torch.Tensor],
    pairs: Sequence[Pair],
    batch_size: int,
    device: torch.device,
) -> list[float]:
    """Mean loss per target token over ``pairs`` for each of K models. All ranks of the process group share the work.

    Every rank makes the same number of forward passes, as ZeRO-3 needs. A rank without a batch of its own repeats
    another one, which does not count.

    Args:
        losses_of: Gives the loss of some pairs for each model, summed, ``(K,)``. The models are in evaluation mode.
        pairs: All pairs; this function divides them among the ranks.
        batch_size: Pairs per forward pass.
        device: Of the models.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    by_length = sorted(range(len(pairs)), key=lambda index: pairs[index].num_tokens)
    batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    totals: list[torch.Tensor] = []
    with torch.no_grad():
        for first in range(0, len(batches), ranks):
            counts = first + rank < len(batches)
            losses = losses_of([pairs[index] for index in (batches[first + rank] if counts else batches[0])])
            totals.append(losses.double() if counts else torch.zeros_like(losses, dtype=torch.float64))
    total = torch.stack(totals).sum(0).to(device)
    dist.all_reduce(total)
    return (total / num_targets(pairs)).tolist()
