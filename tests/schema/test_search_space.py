"""The search spaces that methods declare."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bench.method import Method, Range
from bench.plugins.registry import load_method, targets


@pytest.mark.parametrize("name", sorted(targets("method")))
def test_every_method_that_trains_searches_its_learning_rate_first(name: str) -> None:
    method = load_method(targets("method")[name])
    if not method.trains:
        assert not method.search_space
        return
    first, *rest = method.search_space
    assert first == "train.learning_rate"
    learning_rate = method.search_space[first]
    assert isinstance(learning_rate, Range)
    assert learning_rate.log
    assert all(key.startswith(("config.", "train.")) for key in rest)


def test_a_method_that_declares_nothing_is_searched_widely() -> None:
    assert Method.search_space == {"train.learning_rate": Range(low=1e-5, high=1e-1)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 1.0, "high": 0.1}, "low 1 must be below high 0.1"),
        ({"low": 0.0, "high": 0.1}, "low 0 must be positive where log is on"),
    ],
)
def test_ranges_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(values)
