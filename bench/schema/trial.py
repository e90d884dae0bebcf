"""What a trial asks for. Frozen values that travel as JSON; a sweep (:mod:`bench.schema.sweep`) expands to them.

Field names carry their unit; ``None`` appears only where absence has a meaning. Unknown keys are errors.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from bench.schema.deepspeed_keys import refuse_own_keys
from bench.schema.digests import sha256_of_json, sha256_of_text, slug
from bench.schema.strict_numbers import StrictNumbers

JsonDict = dict[str, Any]

# tune chooses settings by the dev split, final takes the test scores, cost measures time and memory. A trial of a sweep
# without stages is a final one.
Stage = Literal["tune", "final", "cost"]
Precision = Literal["fp32", "bf16", "fp16"]

# Raised when a hashed field comes to mean something else, or answers change for another reason, so that old records are
# not mistaken for new ones.
IDENTITY_VERSION = 2
# How long a trial trains, and how often it is validated meanwhile.
LENGTH_FIELDS = ("train.steps", "train.epochs", "train.evaluate_every_steps")
# Settings that came after ids of this version had been given. They count where they are not what was done before.
LATER_SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"warmup_fraction": 0.0, "decay_fraction": 0.1, "optimizer_options": {}},
    "decode": {"stop": ["\n"], "temperature": 0.0, "top_p": 1.0, "seed": None},
    "task": {"plugin_metrics": []},
    "task.config": {
        "answer": None,
        "choices": None,
        "system_prompt": None,
        "system_in": "system",
        "chat_options": {},
    },
    "model": {
        "quantization": None,
        "double_quantization": False,
        "quantization_compute": None,
        "checkpoint_quantization": None,
    },
    "resources": {"deepspeed": {}, "offload": None},
}
# What decode.batch_size was where it was not set, when ids of this version were given.
BATCH_SIZE_OF_IDS = 16
# Of what a trial takes, what its answer depends on; the rest is placement.
ANSWERING_RESOURCES = {"ranks", "zero_stage", "precision", "compile", "deepspeed", "offload"}
# What optimisers of Adam's family take, which have a mean of gradients and of their squares.
ADAM_FIELDS = ("adam_beta1", "adam_beta2", "adam_epsilon")
# Those of Tuneoff that are none of it. Others say so when they are checked.
OUTSIDE_ADAMS_FAMILY = frozenset({"adafactor", "lion"})
# Of a repository of the Hugging Face hub that is named without a revision.
DEFAULT_BRANCH = "main"


def on_base(label: str, stored_in: str | None) -> str:
    """A label that begins with how the weights of the base model are stored: ``on nf4, rank=4``."""
    return label if stored_in is None else ", ".join(filter(None, [f"on {stored_in}", label]))


def titled(method: str, label: str) -> str:
    """A method with a label, as people read it: ``lora (rank=4)``, ``lora on nf4 (rank=4)``; alone without a label."""
    base, _, settings = label.partition(", ") if label.startswith("on ") else ("", "", label)
    name = f"{method} {base}" if base else method
    return f"{name} ({settings})" if settings else name


def id_slug(*parts: str) -> str:
    """The readable part of a trial's id: never a hidden folder, nor what a command would take for an option."""
    return slug(*parts, length=80).lstrip(".-")


class Spec(BaseModel):
    """Base of everything that is read from YAML or travels to a rank."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Settings(StrictNumbers, Spec):
    """Base of what a sweep file says."""


class ModelSpec(Settings):
    """The base model: a local folder, a hub id, or the embedded default ``smollm2-135m``."""

    # What the driver finds out itself, and no sweep says.
    FILLED_IN: ClassVar[tuple[str, ...]] = ("weights_sha256", "checkpoint_quantization", "commit")

    path: str = Field("smollm2-135m", description="a local folder, a hub id, or the embedded model")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; null: main")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "sdpa", description="the implementation of attention, by the names of transformers"
    )
    beginning_token: bool = Field(
        True, description="whether sources begin with the token that the tokenizer puts before a text (Llama, Gemma)"
    )
    trust_remote_code: bool = Field(False, description="run code that the model's repository ships, with your rights")
    quantization: Literal["nf4", "fp4", "int8"] | None = Field(
        None,
        description="stores linear layers, without the output head, in four bits (nf4, fp4) or eight (int8), by "
        "bitsandbytes; null: as they are",
    )
    double_quantization: bool = Field(False, description="with nf4 and fp4: scales are quantised, too (QLoRA)")
    quantization_compute: Literal["fp32", "bf16"] | None = Field(
        None, description="dtype in which quantised weights are multiplied; null: that of resources.precision"
    )
    weights_sha256: str | None = Field(None, description="set by the driver for local folders; part of the identity")
    checkpoint_quantization: str | None = Field(
        None,
        description="set by the driver for models whose weights are quantised already, and stay so in memory: by what",
    )
    commit: str | None = Field(
        None, description="set by the driver for hub ids: what revision was at; part of the identity in its place"
    )

    @property
    def pinned_revision(self) -> str | None:
        """What the hub is asked for: the commit, where it is known."""
        return self.commit or self.revision

    @property
    def not_quantized(self) -> ModelSpec:
        """The same without quantising it as it is loaded."""
        settings = {"quantization": None, "double_quantization": False, "quantization_compute": None}
        return self.model_copy(update=settings)

    @property
    def stored_in(self) -> str | None:
        """How weights are stored, if they are quantised, here or in the checkpoint."""
        return self.quantization or self.checkpoint_quantization

    @model_validator(mode="after")
    def _effective(self) -> ModelSpec:
        if self.double_quantization and self.quantization not in ("nf4", "fp4"):
            raise ValueError(
                f"double_quantization has no effect with quantization: {self.quantization or 'null'}; it needs nf4 or "
                "fp4, or leave it out"
            )
        if self.quantization_compute is not None and self.quantization is None:
            raise ValueError("quantization_compute has no effect without quantization; leave it out")
        return self


class TrainSpec(Settings):
    """How a trial trains. All methods of a sweep share it; a method entry may override single fields."""

    learning_rate: PositiveFloat = Field(1e-4, description="the highest of the schedule")
    steps: PositiveInt | None = Field(
        None, description="optimiser steps; set either steps or epochs. Without both: one epoch"
    )
    epochs: PositiveFloat | None = Field(None, description="passes over the training pairs")
    batch_size: PositiveInt = Field(8, description="sequences per optimiser step over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="sequences per forward pass of one rank; null: all of its share at once. Losses of dev and test "
        "are taken on up to four times as many, and at most batch_size",
    )
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"] = Field(
        "linear",
        description="the learning rate after the warm-up, as in transformers: linear and cosine fall towards 0; "
        "inverse_sqrt falls with the root of the step; wsd (warm-up, stable, decay) stays, then falls towards 0 over "
        "decay_fraction",
    )
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="with schedule: wsd, the share of all steps, rounded up, over which the rate falls"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps over which the learning rate rises linearly"
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="the warm-up as a share of all steps, rounded up, in place of warmup_steps"
    )
    warmup_start: Literal["zero", "first_step"] = Field(
        "zero",
        description="the first learning rate of a warm-up: zero, as in transformers, or first_step: 1/warmup_steps of "
        "the highest",
    )
    optimizer: Annotated[str, Field(min_length=1)] = Field(
        "adamw",
        description="adamw, adafactor (as Lester et al. 2021, without parameter scaling), adamw_8bit, lion, muon, "
        "schedule_free, galore, apollo, the name of a plugin, or module:Class, such as torch.optim:NAdam; `tuneoff "
        "optimizers` lists them, optimizers.md says which work under which ZeRO stage",
    )
    optimizer_options: JsonDict = Field(
        default={},
        description="further arguments of the optimiser's class, such as {betas: [0.95, 0.98]} of lion",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled, as in AdamW")
    weight_decay_on: Literal["weights", "all"] = Field(
        "weights",
        description="weights: all trained tensors except norms and biases, as transformers' Trainer does; all: all "
        "trained tensors",
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of AdamW's mean of gradients")
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.999, description="decay of AdamW's mean of squared gradients"
    )
    adam_epsilon: PositiveFloat = Field(1e-8, description="of AdamW, against division by 0")
    loss_reduction: Literal["token_mean", "sequence_sum"] = Field(
        "token_mean",
        description="what is minimised: token_mean, the mean over the batch's target tokens; sequence_sum, the sum "
        "over a sequence's target tokens, averaged over sequences (Li & Liang 2021), which takes larger steps at the "
        "same learning rate",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="within the base model; null: what its configuration says. A method's own dropout is its setting",
    )
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="gradients with a larger global norm are clipped to it; 0: never"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in training only")
    gradient_checkpointing: bool = Field(
        False, description="saves memory and takes time: activations are computed again in the backward pass"
    )
    evaluate_every_steps: PositiveInt | None = Field(
        None, description="computes the dev loss every n steps and keeps the best state; null: after the last step only"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set either steps or epochs, not both")
        return self

    @model_validator(mode="after")
    def _effective(self) -> TrainSpec:
        for name in ADAM_FIELDS:
            if self.optimizer in OUTSIDE_ADAMS_FAMILY and self.differs(name):
                raise ValueError(f"{name} has no effect with optimizer: {self.optimizer}; leave it out")
        if self.warmup_steps and self.warmup_fraction:
            raise ValueError("set either warmup_steps or warmup_fraction, not both")
        if self.differs("warmup_start") and not (self.warmup_steps or self.warmup_fraction):
            raise ValueError("warmup_start has no effect with warmup_steps: 0; leave it out")
        if self.differs("weight_decay_on") and not self.weight_decay:
            raise ValueError("weight_decay_on has no effect with weight_decay: 0; leave it out")
        if self.differs("decay_fraction") and self.schedule != "wsd":
            raise ValueError(f"decay_fraction has no effect with schedule: {self.schedule}; leave it out")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction: {self.warmup_fraction:g} and decay_fraction: {self.decay_fraction:g} are more than "
                "all steps together; make one smaller"
            )
        return self

    def differs(self, name: str) -> bool:
        """Whether a setting is not its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def warmup_steps_of(self, steps: int) -> int:
        """Steps of the warm-up of a training of so many steps."""
        return self.warmup_steps or math.ceil(self.warmup_fraction * steps)


def _without_default(schema: JsonDict) -> None:
    """What a sweep leaves out here is not the default of the class: the task says it."""
    del schema["default"]


class DecodeSpec(Settings):
    """How predictions are generated, the same for every method."""

    beams: PositiveInt = Field(1, description="of beam search; 1: greedy decoding")
    max_new_tokens: PositiveInt = Field(96, description="longer texts are cut, and counted")
    min_new_tokens: Annotated[int, Field(ge=0)] = Field(0, description="tokens before a text may end")
    length_penalty: float = Field(1.0, description="exponent on the length; with beams above 1")
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="with beams above 1. true: ends when there are as many finished "
        "texts as beams; else as in transformers",
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = Field(
        0, description="no text has the same n tokens twice; those of the source are allowed. 0: no limit"
    )
    banned_token_ids: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="ids of tokens that are never generated"
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=["\n"],
        description="strings that end a text and do not belong to it; []: only the model's end tokens end it. The "
        "default is the task's: a line break for facts, e2e, webnlg, dart, csv, jsonl, parquet and hub, none for "
        "word_problems, chat, metamath and any task with choices",
        json_schema_extra=_without_default,
    )
    batch_size: PositiveInt | None = Field(
        None,
        description="sources that are decoded at once; one that ends makes room for the next. null: as many as a "
        "sixteenth of the device's memory holds, on a CPU at most 128 texts; 16 for choices, evaluations and models "
        "that `generate` of transformers decodes",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="above 0: tokens are drawn, from the softmax of the logits divided by it; 0: greedy or beams",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="with a temperature: only the likeliest tokens that together have this probability are drawn"
    )
    seed: NonNegativeInt | None = Field(
        None,
        description="with a temperature: seed of the draws, the same for every batch size; null: the trial's seed",
    )

    @property
    def padded_batch_size(self) -> int:
        """Sources, choices or questions in a batch that is computed as a whole, so that no others join it."""
        return self.batch_size or BATCH_SIZE_OF_IDS

    @model_validator(mode="after")
    def _effective(self) -> DecodeSpec:
        if self.beams == 1 and self.length_penalty != 1.0:
            raise ValueError("length_penalty has no effect with beams: 1; set beams to 2 or more, or leave it out")
        if self.beams == 1 and self.early_stopping is not False:
            raise ValueError("early_stopping has no effect with beams: 1; set beams to 2 or more, or leave it out")
        if self.temperature and self.beams > 1:
            raise ValueError(
                f"temperature: {self.temperature:g} draws a text, and beams: {self.beams} searches for a likely one; "
                "set beams: 1, or leave temperature out"
            )
        for name in ("top_p", "seed"):
            if not self.temperature and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with temperature: 0; set a temperature, or leave it out")
        return self


def _no_nvme(value: Any) -> Any:
    if value == "nvme":
        raise ValueError(
            "nvme is not offered: DeepSpeed writes to it by its operator async_io, which needs libaio and a compiler "
            "on every node, and nothing here could try it; set cpu"
        )
    return value


class OffloadSpec(Settings):
    """What is kept in the memory of the host while it is not needed on the device."""

    optimizer: Annotated[Literal["cpu"] | None, BeforeValidator(_no_nvme)] = Field(
        None,
        description="cpu: moments and fp32 copies of trained tensors, which are updated there; needs zero_stage 1 to 3",
    )
    parameters: Annotated[Literal["cpu"] | None, BeforeValidator(_no_nvme)] = Field(
        None,
        description="cpu: weights of layers that are not computing, while it trains; needs zero_stage 3. While a model "
        "is loaded and scored, the device holds its slice of all weights, with one rank all of them",
    )


def _off(value: Any) -> Any:
    return "off" if value is False else value  # as YAML reads a bare off


class ResourceSpec(Settings):
    """What one trial needs.

    Ranks, ZeRO stage, precision, whether it is compiled, offloading and what DeepSpeed is told are part of a trial's
    identity; the rest is placement.
    """

    ranks: PositiveInt = Field(1, description="processes of a trial's DeepSpeed group; each takes one device")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed divides over ranks: 1 optimiser states, 2 also gradients, 3 also parameters"
    )
    precision: Precision = Field(
        "fp32",
        description="of the base model and of the computation; trained tensors and their moments are fp32 in any case. "
        "fp16 scales losses, and skips steps whose gradients overflow; layers that a model keeps in fp32 under fp16 "
        "(wo of T5) cannot be trained or wrapped there",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is a GPU, else cpu")
    cpus_per_rank: PositiveInt | None = Field(
        None, description="cores; null: all cores of the machine, shared by the ranks"
    )
    gpus_per_rank: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="below 1, several trials of one rank share a GPU; needs exclusive: none"
    )
    exclusive: Literal["device", "node", "none"] = Field(
        "device",
        description="what no other trial may use meanwhile, so that costs can be compared: cores and GPUs, or nodes",
    )
    fuse: Annotated[Literal["off", "auto"] | Annotated[int, Field(ge=2)], BeforeValidator(_off)] = Field(
        "off",
        description="trains several trials in one pass if they allow it: as many as pay off (auto), or at most so "
        "many; never in the stage cost",
    )
    compile: bool = Field(
        False,
        description="trains with torch.compile: compiling takes seconds, then steps have fewer and larger kernels; "
        "needs zero_stage below 3",
    )
    offload: OffloadSpec | None = Field(
        None, description="what is kept in the host's memory; keys below. null: nothing"
    )
    deepspeed: JsonDict = Field(
        default={},
        description="further keys of DeepSpeed's configuration, e.g. {zero_optimization: {overlap_comm: true}}",
    )
    accelerator: str | None = Field(
        None,
        description="type of GPU that ranks need, by words of its name or of Ray's label (H100, A100-80G); null: any",
    )
    priority: int = Field(0, description="trials with a higher one start first; of equals the larger trials")
    timeout_seconds: PositiveFloat | None = Field(
        None, description="a trial that takes longer, start-up included, fails; null: no limit"
    )
    hang_seconds: PositiveFloat = Field(120.0, description="a rank that gives no sign of life for so long is replaced")
    checkpoint_every_steps: PositiveInt | None = Field(
        None, description="a retry continues from the last checkpoint; null: from the start"
    )

    @model_validator(mode="after")
    def _shareable(self) -> ResourceSpec:
        if self.gpus_per_rank < 1 and self.ranks > 1:
            raise ValueError("gpus_per_rank below 1 needs ranks: 1; NCCL refuses two ranks on one GPU")
        if self.gpus_per_rank < 1 and self.exclusive != "none":
            raise ValueError("gpus_per_rank below 1 shares the GPU; say so with exclusive: none")
        return self

    @model_validator(mode="after")
    def _passed_through(self) -> ResourceSpec:
        refuse_own_keys(self.deepspeed, self.zero_stage)
        if self.deepspeed.get("zero_optimization") and not self.zero_stage:
            raise ValueError(
                "deepspeed.zero_optimization has no effect with zero_stage: 0; leave it out, or set 1 to 3"
            )
        return self

    @model_validator(mode="after")
    def _offloadable(self) -> ResourceSpec:
        if self.offload is None:
            return self
        for what, least in (("optimizer", 1), ("parameters", 3)):
            if getattr(self.offload, what) is not None and self.zero_stage < least:
                raise ValueError(
                    f"offload.{what} needs zero_stage: {'3' if least == 3 else '1, 2 or 3'} (it is {self.zero_stage})"
                )
        if self.offload.optimizer is None and self.offload.parameters is None:
            raise ValueError("offload names nothing; say optimizer: cpu or parameters: cpu, or leave it out")
        return self

    @model_validator(mode="after")
    def _compilable(self) -> ResourceSpec:
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile needs zero_stage below 3, which gathers weights within layers; leave one out")
        if self.compile and self.fuse != "off":
            raise ValueError(f"compile needs fuse: off (it is {self.fuse}); leave one out")
        return self


class ResolvedSpec(Spec):
    """A name of a sweep as it travels: the class behind it, its validated settings, and whose it is."""

    name: str
    target: str = Field(description='"module:Class"')
    config: JsonDict = Field(default_factory=dict)
    origin: str | None = Field(None, description="distribution and version, or file, of a plugin; None: Tuneoff's own")
    source_sha256: str | None = Field(None, description="of a plugin's Python files; None: Tuneoff's own")


class MetricSpec(ResolvedSpec):
    """A metric of a plugin: the class that scores."""


class TaskSpec(ResolvedSpec):
    """A task: the class that loads it."""

    data_sha256: str | None = Field(None, description="of the data files; stands for their paths in the identity")
    plugin_metrics: list[MetricSpec] = Field(
        default_factory=list, description="set by the driver: those of its metrics that Tuneoff does not ship"
    )

    @property
    def has_padded_labels(self) -> bool:
        """Whether a label of the settings has white space around it, which was scored before it was taken off."""
        choices = self.config.get("choices")
        labels = choices.get("labels", ()) if isinstance(choices, dict) else ()
        return any(label != label.strip() for label in labels)


class MethodSpec(ResolvedSpec):
    """A method: the class that patches the model."""


class OptimizerSpec(ResolvedSpec):
    """An optimiser of a plugin: the class that makes it."""


class LoadedSpec(Spec):
    """What a trial scores instead of training: something that was trained before."""

    path: str = Field(description="folder of an adapter, or of a whole model")
    form: Literal["tuneoff", "peft", "model"] = Field(
        description="tuneoff: adapter.json and adapter.safetensors; peft: as peft saves it; model: as transformers does"
    )
    sha256: str = Field(description="of the tensors; stands for all else in the identity")
    name: str = Field(description="what its row is called")


class EvaluationSpec(Settings):
    """A task of lm-evaluation-harness on which final trials are scored besides the sweep's own task."""

    FILLED_IN: ClassVar[tuple[str, ...]] = ("lm_eval_version", "config_sha256")

    lm_eval: str = Field(min_length=1, description="name of a task or group")
    num_fewshot: NonNegativeInt | None = Field(
        None,
        description="examples before a question; an error for a task that says 0 itself, which in a group keeps it; "
        "null: what the task says",
    )
    limit: PositiveInt | None = Field(None, description="the first so many questions of each task; null: all")
    include_path: str | None = Field(None, description="a folder with YAML files of tasks of your own")
    apply_chat_template: bool = Field(
        False, description="whether questions become turns of a user in the model's chat template"
    )
    lm_eval_version: str | None = Field(None, description="of the package; filled in when the sweep is read")
    config_sha256: str | None = Field(
        None, description="of the task's YAML and, under include_path, of the files beside it; filled in likewise"
    )


class FewShotSpec(Spec):
    """Training pairs that the task's template shows before the source."""

    examples: list[str] = Field(description="their ids, in this order; drawn by the trial's seed")
    template: str = Field(description="of the task, without them")
    max_source_tokens: int = Field(description="of the task, without room for them")


class TrialSpec(Spec):
    """One method x settings x model x task x seed: everything a rank needs to know."""

    method: MethodSpec
    model: ModelSpec
    task: TaskSpec
    train: TrainSpec
    decode: DecodeSpec
    resources: ResourceSpec
    seed: int
    optimizer: OptimizerSpec | None = Field(
        None, description="set by the driver: the class of train.optimizer, where Tuneoff does not ship it"
    )
    label: str = Field("", description="short settings of the method for people, e.g. 'num_prompt_tokens=10'")
    stage: Stage = "final"
    stop_after_steps: PositiveInt | None = Field(
        None, description="tune: end here, on the schedule of the full length; None trains to the end"
    )
    scores_dev: bool = Field(False, description="tune: also decode and score the dev sources")
    repetition: NonNegativeInt = Field(0, description="cost: which of several measurements of the same")
    loaded: LoadedSpec | None = Field(None, description="what is scored as it is; None: what this trial trains")
    few_shot: FewShotSpec | None = Field(
        None, description="what the task's template shows; None: nothing but the source"
    )
    evaluations: list[EvaluationSpec] = Field(
        default_factory=list, description="final: tasks of the lm-evaluation-harness that the model is scored on too"
    )
    compares_merged: bool = Field(
        True,
        description="set by the driver: whether decoding is also timed with the adapter merged, where that can be; no "
        "part of the identity",
    )

    @property
    def resolved(self) -> tuple[tuple[Literal["method", "task", "metric", "optimizer"], ResolvedSpec], ...]:
        """All that names of the sweep stand for, with its kind: method, task, and metrics and optimiser of plugins."""
        metrics: tuple[tuple[Literal["metric"], ResolvedSpec], ...] = tuple(
            ("metric", metric) for metric in self.task.plugin_metrics
        )
        optimizers: tuple[tuple[Literal["optimizer"], ResolvedSpec], ...] = (
            () if self.optimizer is None else (("optimizer", self.optimizer),)
        )
        return (("method", self.method), ("task", self.task), *metrics, *optimizers)

    @property
    def scored_model(self) -> ModelSpec:
        """The model whose weights are loaded: the base model, or the whole model that is scored in its place."""
        if self.loaded is None or self.loaded.form != "model":
            return self.model
        own = {"path": self.loaded.path, "weights_sha256": self.loaded.sha256, "revision": None, "commit": None}
        return self.model.model_copy(update=own)

    @property
    def splits(self) -> tuple[Literal["train", "dev", "test"], ...]:
        """The splits that the ranks of this trial read. Only a final trial reads the test split."""
        return ("train", "dev", "test") if self.stage == "final" else ("train", "dev")

    @property
    def drawing(self) -> DecodeSpec:
        """How texts are decoded, with the seed of what is drawn, if anything is."""
        return self.decode.model_copy(update={"seed": self.seed}) if self.draws_by_seed else self.decode

    @property
    def draws_by_seed(self) -> bool:
        """Whether texts are drawn with the trial's own seed, so that another seed writes others."""
        return bool(self.decode.temperature) and self.decode.seed is None

    @property
    def checkpoint_every_steps(self) -> int | None:
        """Steps between checkpoints; None where there are none. What is there to be measured is trained in one go."""
        return self.resources.checkpoint_every_steps if self.stage != "cost" else None

    @property
    def scored_split(self) -> Literal["dev", "test"] | None:
        """The split whose sources are decoded and scored; a trial that is chosen by its dev loss needs none."""
        if self.stage == "final":
            return "test"
        return "dev" if self.scores_dev or self.stage == "cost" else None

    @property
    def identity(self) -> JsonDict:
        """The fields that change the answer. Paths of hashed data, labels, placement and time limits do not.

        That of a final trial does not tell how its settings were found. A trial of the other stages is indifferent to
        what is read of the test split, one that decodes nothing to how that is done, and what is measured in the stage
        cost neither to the seed nor to the learning rate. Of a plugin the source counts, and not where it was installed
        from: after a change of its code the trial is another one.
        """
        content = self.model_dump(mode="json", exclude={"label", "compares_merged"})
        for placement in content["resources"].keys() - ANSWERING_RESOURCES:
            del content["resources"][placement]
        for part in ("method", "task"):
            del content[part]["origin"]
        for metric in content["task"]["plugin_metrics"]:
            del metric["origin"]
        if self.optimizer is None:
            del content["optimizer"]
        else:
            del content["optimizer"]["origin"]
        content["task"]["config"].pop("check_counts", None)
        for part, later in LATER_SETTINGS.items():
            place = functools.reduce(operator.getitem, part.split("."), content)
            for name, default in later.items():
                if name in place and place[name] == default:
                    del place[name]
        if self.task.has_padded_labels:
            content["task"]["labels"] = "without white space around them"
        content["decode"]["batch_size"] = self.decode.padded_batch_size
        if self.task.data_sha256:
            content["task"]["config"].pop("path", None)
        if self.model.weights_sha256:
            del content["model"]["path"]
        if self.model.commit:
            del content["model"]["revision"]
            content["model"].pop("checkpoint_quantization", None)  # the commit says it
        if self.stage == "final":
            for of_other_stages in ("stage", "stop_after_steps", "scores_dev"):
                del content[of_other_stages]
        else:
            content["task"]["config"].pop("test_examples", None)
            if self.scored_split is None:
                del content["decode"]
                content["task"].pop("plugin_metrics", None)
        if self.stage == "cost":
            del content["seed"], content["train"]["learning_rate"]
        if not self.repetition:
            del content["repetition"]
        if self.loaded is None:
            del content["loaded"]
        else:  # However it was trained, it comes out the same.
            content["loaded"] = {"sha256": self.loaded.sha256}
            del content["train"]
            content.pop("optimizer", None)
        if self.stage != "final" or not self.evaluations:
            del content["evaluations"]
        else:
            for evaluation in content["evaluations"]:
                if evaluation["config_sha256"]:
                    del evaluation["include_path"]
        if self.few_shot is None:
            del content["few_shot"]
        else:  # The seed says which pairs these are, so that trials of several seeds differ in nothing else.
            few_shot = self.few_shot
            content["task"]["config"] |= {
                "template": few_shot.template,
                "max_source_tokens": few_shot.max_source_tokens,
            }
            content["few_shot"] = {"shots": len(few_shot.examples)}
        return {"version": IDENTITY_VERSION, **content}

    def identity_without(self, *keys: str) -> JsonDict:
        """The identity without some of its fields, for comparing trials that may differ in these.

        Args:
            keys: Dotted paths of fields, such as ``seed`` or ``train.steps``. One that the identity of this trial lacks
                removes nothing.
        """
        content = self.identity
        for key in keys:
            *parents, last = key.split(".")
            part: Any = content
            for parent in parents:
                part = part.get(parent) if isinstance(part, dict) else None
            if isinstance(part, dict):
                part.pop(last, None)
        return content

    @property
    def name(self) -> str:
        """Method and label for people. Rows of a table get labels of their own, see :mod:`bench.schema.labels`."""
        parts = [part for part in self.label.split(",") if not part.startswith("quantization=")]
        return titled(self.method.name, on_base(",".join(parts), self.model.stored_in))

    @functools.cached_property
    def trial_id(self) -> str:
        """Readable slug and 10 hex digits of the hash of :attr:`identity`."""
        digest = sha256_of_json(self.identity)
        name = id_slug(self.method.name, self.label) or "trial"
        stage = "" if self.stage == "final" else f"-{self.stage}"
        seed = f"-r{self.repetition}" * bool(self.repetition) if self.stage == "cost" else f"-s{self.seed}"
        return f"{name}{stage}{seed}-{digest[:10]}"

    @functools.cached_property
    def without_seed(self) -> str:
        """A hash of all fields but the seed, for doing once what is the same for all seeds. It is quick, and no id.

        Trials of equal answers may have several, because fields that change no answer are part of it.
        """
        return sys.intern(sha256_of_text(self.model_dump_json(exclude={"seed"})))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic has it, without what was computed from the fields, which pydantic would copy too."""
        copied = super().model_copy(update=update, deep=deep)
        for computed in ("trial_id", "without_seed"):
            copied.__dict__.pop(computed, None)
        return copied

    @property
    def local_paths(self) -> list[Path]:
        """Model and data that lie on this machine, or on storage that others share."""
        named = [self.model.path, self.task.config.get("path"), self.loaded.path if self.loaded else None]
        named += [evaluation.include_path for evaluation in self.evaluations]
        return [Path(name) for name in named if isinstance(name, str) and Path(name).exists()]

    def with_absolute_paths(self) -> TrialSpec:
        """The same trial for processes that run in another folder."""
        found = {str(path) for path in self.local_paths}
        model, config = self.model, self.task.config
        if model.path in found:
            model = model.model_copy(update={"path": str(Path(model.path).absolute())})
        if config.get("path") in found:
            config = {**config, "path": str(Path(config["path"]).absolute())}
        loaded = self.loaded
        if loaded is not None:
            loaded = loaded.model_copy(update={"path": str(Path(loaded.path).absolute())})
        task = self.task.model_copy(update={"config": config})
        evaluations = [
            evaluation.model_copy(update={"include_path": str(Path(evaluation.include_path).absolute())})
            if evaluation.include_path in found
            else evaluation
            for evaluation in self.evaluations
        ]
        update = {"model": model, "task": task, "loaded": loaded, "evaluations": evaluations}
        return self.model_copy(update=update)

    @property
    def measured(self) -> TrialSpec:
        """The first trial of the stage cost that measures what this one costs."""
        update = {"stage": "cost", "stop_after_steps": None, "scores_dev": False, "repetition": 0}
        return self.model_copy(update=update)

    @property
    def configuration_class(self) -> str:
        """Equal for trials that share a measurement of cost: they differ in seed, learning rate or length alone."""
        return sha256_of_json(self.measured.identity_without(*LENGTH_FIELDS))[:10]

    @model_validator(mode="after")
    def _of_its_stage(self) -> TrialSpec:
        if self.stage != "tune" and (self.stop_after_steps is not None or self.scores_dev):
            raise ValueError("stop_after_steps and scores_dev have no effect outside the stage tune")
        if self.stage != "cost" and self.repetition:
            raise ValueError("repetition has no effect outside the stage cost")
        if self.stage != "final" and self.loaded is not None:
            raise ValueError("what is loaded is scored on the test split: it has no effect outside the stage final")
        return self
