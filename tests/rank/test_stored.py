"""The stored adapter has in a fresh base model the dev loss of training, or the trial fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import trial
from one_rank import CPU
from safetensors.torch import load_file
from torch import nn

from bench.measure.phases import PhaseMeter
from bench.method import Lanes, Method
from bench.rank.context import RankContext
from bench.rank.stored import StoredStateError, require_what_was_trained
from bench.rank.trial import _Trial, train
from bench.schema.record import Completed, DevPoint, Failed, Outcome, Probed
from bench.schema.trial import MethodSpec, ModelSpec, TaskSpec, TrialSpec


class Gain(Method):
    """A trained factor on what the output head is given."""

    def patch(self, model: Any) -> nn.Module:
        head = model.get_output_embeddings()
        model.gain = nn.Parameter(torch.ones(head.weight.shape[1], dtype=head.weight.dtype))
        self.factor, self.models = 1.0, [model]
        head.register_forward_pre_hook(lambda _, args: (args[0] * (self.gain() * self.factor),))
        module: nn.Module = model
        return module

    def gain(self) -> torch.Tensor:
        """Of all trials that share the pass, averaged, as no trial may."""
        return torch.stack([model.gain for model in self.models]).mean(0)

    @property
    def fusable(self) -> bool:
        return True

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        self.models = list(models)


class Scales(Gain):
    """Changes a number of its own in training, which it does not store."""

    def after_step(self, model: Any, step: int) -> None:
        self.factor *= 1.5


class Wanders(Gain):
    """Changes the base model in training."""

    def after_step(self, model: Any, step: int) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight *= 1.5


class Forgets(Gain):
    """Does not put back what it stored."""

    def load_adapter_state(self, model: nn.Module, state: Any) -> None:
        pass


MAKE = Callable[..., TrialSpec]


@pytest.fixture
def make(tiny_models: dict[str, Path], tiny_task: Path) -> MAKE:
    def spec(target: str, rate: float = 3e-2, config: Any = None, stage: str = "final", **resources: Any) -> TrialSpec:
        base = trial(**resources)
        settings = {"learning_rate": rate, "steps": 6, "batch_size": 4, "evaluate_every_steps": 3}
        own = {
            "method": MethodSpec(name=target.rpartition(":")[2], target=target, config=config or {}),
            "model": ModelSpec(path=str(tiny_models["llama"])),
            "task": TaskSpec(name="jsonl", target="bench.tasks.jsonl:JsonLines", config={"path": str(tiny_task)}),
            "train": base.train.model_copy(update=settings),
            "decode": base.decode.model_copy(update={"max_new_tokens": 2}),
            "stage": stage,
        }
        return base.model_copy(update=own)

    return spec


def outcomes(folder: Path, *specs: TrialSpec) -> list[Outcome]:
    """Of trials in one launch, in this process."""
    trials = []
    for number, spec in enumerate(specs):
        outbox = folder / str(number)
        outbox.mkdir()
        context = RankContext(0, 1, 0, torch.distributed.HashStore(), outbox, "", 1)
        trials.append(_Trial(spec, context, CPU, PhaseMeter(CPU), alone=False))
    data = trials[0].read()
    results = train(trials, data)
    return [each.finish_as_member(data, result) for each, result in zip(trials, results, strict=True)]


@pytest.mark.parametrize(
    ("own", "alone", "compares"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"stage": "cost"}, True, True),
        ({"stage": "tune"}, True, False),
        ({"compares_merged": False}, True, False),
    ],
)
def test_merged_decoding_is_compared_where_the_driver_says_and_costs_can_be_told_apart(
    own: dict[str, Any], alone: bool, compares: bool, tmp_path: Path
) -> None:
    context = RankContext(0, 1, 0, torch.distributed.HashStore(), tmp_path, "", 1)
    spec = trial().model_copy(update=own)
    assert _Trial(spec, context, CPU, PhaseMeter(CPU), alone)._compares_merged == compares


@pytest.mark.parametrize("name", ["Scales", "Wanders", "Forgets"])
def test_what_training_changes_and_nobody_stores_fails_the_trial(
    name: str, make: MAKE, tmp_path: Path, one_rank: None
) -> None:
    (outcome,) = outcomes(tmp_path, make(f"test_stored:{name}"))
    assert isinstance(outcome, Failed), outcome
    assert outcome.phase == "validate"
    assert f"what {name} has stored is not what was trained: in a fresh base model its dev loss is" in outcome.message


def test_every_member_of_a_launch_that_averages_its_trials_fails(make: MAKE, tmp_path: Path, one_rank: None) -> None:
    specs = [make("test_stored:Gain", rate) for rate in (1e-2, 2e-1)]
    for outcome in outcomes(tmp_path, *specs):
        assert isinstance(outcome, Failed), outcome
        assert "is not what was trained" in outcome.message


@pytest.mark.parametrize(
    ("target", "config", "resources"),
    [
        ("test_stored:Gain", {}, {}),
        ("methods.full:FullFineTuning", {}, {"precision": "bf16"}),
        ("methods.lora:LoRA", {}, {"precision": "bf16", "zero_stage": 3}),
        ("methods.prefix_tuning:PrefixTuning", {"parametrization": "mlp"}, {"precision": "bf16", "zero_stage": 2}),
    ],
)
def test_what_is_stored_has_the_dev_loss_of_training_and_is_in_fp32(
    target: str, config: Any, resources: Any, make: MAKE, tmp_path: Path, one_rank: None
) -> None:
    (outcome,) = outcomes(tmp_path, make(target, config=config, **resources))
    assert isinstance(outcome, Completed), outcome
    assert outcome.stored_dev_loss == pytest.approx(outcome.dev_loss, rel=1e-3 if resources else 1e-6)
    stored = load_file(tmp_path / "0" / "adapter.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    if resources:
        assert any(not torch.equal(t, t.bfloat16().float()) for t in stored.values()), "it is the masters"


def test_a_trial_of_a_search_is_not_loaded_again_to_be_compared(make: MAKE, tmp_path: Path, one_rank: None) -> None:
    (outcome,) = outcomes(tmp_path, make("test_stored:Scales", stage="tune"))
    assert isinstance(outcome, Probed), outcome
    assert outcome.stored_dev_loss is None


@pytest.mark.parametrize(("stored", "fails"), [(5.2251, False), (5.229, True), (5.705, True), (float("nan"), True)])
def test_rounding_is_no_difference_and_anything_else_is(stored: float, fails: bool) -> None:
    best = DevPoint(step=40, loss=5.225)
    require_what_was_trained(5.24, best, "bf16", "x")
    if not fails:
        require_what_was_trained(stored, best, "fp32", "x")
        return
    with pytest.raises(StoredStateError, match=r"after step 40 of the training it was 5\.225"):
        require_what_was_trained(stored, best, "fp32", "x")
