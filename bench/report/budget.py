"""The budget of each configuration: training, decoding, precision, examples. Equal parts are said once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.report.column import ABSENT
from bench.report.configurations import Comparison, Configuration
from bench.schema.record import Completed
from bench.schema.trial import DecodeSpec, JsonDict, TrainSpec, TrialSpec

TITLE = "What each was trained with"


@dataclass(frozen=True)
class Setting:
    """One part of the budget.

    Attributes:
        title: Of its column.
        text_of: Its text; None where it is left at a default that needs no word.
        is_of_training: Whether what trains nothing has no part in it.
    """

    title: str
    text_of: Callable[[TrialSpec, Completed | None], str | None]
    is_of_training: bool = True


def _steps(spec: TrialSpec, outcome: Completed | None) -> str:
    if outcome is not None and outcome.train is not None:
        return f"{outcome.train.steps:,}"
    return f"{spec.train.steps:,}" if spec.train.steps else f"{spec.train.epochs or 1:g} epochs"


def _epochs(spec: TrialSpec, outcome: Completed | None) -> str | None:
    pairs = None if outcome is None else outcome.data.get("train_pairs")
    if not pairs or outcome is None or outcome.train is None:
        return None
    return f"{outcome.train.steps * spec.train.batch_size / pairs:.3g}"


def _counted(name: str) -> Callable[[TrialSpec, Completed | None], str | None]:
    def of(spec: TrialSpec, outcome: Completed | None) -> str | None:
        found = None if outcome is None else outcome.data.get(name)
        return None if found is None else f"{found:,}"

    return of


def _unless_default(part: Literal["train", "decode"], name: str) -> Callable[[TrialSpec, Completed | None], str | None]:
    """A field of this part of the specification, if it is not at its default."""

    def of(spec: TrialSpec, outcome: Completed | None) -> str | None:
        section: TrainSpec | DecodeSpec = getattr(spec, part)
        value = getattr(section, name)
        return None if value == type(section).model_fields[name].default else str(value)

    return of


def _warmup(train: TrainSpec) -> str:
    return f"{train.warmup_fraction:.3g} of all" if train.warmup_fraction else str(train.warmup_steps)


def _optimizer(train: TrainSpec) -> str:
    options = ", ".join(f"{name}={value}" for name, value in train.optimizer_options.items())
    return f"{train.optimizer} ({options})" if options else train.optimizer


def _where_texts_are_written(name: str) -> Callable[[TrialSpec, Completed | None], str | None]:
    """A setting of decoding; None for labels, of which the likeliest is chosen and nothing is written."""
    return lambda spec, _: None if spec.task.config.get("choices") else str(getattr(spec.decode, name))


SETTINGS: tuple[Setting, ...] = (
    Setting("steps", _steps),
    Setting("epochs", _epochs),
    Setting("batch size", lambda spec, _: str(spec.train.batch_size)),
    Setting("learning rate", lambda spec, _: f"{spec.train.learning_rate:g}"),
    Setting("schedule", lambda spec, _: spec.train.schedule),
    Setting("warm-up steps", lambda spec, _: _warmup(spec.train)),
    Setting("optimiser", lambda spec, _: _optimizer(spec.train)),
    Setting("weight decay", lambda spec, _: f"{spec.train.weight_decay:g}"),
    *(
        Setting(name.replace("_", " "), _unless_default("train", name))
        for name in ("micro_batch_size", "loss_reduction", "label_smoothing", "dropout", "max_grad_norm")
    ),
    Setting("train pairs", _counted("train_pairs")),
    Setting("precision", lambda spec, _: spec.resources.precision, is_of_training=False),
    Setting("ranks", lambda spec, _: str(spec.resources.ranks), is_of_training=False),
    Setting("ZeRO stage", lambda spec, _: str(spec.resources.zero_stage or "") or None, is_of_training=False),
    Setting("beams", _where_texts_are_written("beams"), is_of_training=False),
    Setting("max new tokens", _where_texts_are_written("max_new_tokens"), is_of_training=False),
    *(
        Setting(name.replace("_", " "), _unless_default("decode", name), is_of_training=False)
        for name in (
            "min_new_tokens",
            "length_penalty",
            "early_stopping",
            "no_repeat_ngram_size",
            "temperature",
            "top_p",
        )
    ),
    Setting("dev sources", _counted("dev_sources"), is_of_training=False),
    Setting(
        "test sources",
        lambda _, outcome: None if outcome is None else f"{outcome.decode.sources:,}",
        is_of_training=False,
    ),
)


@dataclass(frozen=True)
class Budget:
    """The budget of a table: what all its rows share, and what differs, by row."""

    shared: tuple[tuple[str, str], ...]
    heading: tuple[str, ...]  # the method first
    rows: tuple[tuple[str, ...], ...]

    @property
    def sentence(self) -> str:
        """A sentence that says what all rows share."""
        settings = ", ".join(f"{title} {text}" for title, text in self.shared)
        few = f" {', '.join(self.heading[1:])}: by row." if self.rows else ""
        return f"All with {settings}.{few}" if settings else few.strip()

    def document(self) -> JsonDict:
        """The budget for report.json."""
        by_row = {row[0]: dict(zip(self.heading[1:], row[1:], strict=True)) for row in self.rows}
        return {"shared": dict(self.shared), "by_configuration": by_row}


def budget(comparison: Comparison) -> Budget:
    """The budgets of completed configurations. Settings of training are not said of methods that train nothing."""
    configurations = comparison.scored
    shared: list[tuple[str, str]] = []
    differing: list[tuple[str, list[str]]] = []
    for setting in SETTINGS:
        texts = [_text(setting, configuration) for configuration in configurations]
        meant = [
            text
            for text, configuration in zip(texts, configurations, strict=True)
            if configuration.trains or not setting.is_of_training
        ]
        if not any(meant):
            continue
        if len(set(meant)) == 1:
            shared.append((setting.title, str(meant[0])))
        else:
            differing.append((setting.title, [text or ABSENT for text in texts]))
    rows = [
        (configuration.name, *(texts[number] for _, texts in differing))
        for number, configuration in enumerate(configurations)
    ]
    return Budget(tuple(shared), ("method", *(title for title, _ in differing)), tuple(rows) if differing else ())


def _text(setting: Setting, configuration: Configuration) -> str | None:
    """The setting over all seeds: one text, or all different ones."""
    if setting.is_of_training and not configuration.trains:
        return None
    found: Sequence[str | None] = [setting.text_of(result.spec, outcome) for result, outcome in configuration.completed]
    return " or ".join(dict.fromkeys(text for text in found if text is not None)) or None
