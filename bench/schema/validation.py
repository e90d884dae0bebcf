"""Checks settings, and says of a wrong one in a single message its file, key and value and what would be right."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.schema.familiar_names import meant_here
from bench.schema.printable import in_brief, in_short
from bench.schema.sweep import Sweep
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec
from bench.task import TaskConfig

SpecT = TypeVar("SpecT", bound=BaseModel)

# Of one file; whoever has more of them has made one mistake many times.
SHOWN_PROBLEMS = 5
# Where pydantic names one of several types in the place of a value.
_ALLOWED_TYPE = re.compile(r"(function-|literal|constrained-|list\[|tuple\[|dict\[).*|bool|int|float|str|range")
# Whoever asks for more has mistyped.
MOST_PAIRS = 10**9
MOST_EPOCHS = 10**6
MOST_NEW_TOKENS = 10**6


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


def check_sizes(train: TrainSpec, decode: DecodeSpec, where: str) -> None:
    """Numbers that a slip of the finger has made too large for any memory are refused, and limits that contradict.

    Raises:
        ConfigError: One is.
    """
    if (train.steps or 0) * train.batch_size > MOST_PAIRS:
        raise ConfigError(
            f"{where}.train.steps: {train.steps:,} x batch_size {train.batch_size:,} are more than {MOST_PAIRS:,} "
            "pairs, whose order no memory holds; set fewer"
        )
    if (train.epochs or 0) > MOST_EPOCHS:
        raise ConfigError(f"{where}.train.epochs: {train.epochs:g} is more than {MOST_EPOCHS:,}; set fewer")
    decaying = math.ceil(train.decay_fraction * (train.steps or 0))
    if train.schedule == "wsd" and train.steps is not None and train.warmup_steps + decaying > train.steps:
        raise ConfigError(
            f"{where}.train.warmup_steps: {train.warmup_steps:,} run into the last {decaying:,} of {train.steps:,} "
            f"steps, over which the rate falls; set at most {train.steps - decaying:,}, or a smaller decay_fraction"
        )
    if decode.max_new_tokens > MOST_NEW_TOKENS:
        raise ConfigError(
            f"decode.max_new_tokens: {decode.max_new_tokens:,} is more than {MOST_NEW_TOKENS:,}; set fewer"
        )
    if decode.min_new_tokens > decode.max_new_tokens:
        raise ConfigError(
            f"decode.min_new_tokens: {decode.min_new_tokens:,} is more than max_new_tokens "
            f"({decode.max_new_tokens:,}), so that no text may end; set at most that"
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
        problems = list(dict.fromkeys(_explain(model, problem, where) for problem in _one_each(model, error.errors())))
        more = [f"and {len(problems) - SHOWN_PROBLEMS:,} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise ConfigError("; ".join([*problems[:SHOWN_PROBLEMS], *more])) from error


def _one_each(model: type[BaseModel], problems: Sequence[Any]) -> list[Any]:
    """One problem for each fault.

    A value of several allowed types fails for each of them; a key that is misspelt is missing, too.
    """
    found: dict[tuple[Any, ...], Any] = {}
    for problem in problems:
        key = tuple(part for part in problem["loc"] if not _ALLOWED_TYPE.fullmatch(str(part)))
        before = found.get((*key, problem["type"] == "extra_forbidden"))
        also = f"{before['msg']}, or {problem['msg'].removeprefix('Input should be ')}" if before else problem["msg"]
        found[*key, problem["type"] == "extra_forbidden"] = {**(before or problem), "loc": key, "msg": also}
    misspelt = {
        (*problem["loc"][:-1], close)
        for problem in found.values()
        if problem["type"] == "extra_forbidden"
        for close in difflib.get_close_matches(str(problem["loc"][-1]), _fields_at(model, problem["loc"][:-1]), n=1)
    }
    return [one for one in found.values() if one["type"] != "missing" or one["loc"] not in misspelt]


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = in_short(".".join(location))
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        elsewhere = _section_with(location[-1]) if model is Sweep and len(location) == 1 else None
        if (familiar := meant_here(location[-1])) is not None:
            meant = f"here that is {familiar}"
        elif elsewhere is not None:
            meant = f"it stands in a section: {elsewhere}.{location[-1]}"
        else:
            meant = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known) or 'none'}"
        return f"{where}: {key}: unknown key (value {in_brief(problem['input'])}); {meant}"
    if problem["type"] == "missing":
        return f"{where}: {key}: missing"
    mapping = problem["type"] in ("dict_type", "model_type")
    message = "expected a mapping" if mapping else problem["msg"].removeprefix("Value error, ")
    got = "" if ", got " in message else f", got {in_brief(problem['input'])}"
    return f"{where}: {key}: {message}{got}" if key else f"{where}: {message}"


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


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Field names of the model that a location leads to; none where that is no model."""
    current: Any = model
    for part in location:
        if str(part).isdigit():
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
