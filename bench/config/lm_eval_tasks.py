"""Finds the tasks of the lm-evaluation-harness that a sweep names, before any trial starts.

The package is an optional one: ``pip install 'tuneoff[lm-eval]'``. It is imported only by sweeps that name such tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.plugins.lm_eval_tasks import manager_with
from bench.plugins.registry import RegistryError
from bench.schema.digests import sha256_of, sha256_of_json
from bench.schema.trial import EvaluationSpec
from bench.schema.validation import ConfigError

PACKAGE = "lm_eval"


@functools.cache
def resolved_evaluation(spec: EvaluationSpec, where: str) -> EvaluationSpec:
    """The evaluation with the version of the package and the hash of its task.

    Args:
        spec: As the sweep has it.
        where: What messages call it.

    Raises:
        ConfigError: The package is missing, the folder is not there, no task or group has the name, or the task has no
            shots and is to have some.
    """
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{where}.lm_eval: {spec.lm_eval!r} needs the package lm-eval, which is not installed; pip install "
            "'tuneoff[lm-eval]'"
        ) from error
    if spec.include_path is not None and not Path(spec.include_path).is_dir():
        raise ConfigError(f"{where}.include_path: there is no folder {spec.include_path!r}")
    try:
        entry = manager_with(spec.lm_eval, spec.include_path).task_index[spec.lm_eval]
    except RegistryError as error:
        raise ConfigError(f"{where}.lm_eval: {error}") from error
    _check_shots(spec, entry.cfg or {}, where)
    files = {} if spec.include_path is None else _hashes(Path(spec.include_path), entry.yaml_path)
    definition = {"config": _printable(entry.cfg), "files": files}
    return spec.model_copy(update={"lm_eval_version": installed, "config_sha256": sha256_of_json(definition)})


def _check_shots(spec: EvaluationSpec, config: Mapping[str, Any], where: str) -> None:
    """A task that says 0 is never shown examples. Tasks of a group say it for themselves, and others in it do not.

    Raises:
        ConfigError: Another number is asked for.
    """
    is_task = isinstance(config.get("task"), str)
    if spec.num_fewshot and is_task and config.get("num_fewshot") == 0:
        raise ConfigError(
            f"{where}.num_fewshot: {spec.num_fewshot}: the task {spec.lm_eval} says num_fewshot: 0 and means it; leave "
            "num_fewshot out"
        )


def _hashes(folder: Path, yaml_path: Path | None) -> dict[str, str]:
    """Hashes of the files beside a task's YAML, which may hold its data and its functions."""
    beside = folder if yaml_path is None or not yaml_path.is_relative_to(folder) else yaml_path.parent
    files = (path for path in beside.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(beside).as_posix(): sha256_of(path) for path in sorted(files)}


def _printable(config: Any) -> Any:
    """A task's YAML as JSON has it; functions by their names."""
    if isinstance(config, dict):
        return {str(key): _printable(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_printable(value) for value in config]
    return config if isinstance(config, str | int | float | bool | None) else getattr(config, "__name__", str(config))
