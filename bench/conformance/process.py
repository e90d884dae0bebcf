"""Checks that a method makes the same model in another process, which has another seed of Python's hashes.

Ranks and later sessions are such processes. Each process is started once for many methods, because it imports torch.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.conformance.rehearsal import rehearse
from bench.conformance.state import on_disk_and_back
from bench.conformance.subject import ContractError, Subject, broken, difference, target_logits
from bench.conformance.surroundings import surroundings_of
from bench.conformance.tiny_models import tiny_model
from bench.method import Method, trained_parameters
from bench.models.quantization import Storage, quantize

HASH_SEEDS = ("1", "2", "3")
TIMEOUT_SECONDS = 300.0
CHECK = "the same in another process"


def importable(method_class: type[Method]) -> bool:
    """Whether another process can import the class by its module and name."""
    if method_class.__module__ == "__main__" or "<locals>" in method_class.__qualname__:
        return False
    return _class_of(method_class.__module__, method_class.__qualname__) is method_class


def _class_of(module: str, name: str) -> Any:
    return attrgetter(name)(importlib.import_module(module))


def check_is_the_same_in_another_process(subject: Subject) -> None:
    """A process with another hash seed patches the same model, and computes the same with a stored state.

    A class that no other process can import is skipped; :func:`bench.conformance.verdicts` reports it.
    """
    if not importable(subject.method_class):
        return
    others = OtherProcesses([subject], count=1)
    try:
        others.check(subject)
    finally:
        others.close()


class OtherProcesses:
    """Processes that patch the same models and load the states that this process has stored.

    Args:
        subjects: The methods and models. The classes must be importable.
        count: The number of processes, each with another hash seed.
    """

    def __init__(self, subjects: Sequence[Subject], count: int = 2) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tuneoff-contract-")
        folder = Path(self._folder.name)
        jobs: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        for number, subject in enumerate(subjects):
            if _prepare(subject, folder / f"{number}.state"):
                self._numbers[id(subject)] = number
                jobs.append({"number": number, **_description(subject)})
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        seeds = [seed for seed in HASH_SEEDS if seed != os.environ.get("PYTHONHASHSEED")][:count] if jobs else []
        path = os.pathsep.join(filter(None, sys.path))
        self._processes = {
            seed: subprocess.Popen(
                [sys.executable, "-m", "bench.conformance.process", str(folder), seed],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"},
                stdout=subprocess.DEVNULL,
                stderr=(folder / f"{seed}.stderr").open("w", encoding="utf-8"),
            )
            for seed in seeds
        }

    def check(self, subject: Subject) -> None:
        """Compare the results of the other processes with those of this one.

        Raises:
            ContractError: They differ.
        """
        number = self._numbers.get(id(subject))
        if number is None:
            raise ContractError("it cannot be trained and stored here, so that no other process could take it up")
        folder = Path(self._folder.name)
        here_facts, here = _read(folder / f"{number}.state")
        for seed, process in self._processes.items():
            if process.wait(TIMEOUT_SECONDS):
                complaint = (folder / f"{seed}.stderr").read_text(encoding="utf-8").strip()
                raise ContractError(f"another process ends with code {process.returncode}: {complaint[-500:]}")
            _compare(here_facts, here, *_read(folder / f"{number}.{seed}"))

    def close(self) -> None:
        """End the processes that still run, and remove their files."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._folder.cleanup()


def _description(subject: Subject) -> dict[str, Any]:
    return {
        "module": subject.method_class.__module__,
        "name": subject.method_class.__qualname__,
        "config": subject.config.model_dump(mode="json"),
        "family": subject.family,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "quantization": subject.quantization,
    }


def _start(subject: Subject) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Ordered names of the trained and stored tensors, and the stored values, after patch under one seed."""
    method, model = subject.patched(disturbed=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(each), "?") for each in group["params"]] for group in method.parameter_groups(model)]
    facts = {
        "trained": [name for name, _ in trained_parameters(model)],
        "stored": list(method.adapter_state(model)),
        "groups": groups,
    }
    return facts, {f"start/{name}": tensor for name, tensor in on_disk_and_back(method, model).items()}


def _prepare(subject: Subject, path: Path) -> bool:
    """Write the state after patch, a trained state and its logits; False if that fails, which other checks report."""
    try:
        facts, tensors = _start(subject)
        method, model = subject.patched(disturbed=False)
        if method.trains:
            rehearse(method, model, steps=2)
        tensors |= {f"state/{name}": tensor for name, tensor in on_disk_and_back(method, model).items()}
        tensors["logits"] = _logits(model)
    except Exception:  # noqa: BLE001
        return False
    _write(path, facts, tensors)
    return True


def _logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return target_logits(model).contiguous()


def _write(path: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    path.with_name(f"{path.name}.json").write_text(json.dumps(facts), encoding="utf-8")
    save_file(tensors, path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8")), load_file(path)


def _compare(
    here: dict[str, Any], tensors: dict[str, torch.Tensor], there: dict[str, Any], found: dict[str, torch.Tensor]
) -> None:
    same = "the same in every process: ranks and later sessions are such"
    likely = "hash(), id(), the order of a set, a clock or a counter takes part; or numpy, which a trial does not seed"
    if code := there.get("changed code"):
        raise broken(
            f"importing and using it changes {code}",
            "code that all models of the process share to stay",
            "a function is put into a class or a module of a library; put it into the instance",
        )
    if error := there.get("error"):
        raise broken(f"in another process it fails: {error}", same, likely)
    for what in ("trained", "stored", "groups"):
        if here[what] != there[what]:
            raise broken(f"another process has other names or another order of what is {what}", same, likely)
    for name, tensor in tensors.items():
        if name.startswith("start/") and not torch.equal(tensor, found[name]):
            raise broken(f"{name.removeprefix('start/')} starts otherwise in another process", same, likely)
    if not difference(found["logits"], tensors["logits"]) <= 1e-6:
        raise broken("a stored state gives other logits in another process", same, likely)


def _run(folder: Path, seed: str) -> None:
    """The program of the other process: patch each subject, load its stored state, and write the results."""
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        out = folder / f"{job['number']}.{seed}"
        dtype = getattr(torch, job["dtype"])
        if job["quantization"]:  # bitsandbytes has torch import what changes its optimisers, and no method is to blame
            quantize(tiny_model(job["family"], dtype=dtype), Storage(job["quantization"]))
        before = surroundings_of(tiny_model(job["family"], dtype=dtype))
        try:
            method_class = _class_of(job["module"], job["name"])
            subject = Subject(
                method_class, method_class.Config(**job["config"]), job["family"], dtype, job["quantization"]
            )
            facts, tensors = _start(subject)
            facts["changed code"] = before.changed_code()
            method, model = subject.patched(disturbed=False, seed=2)
            _, stored = _read(folder / f"{job['number']}.state")
            state = {name.removeprefix("state/"): t for name, t in stored.items() if name.startswith("state/")}
            if state:
                method.load_adapter_state(model, state)
            _write(out, facts, {**tensors, "logits": _logits(model)})
        except Exception as error:  # noqa: BLE001
            _write(out, {"error": f"{type(error).__name__}: {error}"}, {"none": torch.zeros(1)})
        finally:
            before.restore()


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2])
