"""The record of a trial: immutable and versioned. Reports are rendered from records.

Absent is ``null``, never a sentinel. "Succeeded with an error" cannot be written: an outcome is Completed, Probed or
Failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from bench.schema.trial import DEFAULT_BRANCH, JsonDict, Spec, TrialSpec

Reason = Literal[
    "out_of_memory",
    "diverged",
    "timed_out",
    "error",
    "infeasible",
    "cancelled",
    "worker_lost",
    "hung",
    "start_timed_out",
    "node_lost",
    "preempted",
    "driver_lost",
]


@dataclass(frozen=True)
class ReasonTraits:
    """What a reason says of a trial that failed."""

    is_symptom: bool = False
    """Whether the fault seems to be elsewhere, in the machine or in another rank. Then the trial may succeed when it is
    tried again, reports of ranks that had finished count, and another rank's own failure is the better reason."""
    counts: bool = True
    """Whether it counts as an attempt of the trial. A failure that no trial can cause does not."""


REASONS: dict[Reason, ReasonTraits] = {
    "out_of_memory": ReasonTraits(),
    "diverged": ReasonTraits(),
    "timed_out": ReasonTraits(),
    "error": ReasonTraits(),
    "infeasible": ReasonTraits(),
    "cancelled": ReasonTraits(counts=False),
    "worker_lost": ReasonTraits(is_symptom=True),
    "hung": ReasonTraits(is_symptom=True),
    "start_timed_out": ReasonTraits(is_symptom=True),
    "node_lost": ReasonTraits(is_symptom=True, counts=False),
    "preempted": ReasonTraits(is_symptom=True, counts=False),
    "driver_lost": ReasonTraits(is_symptom=True, counts=False),
}


class ParameterCounts(Spec):
    """Elements, not bytes. Trained and stored differ where a reparametrisation is thrown away after training."""

    trained: int
    stored: int
    total: int = Field(description="of the patched model: frozen and trained")
    coverage: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="kind of layer to places that the method adapts, of those that it could; empty in older records",
    )

    @property
    def trained_fraction(self) -> float:
        return self.trained / self.total

    @property
    def coverage_text(self) -> str | None:
        """A text with the kinds of layers that are adapted, with counts, and those that are not; None if unknown."""
        if not self.coverage:
            return None
        reached = [f"{kind} {adapted}/{number}" for kind, (adapted, number) in self.coverage.items() if adapted]
        left = [kind for kind, (adapted, _) in self.coverage.items() if not adapted]
        text = f"adapts {', '.join(reached) or 'no layer'}"
        return f"{text}; leaves {', '.join(left)}" if left else text


# The phase in which a rank waits for the files of the base model: no cost of a method.
DOWNLOAD = "download"


class PhaseCost(Spec):
    """Time and memory of one phase on one rank."""

    seconds: float
    peak_memory_bytes: int = Field(description="highest use within the phase; memory_method says of what")
    start_memory_bytes: int
    device_peak_reserved_bytes: int | None = Field(None, description="CUDA caching allocator, None on CPU")
    energy_joules: float | None = Field(None, description="of the whole device; None where it does not report it")


class RankCost(Spec):
    """What one rank spent, by phase, in order of the flow."""

    rank: int
    phases: dict[str, PhaseCost]
    baseline_memory_bytes: int = Field(description="after imports, before the model is loaded")
    memory_method: str = Field(description="where the bytes were read, e.g. cuda_allocated or vm_hwm")
    device: str | None = Field(None, description="name of its device; None before 2026-11-30")


class TrainCost(Spec):
    """Throughput of the optimiser steps in the steady window (warm-up, compiling, validation and saving excluded)."""

    steps: int
    steady_steps: int = Field(description="steps in the window that the rates below are taken from")
    tokens_per_second: float | None = Field(description="useful (non-padding) tokens, over all ranks")
    target_tokens_per_second: float | None
    useful_token_fraction: float = Field(description="useful tokens / tokens in the padded batches")
    step_seconds_p50: float | None
    step_seconds_p90: float | None
    step_seconds_p99: float | None
    step_seconds_mean: float | None = Field(None, description="of the window; None before 2026-11-30")
    skipped_steps: int = Field(description="optimiser steps that the engine skipped; from 2026-11-29 on a divergence")
    optimizer_period: int = Field(
        1, description="steps from one round of rare work of the optimiser to the next; 1: none, or not known"
    )
    unreached_tensors: list[str] = Field(
        default_factory=list, description="of experts: trained tensors that no token has brought a gradient"
    )
    continued_after_steps: list[int] = Field(
        default=[],
        description="where a retry went on from a checkpoint, once for each time; times, rates and memory cover the "
        "part after the last. Empty: one attempt trained it all",
    )

    @property
    def step_seconds(self) -> float | None:
        """Mean of a step, which a forecast is of; the median in older records."""
        return self.step_seconds_p50 if self.step_seconds_mean is None else self.step_seconds_mean


DecodeEngine = Literal["batched", "transformers", "likelihood"]


class DecodeCost(Spec):
    """Generation: new tokens up to and including the end token, over all ranks."""

    sources: int
    new_tokens: int
    tokens_per_second: float | None
    seconds: float
    engine: DecodeEngine | None = Field(
        None,
        description="who searched: our batched decoder, or generate of transformers; likelihood: nothing was written, "
        "but the tokens of choices were scored; None: before 2026-11-25",
    )


class MergedDecode(Spec):
    """The same few sources decoded twice: with the adapter folded into the base weights, and with it beside them."""

    merged: DecodeCost
    unmerged: DecodeCost
    equal_texts: int = Field(
        description="sources with one text both ways; the rest is rounding, which bf16 has more of"
    )

    @property
    def time_ratio(self) -> float | None:
        """Seconds per new token merged, as a multiple of unmerged; None where either was not timed."""
        merged, unmerged = self.merged.tokens_per_second, self.unmerged.tokens_per_second
        return unmerged / merged if merged and unmerged else None


class TrainPoint(Spec):
    """One optimiser step. Loss is the mean over target tokens of the whole batch, label smoothing included."""

    step: int
    loss: float
    learning_rate: float


class DevPoint(Spec):
    """Mean loss per target token over the dev pairs, without label smoothing."""

    step: int
    loss: float


# Why a metric that needs a model of its own is absent, though it could have been computed.
NOT_ASKED_FOR = "not asked for"
# Tasks whose setting ``revision`` is a commit of the hub.
TASKS_OF_THE_HUB = frozenset({"bench.tasks.hub:Hub", "bench.tasks.chat:Chat"})


class Scores(Spec):
    """Test scores of the predictions."""

    values: dict[str, float] = Field(description="metric to value over all test sources")
    by_tag: dict[str, dict[str, float]] = Field(default_factory=dict, description="tag to metric to value")
    sources_by_tag: dict[str, int] = Field(default_factory=dict)
    signatures: dict[str, str] = Field(description="metric to tokeniser, case, references and library version")
    higher_is_better: dict[str, bool] = Field(description="metric to direction; a metric without one is not here")
    absent: dict[str, str] = Field(default_factory=dict, description="metric that was not to be had, to the reason")
    scoring: JsonDict | None = Field(None, description="settings of bench.task.Scoring; None in older records")
    remarks: list[str] = Field(default_factory=list, description="what makes them doubtful; none in older records")


class Forecast(Spec):
    """The cost that the planner forecasts of a trial, from its specification and the lengths of its data."""

    device: str
    flops: float = Field(description="of all training steps on all ranks, by PyTorch's formulas")
    step_seconds: float | None = Field(
        description="mean of an optimiser step; None on a device that nothing is known of"
    )
    train_seconds: float | None
    total_seconds: float | None = Field(description="start-up, training, validation, decoding")
    memory_bytes: dict[str, int] = Field(
        description="part to bytes on one rank at the peak of training; on a CPU beyond what was there before the model"
    )
    decode_memory_bytes: int = Field(description="likewise at the peak of decoding, all parts together")
    phase_memory_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="phase to bytes on one rank at its peak, in order of the flow; empty before 2026-11-29",
    )

    @property
    def peak_memory_bytes(self) -> int:
        """Bytes at the peak of training."""
        return sum(self.memory_bytes.values())

    def without_seconds(self, device: str) -> Forecast:
        """The same for devices of these names, whose rates are not known."""
        unknown = dict.fromkeys(("step_seconds", "train_seconds", "total_seconds"))
        return self.model_copy(update={"device": device, **unknown})

    @property
    def phases(self) -> dict[str, int]:
        """Phase to bytes at its peak. Older records know two phases."""
        return self.phase_memory_bytes or {"train": self.peak_memory_bytes, "decode": self.decode_memory_bytes}


class Ran(Spec):
    """The outcome of every trial that ran to its end."""

    parameters: ParameterCounts
    dev_loss: float | None = Field(
        description="of the state that was scored, also of one that nothing has trained; None where it was not measured"
    )
    stored_dev_loss: float | None = Field(
        None,
        description="of the stored state in a fresh base model, where it was scored, equal to dev_loss but for "
        "rounding; None in a trial of the stage tune that was not scored, and before 2026-11-29",
    )
    best_step: int | None
    train_curve: list[TrainPoint]
    dev_curve: list[DevPoint]
    train: TrainCost | None
    ranks: list[RankCost]
    adapter_bytes: int = Field(description="size on disk of adapter.safetensors; 0 where nothing was trained")
    data: JsonDict = Field(description="examples per split, truncations, oddities, sha256 of the files that were read")
    predicted: Forecast | None = Field(None, description="by the planner; None where nothing is trained")
    merged_decode: MergedDecode | None = Field(
        None,
        description="None where the method cannot be merged or a rank could not (see its log), in the stage tune, "
        "where trials shared a launch, in a final trial if the sweep has the stage cost or another seed comes first, "
        "and before 2026-11-25",
    )


class Completed(Ran):
    """A final trial ran to its end and was scored on the test split."""

    status: Literal["completed"] = "completed"
    scores: Scores
    test_loss: float
    decode: DecodeCost


class Probed(Ran):
    """A trial of the stage tune or cost ran to its end. No rank of it has read the test split."""

    status: Literal["probed"] = "probed"
    dev_scores: Scores | None = Field(None, description="of predictions for the dev sources, where the stage asks")
    decode: DecodeCost | None = Field(None, description="of the dev sources, where they were decoded")


class Failed(Spec):
    """The trial ended early. A failure is a result: it is a row of the report."""

    status: Literal["failed"] = "failed"
    reason: Reason
    phase: str | None = Field(description="where in the flow; None before a rank started")
    rank: int | None
    message: str
    traceback: str | None = None
    log_tail: str | None = None

    @property
    def is_symptom(self) -> bool:
        """Whether the fault is elsewhere, see :class:`ReasonTraits`."""
        return REASONS[self.reason].is_symptom


Outcome = Annotated[Completed | Probed | Failed, Field(discriminator="status")]


class Provenance(Spec):
    """What made the record: sources, versions and machine, so that it can be repeated."""

    tuneoff_version: str
    code_sha256: str = Field(
        description="of the Python sources that change an answer or its cost, which ANSWERING in "
        "bench/measure/provenance.py lists; before 2026-11-30 of all of bench and methods"
    )
    git_revision: str | None
    git_dirty: bool | None = Field(description="whether those sources differ from the revision; None without git")
    python_version: str
    package_versions: dict[str, str]
    device: str
    cpu_cores: int
    threads_per_rank: int | None
    load_average_1min: float | None
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="variables that a list in bench/measure/provenance.py names; empty before 2026-11-25",
    )


class RankReport(Spec):
    """The report of a rank to the driver. Of a completed trial, only rank 0 reports the outcome."""

    outcome: Outcome | None
    provenance: Provenance | None
    other_outcomes: list[Outcome] = Field(
        default_factory=list,
        description="of the members of the launch after the first",
        validation_alias=AliasChoices("other_outcomes", "companions"),  # as it was called before 2026-11-30
    )
    shared_seconds: float = Field(0.0, description="of the phases that ran once for all of them")

    def member_outcome(self, number: int) -> Outcome:
        """The outcome of a member of the launch, as rank 0 reports it."""
        if self.outcome is None:
            raise RuntimeError("rank 0 reported no outcome")
        return outcome_of_member(number, self.outcome, self.other_outcomes)


def outcome_of_member(number: int, first: Outcome, others: Sequence[Outcome]) -> Outcome:
    """The outcome of a member of a launch. A launch that failed as a whole has failed for each member."""
    if number == 0 or (not others and isinstance(first, Failed)):
        return first
    return others[number - 1]


class Attempt(Spec):
    """One try at a trial."""

    attempt_id: str
    number: int
    earlier_reasons: list[Reason] = Field(default_factory=list, description="why earlier attempts were lost")


class Placement(Spec):
    """Where an attempt ran, and beside which trials. Its cost can be compared if there were none."""

    nodes: list[str] = Field(description="of each rank")
    gpus: list[list[int]] = Field(description="of each rank; empty on CPUs")
    exclusive: str = Field(description="what it had to itself: device, node or none")
    co_tenants: list[str] = Field(description="trials that ran on one of its nodes at the same time")


class Fused(Spec):
    """The fused launch of a trial: its members trained in one pass, and were then scored one after the other.

    Time and memory of what they shared are those of all of them together, and are comparable with nothing.
    """

    trials: list[str] = Field(description="ids of the others")
    shared_seconds: float = Field(description="of the phases that ran once for all; 0 where the launch failed")


class TrialResult(Spec):
    """The record: ``results/<sweep>/trials/<trial_id>/result.json``. Its existence says that the trial is done."""

    schema_version: Literal[1] = 1
    trial_id: str
    sweep: str
    spec: TrialSpec
    outcome: Outcome
    attempt: Attempt
    launcher: str
    started_at: str = Field(description="ISO 8601, UTC")
    total_seconds: float = Field(description="from launch to the end of the last rank, start-up included")
    provenance: Provenance | None = Field(description="None where no rank got far enough to tell")
    files: dict[str, str] = Field(default_factory=dict, description="file name to sha256, beside the record")
    placement: Placement | None = Field(None, description="None where nothing was started")
    fused: Fused | None = Field(None, description="None where it had its launch to itself")
    content_sha256: str | None = Field(None, description="of the record's JSON without this field")

    @model_validator(mode="before")
    @classmethod
    def _as_it_trained(cls, content: Any) -> Any:
        """Records from before 2026-11-29 do not say how a warm-up began and what decayed: there was one way each."""
        try:
            train = content["spec"]["train"]
            earlier = {
                **({"warmup_start": "first_step"} if train["warmup_steps"] else {}),
                **({"weight_decay_on": "all"} if train["weight_decay"] else {}),
            }
        except (KeyError, TypeError):
            return content  # This is no record. The checks of its fields say what is wrong with it.
        return {**content, "spec": {**content["spec"], "train": {**earlier, **train}}}

    @property
    def hub_commits(self) -> tuple[tuple[str, str, str], ...]:
        """See :func:`hub_commits`."""
        return hub_commits(self.spec)

    @property
    def varies_over_seeds(self) -> bool:
        """Whether another seed would give another answer: it was trained, or the seed drew texts or examples."""
        if isinstance(self.outcome, Failed):
            return False
        return self.outcome.train is not None or self.spec.few_shot is not None or self.spec.draws_by_seed

    @property
    def continued(self) -> bool:
        """Whether its training went on from a checkpoint of an attempt that was lost."""
        train = self.outcome.train if not isinstance(self.outcome, Failed) else None
        return train is not None and bool(train.continued_after_steps)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices of its ranks, each once; none where it is not known.

        Rates of trials on different ones are not comparable, and a trial on several is as fast as the slowest.
        """
        ranks = () if isinstance(self.outcome, Failed) else self.outcome.ranks
        named = tuple(sorted({cost.device for cost in ranks if cost.device is not None}))
        return named or (() if self.provenance is None else (self.provenance.device,))

    @property
    def has_own_costs(self) -> bool:
        """Whether its time and memory are its own: it was neither fused nor continued from a checkpoint."""
        return self.fused is None and not self.continued

    @property
    def device_seconds(self) -> float:
        """Seconds that its ranks worked, added up: the currency of a budget for tuning.

        The start of processes and the download of the base model are left out, which depend on what ran before. Of what
        a trial shared with others it has used its part. Of a failed trial, whose ranks left no account of their phases,
        wall time times ranks.
        """
        if isinstance(self.outcome, Failed):
            return self.total_seconds * self.spec.resources.ranks
        phases = [item for cost in self.outcome.ranks for item in cost.phases.items()]
        seconds = sum(phase.seconds for name, phase in phases if name != DOWNLOAD)
        if self.fused is None:
            return seconds
        shared = self.fused.shared_seconds - self.download_seconds
        return seconds - shared * (1 - 1 / (1 + len(self.fused.trials)))

    @property
    def download_seconds(self) -> float:
        """Seconds that its ranks waited for the files of the base model, which the next trial finds there."""
        if isinstance(self.outcome, Failed):
            return 0.0
        phases = [cost.phases[DOWNLOAD] for cost in self.outcome.ranks if DOWNLOAD in cost.phases]
        return max((phase.seconds for phase in phases), default=0.0)


def hub_commits(trial: TrialSpec) -> tuple[tuple[str, str, str], ...]:
    """Key of the sweep, name and commit of the model and data that a trial takes from the Hugging Face hub."""
    model, config, found = trial.model, trial.task.config, list[tuple[str, str, str]]()
    if model.commit is not None:
        found.append(("model", f"{model.path} ({model.revision or DEFAULT_BRANCH})", model.commit))
    if trial.task.target in TASKS_OF_THE_HUB and config.get("revision"):
        found.append(("task", str(config["path"]), str(config["revision"])))
    return tuple(found)
