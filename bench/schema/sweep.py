"""A sweep: the content of one YAML file, with its stages. Trials are in :mod:`bench.schema.trial`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from bench.schema.search_space import SearchSpace
from bench.schema.trial import DecodeSpec, EvaluationSpec, JsonDict, ModelSpec, ResourceSpec, Settings, TrainSpec

# Whoever asks for more has mistyped: all of them are listed before the first one runs.
MOST_ASKS = 100_000
MOST_REPETITIONS = 1000
# What Python, numpy and torch all take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _once(seeds: list[int]) -> list[int]:
    if (twice := next((seed for seed in seeds if seeds.count(seed) > 1), None)) is not None:
        raise ValueError(f"{twice} is there twice; a seed gives one trial of each method")
    return seeds


class HalvingSpec(Settings):
    """Successive halving within a method: the worse trials end early, on the schedule of the full length.

    A trial that goes on is trained again from the start, which gives the same first steps; that is counted.
    """

    factor: Annotated[int, Field(ge=2)] = Field(3, description="at each cut, one in so many trials goes on")
    first_cut_steps: PositiveInt | None = Field(
        None, description="steps before the first cut; null: three times the warm-up, at least a ninth of all steps"
    )
    audit_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of the cut trials, at least one, that is trained to the end nevertheless; 0: none"
    )


class TuneSpec(Settings):
    """The stage that chooses settings for each method, with the same budget for all, by the dev split alone."""

    trials: Annotated[int, Field(gt=0, le=MOST_ASKS)] | None = Field(
        None, description="budget of each method in trainings of full length; set either this or device_seconds"
    )
    device_seconds: PositiveFloat | None = Field(
        None, description="budget of each method in seconds that its ranks work, without start-up"
    )
    sampler: Literal["grid", "quasi_random", "tpe"] = Field(
        "grid",
        description="how settings are tried: a grid, a Halton sequence, or Optuna's TPE, which learns from results",
    )
    metric: str = Field(
        "dev_loss", description="what settings are chosen by: dev_loss, or a score such as bleu on the dev sources"
    )
    seed: Seed = Field(1000, description="of the sampler and of its trials; none of the seeds of the stage final")
    halving: HalvingSpec | None = Field(
        None, description="ends the worse trials early; keys below. null: all are trained to the end"
    )

    @model_validator(mode="after")
    def _effective(self) -> TuneSpec:
        if (self.trials is None) == (self.device_seconds is None):
            raise ValueError("set exactly one of trials and device_seconds: the budget of each method")
        if self.sampler == "grid" and self.trials is None:
            raise ValueError("sampler: grid needs a budget in trials; use quasi_random or tpe with device_seconds")
        if self.halving is not None and (self.trials is None or self.sampler == "tpe"):
            raise ValueError("halving needs a budget in trials and the sampler grid or quasi_random")
        return self


class FinalStageSpec(Settings):
    """The stage that takes the test scores, once, with the settings that were chosen."""

    seeds: Annotated[
        list[Seed],
        Field(min_length=1, description="each trains every method once; use five or more"),
        AfterValidator(_once),
    ]


class CostStageSpec(Settings):
    """The stage that measures time and memory: short trials of each class of configurations, alone on their machine.

    All final trials that differ only in seed, learning rate or length share them.
    """

    steps: PositiveInt = Field(
        20,
        description="optimiser steps of a measurement; the first tenth, at least 5 and at most half, are not measured",
    )
    repetitions: Annotated[int, Field(gt=0, le=MOST_REPETITIONS)] = Field(
        3, description="how often each class is measured, in turns over the methods"
    )


class StagesSpec(Settings):
    """The stages of a sweep, one after the other. A stage that is not named is left out."""

    tune: TuneSpec | None = Field(None, description="searches settings for each method on the dev split; keys below")
    final: FinalStageSpec | None = Field(None, description="takes the test scores with the settings chosen; keys below")
    cost: CostStageSpec | None = Field(None, description="measures time and memory, alone on the machine; keys below")

    @model_validator(mode="after")
    def _some(self) -> StagesSpec:
        if self.tune is None and self.final is None and self.cost is None:
            raise ValueError("name at least one of tune, final and cost")
        if self.tune is not None and self.final is not None and self.tune.seed in self.final.seeds:
            raise ValueError(f"tune.seed: {self.tune.seed} is a final seed too; settings would be chosen to suit it")
        return self


def _bare_name(entry: Any) -> Any:
    return {"name": entry} if isinstance(entry, str) else entry


def _bare_model(entry: Any) -> Any:
    return {"path": entry} if isinstance(entry, str) else entry


class MethodEntry(Settings):
    """An entry of a sweep's ``methods:``; a bare name is short for ``{name: ...}``."""

    name: str = Field(description="a name that `tuneoff methods` lists, or module:Class")
    config: JsonDict = Field(default_factory=dict, description="the method's own settings: `tuneoff methods NAME`")
    train: JsonDict = Field(default_factory=dict, description="keys of train that differ for this method")
    resources: JsonDict = Field(default_factory=dict, description="keys of resources that differ for this method")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="dotted key (config.x, train.x, resources.x, model.x, task.x, decode.x) to a list of values: one "
        "row each; not with stages.tune",
    )
    search: SearchSpace | None = Field(
        None,
        description="dotted key (config.x, train.x) to what the stage tune tries: "
        "{low, high} or a list; null: what the "
        "method declares",
    )

    def sets(self, dotted: str) -> bool:
        """Whether it has a value of its own for a key that a grid or a search varies."""
        part, *path = dotted.split(".")
        node: Any = {"train": self.train, "resources": self.resources, "config": self.config}.get(part, {})
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return False
            node = node[key]
        return True


class Sweep(Settings):
    """One YAML file: what to compare."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="results go to results/NAME/")]
    model: Annotated[ModelSpec, BeforeValidator(_bare_model)] = Field(
        ModelSpec(), description="the base model: its path, or the keys below"
    )
    task: Annotated[JsonDict, BeforeValidator(_bare_name)] = Field(
        description="its name, or a mapping: name, its own settings (`tuneoff tasks NAME`), and the keys below"
    )
    train: TrainSpec = Field(TrainSpec(), description="how all methods train; keys below")
    decode: DecodeSpec = Field(DecodeSpec(), description="how texts are decoded; keys below")
    resources: ResourceSpec = Field(ResourceSpec(), description="what a trial runs on; keys below")
    methods: Annotated[
        list[Annotated[MethodEntry, BeforeValidator(_bare_name)]],
        Field(min_length=1, description="what is compared: names, or the keys below"),
    ]
    seeds: Annotated[list[Seed], AfterValidator(_once)] = Field(
        [0], min_length=1, description="each trains every method once; with stages, set stages.final.seeds instead"
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="dotted key (task.x, train.x, decode.x, ...) to a list of values, for every method; none of them "
        "may have a value of its own for the key",
    )
    evaluations: list[EvaluationSpec] = Field(
        default_factory=list,
        description="tasks of lm-evaluation-harness on which final trials are scored, too; keys below",
    )
    published: list[str] = Field(
        default_factory=list,
        description="files of published numbers that reports show beside ours, relative to the folder of this file",
    )
    trackers: dict[str, JsonDict] = Field(
        default_factory=dict,
        description="programs that show trials live, with their settings, e.g. {wandb: {entity: my-team}}",
    )
    stages: StagesSpec | None = Field(
        None, description="search, final and cost; keys below. null: every trial is a final one"
    )

    @model_validator(mode="after")
    def _effective(self) -> Sweep:
        stages = self.stages
        if stages is not None and "seeds" in self.model_fields_set:
            raise ValueError("seeds has no effect beside stages; name the seeds in stages.final.seeds")
        for number, evaluation in enumerate(self.evaluations):
            if evaluation in self.evaluations[:number]:
                raise ValueError(f"evaluations.{number}: {evaluation.lm_eval} is there already with the same settings")
        tuned = stages is not None and stages.tune is not None
        for number, entry in enumerate(self.methods):
            if entry.search is not None and not tuned:
                raise ValueError(f"methods.{number}.search has no effect without stages.tune")
            if entry.grid and tuned:
                raise ValueError(
                    f"methods.{number}.grid: with stages.tune, name what to try in search, or make each choice an "
                    "entry of its own, which is then tuned by itself"
                )
        return self
