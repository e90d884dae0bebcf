"""Checks settings, and says of a wrong one in a single message its file, key and value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.schema.familiar_names import meant_here
from bench.schema.sweep import Sweep
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec
from bench.task import TaskConfig

SpecT = TypeVar("SpecT", bound=BaseModel)


class ConfigError(ValueError):
    """The sweep cannot be run as it is. Nothing has been started."""


def check_batches(train: TrainSpec, resources: ResourceSpec, where: str) -> None:
    """Every rank takes the same share of a batch, in whole micro-batches.

    Raises:
        ConfigError: It cannot.
    """
    per_step = resources.ranks * (train.micro_batch_size or 1)
    if train.batch_size % per_step:
        micro = f" x micro_batch_size {train.micro_batch_size}" if train.micro_batch_size else ""
        raise ConfigError(
            f"{where}.train.batch_size: {train.batch_size} is not a multiple of ranks {resources.ranks}{micro} = "
            f"{per_step}; every rank takes an equal share"
        )


def check_attention(model: ModelSpec, resources: ResourceSpec, where: str) -> None:
    """Flash attention is asked for where it can compute.

    Raises:
        ConfigError: It is not.
    """
    if not model.attention.startswith("flash"):
        return
    for name, value, right in (("precision", "fp32", "bf16 or fp16"), ("device", "cpu", "cuda")):
        if getattr(resources, name) == value:
            raise ConfigError(
                f"model.attention: {model.attention} cannot be had with {where}.resources.{name}: {value}; set "
                f"{right} there, or leave model.attention out"
            )


def refuse_decoding(decode: DecodeSpec) -> None:
    """Where labels are chosen nothing is written, so that settings of decoding change nothing.

    Raises:
        ConfigError: One is set.
    """
    for name, field in DecodeSpec.model_fields.items():
        value = getattr(decode, name)
        if name != "batch_size" and value != field.default and not (name == "stop" and not value):
            raise ConfigError(
                f"decode.{name}: {value!r} has no effect with choices, of which the likeliest is taken and nothing "
                "is written; leave it out (batch_size counts choices there)"
            )


def validated(model: type[SpecT], raw: Any, where: str) -> SpecT:
    """``raw`` as a ``model``.

    Raises:
        ConfigError: With the dotted key, the value and, for a misspelt key, the close match.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, problem, where) for problem in error.errors())) from error


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"] if not str(part).startswith(("function-", "literal"))]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        elsewhere = _section_with(location[-1]) if model is Sweep and len(location) == 1 else None
        if (familiar := meant_here(location[-1])) is not None:
            meant = f"here that is {familiar}"
        elif elsewhere is not None:
            meant = f"it stands in a section: {elsewhere}.{location[-1]}"
        else:
            meant = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: {key}: unknown key (value {problem['input']!r}); {meant}"
    if problem["type"] == "missing":
        return f"{where}: {key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}, got {problem['input']!r}" if key else f"{where}: {message}"


def _section_with(key: str) -> str | None:
    """The section of a sweep that has this key."""
    sections: dict[str, type[BaseModel]] = {
        "train": TrainSpec,
        "decode": DecodeSpec,
        "resources": ResourceSpec,
        "model": ModelSpec,
        "task": TaskConfig,
    }
    return next((name for name, of_section in sections.items() if key in of_section.model_fields), None)


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Field names of the model that a location leads to; none where that is no model."""
    current: Any = model
    for part in location:
        if part.isdigit():
            continue
        field = current.model_fields.get(part)
        current = _model_within(field.annotation) if field is not None else None
        if current is None:
            return []
    return list(current.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _model_within(argument)) is not None:
            return found
    return None
