"""Steps, batches and learning rates by hand."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import trial
from one_rank import CPU, training_alone
from torch import nn

from bench.models.architecture import DecoderOnly, Pair
from bench.rank.scoring import Scoring
from bench.schema.trial import TrainSpec
from bench.train import order
from bench.train.loss import at_least_fp32, chunked_nll
from bench.train.optimizer import learning_rate_factor
from bench.train.order import micro_batches, num_steps, rows_evaluated_at_once, training_order


@pytest.mark.parametrize(
    ("train", "steps"),
    [({}, 5), ({"epochs": 1.5}, 8), ({"epochs": 0.01}, 1), ({"epochs": 0.3}, 2), ({"steps": 3}, 3)],
)
def test_steps_are_those_of_epochs_rounded_and_one_at_least(train: dict[str, Any], steps: int) -> None:
    assert num_steps(TrainSpec(batch_size=4, **train), num_pairs=20) == steps


def test_pairs_of_fifty_batches_are_sorted_by_length_together() -> None:
    lengths = random.Random(0).sample(range(1000), 120)
    batches = training_order(lengths, 2, 60, seed=0)
    assert len(batches) == 60
    for first, last in ((0, 50), (50, 60)):
        window = sorted(batches[first:last], key=lambda batch: lengths[batch[0]])
        flat = [lengths[index] for batch in window for index in batch]
        assert flat == sorted(flat), f"batches {first} to {last} divide one sorted list"
    flat = [lengths[index] for batch in sorted(batches, key=lambda batch: lengths[batch[0]]) for index in batch]
    assert flat != sorted(flat), "and the next ones another"
    assert sorted(index for batch in batches for index in batch) == list(range(120))
    assert order.WINDOW_BATCHES == 50


@pytest.mark.parametrize(
    ("train", "ranks", "rows"),
    [
        ({}, 1, 8),
        ({}, 2, 8),
        ({}, 8, 4),
        ({"micro_batch_size": 1}, 1, 4),
        ({"micro_batch_size": 1}, 8, 4),
        ({"micro_batch_size": 4}, 1, 8),
    ],
)
def test_no_more_rows_are_evaluated_at_once_than_fit_beside_training(
    train: dict[str, Any], ranks: int, rows: int
) -> None:
    assert rows_evaluated_at_once(TrainSpec(batch_size=8, **train), ranks) == rows


def test_dev_losses_are_taken_in_such_passes_in_training_and_in_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mean_losses(losses_of: Any, pairs: Any, rows: int, device: Any) -> list[float]:
        asked.append(rows)
        return [0.0]

    for module in ("bench.train.loop", "bench.rank.scoring"):
        monkeypatch.setattr(f"{module}.mean_losses", mean_losses)
    train = TrainSpec(batch_size=16, micro_batch_size=2)
    lane: Any = SimpleNamespace(train=train, evaluated=lambda step, loss: None)
    training_alone([lane], architecture=DecoderOnly())._validate_scored(None, [0], [], 1)
    spec: Any = trial().model_copy(update={"train": train})
    scoring = Scoring(spec, context=None, device=CPU, meter=None, compares_merged=False)  # type: ignore[arg-type]
    tokens: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    scoring._mean_loss(nn.Linear(1, 1), [Pair([1], [2])], tokens)
    assert asked == [8, 8]


def test_a_share_is_divided_from_its_beginning() -> None:
    assert micro_batches(list(range(12)), 1, 2, 2) == [[1, 3], [5, 7], [9, 11]]


def test_rates_of_each_schedule() -> None:
    def rates(steps: int, **settings: Any) -> list[float]:
        factor = learning_rate_factor(TrainSpec.model_validate(settings), steps)
        return [factor(step) for step in range(steps)]

    assert rates(4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(6, warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])
    assert rates(4, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates(3, schedule="constant", warmup_steps=1) == [0.0, 1.0, 1.0]
    assert rates(6, schedule="wsd", decay_fraction=0.5) == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.75, 0.25])
    assert rates(8, schedule="inverse_sqrt", warmup_steps=1)[1::3] == pytest.approx([1.0, 0.5, 1 / 7**0.5])
    assert learning_rate_factor(TrainSpec(schedule="inverse_sqrt"), 40_000)(30_000) == pytest.approx(0.5)
    assert learning_rate_factor(TrainSpec(warmup_steps=3), 3)(3) == 1.0, "a schedule may be all warm-up"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_in_chunks_are_torchs(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 4), (9, 4)))
    targets = torch.randint(9, (7,), generator=generator)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")
    for logits in (1, 9, 20, 10**6):
        torch.testing.assert_close(chunked_nll(hidden, weight, None, targets, smoothing, logits), expected)


def test_losses_are_in_fp32_at_least() -> None:
    assert [at_least_fp32(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float32)] == [
        torch.float32
    ] * 2
    assert at_least_fp32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
