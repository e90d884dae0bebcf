"""What the columns of a table are called, which direction is better, and how their numbers are printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.schema.record import Completed, TrialResult
from bench.schema.trial import JsonDict

ABSENT = "–"  # noqa: RUF001 - an en dash, as tables print what is absent

# How papers write these metrics; a metric that is not here is printed under its own name.
METRIC_TITLES = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "ter": "TER",
    "chrf": "chrF++",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "bertscore": "BERTScore",
    "bleurt": "BLEURT",
    "mauve": "MAUVE",
}


@dataclass(frozen=True)
class Column:
    """One column of a table: a value of a trial's row, and how to show it."""

    name: str
    title: str
    higher_is_better: bool | None = None
    decimals: int = 0
    scale: float = 1.0
    varies_over_seeds: bool = True
    axis: str = ""  # label of an axis, and what a pointer over the heading tells

    def text(self, value: float) -> str:
        """The value as tables print it."""
        return f"{value * self.scale:,.{self.decimals}f}"


TRAINED = Column("trained_parameters", "trained", False, varies_over_seeds=False, axis="trained parameters")
TEST_LOSS = Column("test_loss", "test loss", False, 3, axis="test loss, nats per target token")
COSTS: tuple[Column, ...] = (
    TRAINED,
    Column("trained_percent", "trained %", False, 3, varies_over_seeds=False, axis="trained, % of all parameters"),
    Column("peak_memory_bytes", "peak MiB", False, scale=2**-20, axis="peak memory, MiB"),
    Column("train_tokens_per_second", "train tok/s", True, axis="useful tokens per second of training"),
    Column("decode_tokens_per_second", "decode tok/s", True, axis="new tokens per second of decoding"),
    Column("train_seconds", "train s", False, 1, axis="training time, seconds"),
    Column("energy_joules", "energy Wh", False, 2, scale=1 / 3600, axis="energy of training, watt-hours"),
    Column("total_seconds", "total s", None, 1, axis="seconds from launch to end"),
)


def metric_columns(results: Iterable[TrialResult]) -> tuple[Column, ...]:
    """The metrics that the records have, in the order in which they name them: official ones first."""
    directions: dict[str, bool | None] = {}
    largest: dict[str, float] = {}
    titles: dict[str, str] = {}
    for result in results:
        if isinstance(result.outcome, Completed):
            for name, value in result.outcome.scores.values.items():
                directions.setdefault(name, result.outcome.scores.higher_is_better.get(name))
                titles.setdefault(name, title(name, result.outcome.scores.signatures.get(name, "")))
                if math.isfinite(value):
                    largest[name] = max(abs(value), largest.get(name, 0.0))
    return tuple(
        Column(name, titles[name], better, _decimals(largest.get(name, 0.0))) for name, better in directions.items()
    )


def title(metric: str, signature: str = "") -> str:
    """A metric's name as papers write it; chrF++ without its words is chrF."""
    if metric == "chrf" and "nw:0" in signature.split("|"):
        return "chrF"
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def _decimals(largest: float) -> int:
    """Three significant digits for most of the column: 61.3, 8.54, 0.071."""
    return 1 if largest > 20 else 2 if largest > 1 else 3


def present(columns: Iterable[Column], rows: Sequence[Mapping[str, object]] | Sequence[JsonDict]) -> tuple[Column, ...]:
    """The columns for which some row has a value."""
    return tuple(column for column in columns if any(row.get(column.name) is not None for row in rows))


def compact(count: float) -> str:
    """A count in at most six characters."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"
