"""Every optimiser trains as the class that it wraps, wherever trials train; what it cannot is refused beforehand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import trial, varied
from one_rank import CPU
from torch import nn

from bench.config.resolver import RegistryResolver
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.measure.phases import PhaseMeter
from bench.method import Method, trained_parameters
from bench.models.architecture import Pair, accepted_inputs, architecture_of
from bench.models.masters import exact
from bench.optimizers import OPTIMIZERS
from bench.optimizers.optimizer import optimizer_of_torch_class, scored_weights
from bench.plugins.registry import RegistryError, describe, load_method, load_optimizer, targets
from bench.rank.trial import require_plugins
from bench.schema.trial import DecodeSpec, ResourceSpec, TrainSpec
from bench.schema.validation import ConfigError, check_sizes, validated
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Lane, Trained
from bench.train.loop import Training
from bench.train.optimizer import learning_rate_factor, make_optimizer

STEPS = 4
# Its licence allows no commercial use, so that nothing here installs it but who asks for it.
NEEDS_APOLLO = pytest.mark.skipif(
    importlib.util.find_spec("apollo_torch") is None,
    reason="apollo-torch is not installed: python -m pip install --editable '.[apollo]'",
)
NAMES = sorted(OPTIMIZERS)
# Elementwise ones of torch and of plugins are named by their class.
NADAM = "torch.optim:NAdam"


def settings(name: str, **more: Any) -> TrainSpec:
    own = {"schedule": "constant"} if name == "schedule_free" else {}
    common = {"learning_rate": 1e-2, "steps": STEPS, "batch_size": 4, "evaluate_every_steps": 2, "weight_decay": 0.1}
    return TrainSpec.model_validate({**common, **own, "optimizer": name, **more})


def pairs() -> list[Pair]:
    generator = torch.Generator().manual_seed(3)

    def ids(length: int) -> list[int]:
        return torch.randint(2, 60, (length,), generator=generator).tolist()

    return [Pair(ids(4 + number % 3), [*ids(3), 1]) for number in range(12)]


def patched(method: str = "full", model: Any = None) -> tuple[Method, Any]:
    torch.manual_seed(0)
    method_class = load_method(targets("method")[method])
    made = method_class(method_class.Config(), WordTokenizer())
    return made, made.patch(tiny_model("llama", dtype=torch.float32) if model is None else model)


def train(lanes: Sequence[Lane], rank: int = 0, **resources: Any) -> list[Trained]:
    training = Training(
        lanes=lanes,
        architecture=architecture_of(lanes[0].model.config),
        resources=ResourceSpec.model_validate(resources),
        rank=rank,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    )
    results = training.run(pairs(), pairs()[:4])
    assert all(isinstance(result, Trained) for result in results)
    return results  # type: ignore[return-value]


def lane_of(name: str, method: str = "full", model: Any = None, **more: Any) -> Lane:
    return Lane(*patched(method, model), settings(name, **more), seed=0, progress=lambda event: None)


def in_plain_torch(train_spec: TrainSpec, *make: Callable[[Any], torch.optim.Optimizer]) -> list[float]:
    """Training losses of a plain loop, each dev loss of the weights that are scored behind the step it follows."""
    method, model = patched()
    order = Lane(method, model, train_spec, seed=0, progress=lambda event: None)
    order.begin(pairs(), CPU)
    factor, losses = learning_rate_factor(train_spec, STEPS), []

    def loss_of(chosen: Sequence[Pair]) -> torch.Tensor:
        batch = architecture_of(model.config).batch(chosen, 0)
        logits = model(**accepted_inputs(model, batch.inputs)).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1)[batch.predicting], batch.target_ids)

    optimizers = [each(model) for each in make]
    for step in range(STEPS):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = train_spec.learning_rate * factor(step)
        loss = loss_of([pairs()[index] for index in order.order[step]])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step % 2:
            with torch.no_grad(), scored_weights(optimizers[0]):
                losses.append(float(loss_of(pairs()[:4])))
    return losses


def losses_of(trained: Trained) -> list[float]:
    dev = {point.step: point.loss for point in trained.dev_curve}
    return [loss for point in trained.train_curve for loss in (point.loss, dev.get(point.step)) if loss is not None]


def split(model: Any, wanted: bool) -> list[dict[str, Any]]:
    """Groups of the matrices within a Llama, or of all else; norms do not decay."""
    named = dict(model.named_parameters())
    matrix = {name for name in named if name.endswith("proj.weight")}
    chosen = {name: part for name, part in named.items() if (name in matrix) is wanted}
    return [
        {"params": [part for name, part in chosen.items() if ("norm" in name) is spared], "weight_decay": decay}
        for spared, decay in ((False, 0.1), (True, 0.0))
        if any(("norm" in name) is spared for name in chosen)
    ]


def everything(model: Any) -> list[dict[str, Any]]:
    return [*split(model, True), *split(model, False)]


def schedule_free(model: Any) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(everything(model), lr=1e-2)
    optimizer.train()
    return optimizer


def galore(model: Any) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    projection = {"rank": 4, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
    groups = [*({**group, **projection} for group in split(model, True)), *split(model, False)]
    return GaLoreAdamW(groups, lr=1e-2, eps=1e-8, no_deprecation_warning=True)


def where_there(names: Iterable[str]) -> list[Any]:
    """The names, of which apollo is skipped where its package is not."""
    return [pytest.param(name, marks=NEEDS_APOLLO) if name == "apollo" else name for name in names]


def apollo(model: Any) -> torch.optim.Optimizer:
    from apollo_torch import APOLLOAdamW

    projection = {
        "rank": 4,
        "proj": "random",
        "scale_type": "channel",
        "update_proj_gap": 2,
        "scale": 2.0,
        "proj_type": "std",
    }
    groups = [*({**group, **projection} for group in split(model, True)), *split(model, False)]
    return APOLLOAdamW(groups, lr=1e-2, eps=1e-8)


def of_bitsandbytes(name: str, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    def make(model: Any) -> torch.optim.Optimizer:
        import bitsandbytes.optim

        return getattr(bitsandbytes.optim, name)(everything(model), lr=1e-2, **options)

    return make


EXPECTED: dict[str, tuple[dict[str, Any], list[Callable[[Any], torch.optim.Optimizer]]]] = {
    "adamw": ({"amsgrad": True}, [lambda model: torch.optim.AdamW(everything(model), lr=1e-2, amsgrad=True)]),
    "adamw_8bit": ({"min_8bit_size": 512}, [of_bitsandbytes("AdamW8bit", min_8bit_size=512)]),
    "lion": ({"betas": [0.8, 0.95]}, [of_bitsandbytes("Lion", betas=(0.8, 0.95))]),
    "muon": (
        {"momentum": 0.9},
        [
            lambda model: torch.optim.Muon(split(model, True), lr=1e-2, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
            lambda model: torch.optim.AdamW(split(model, False), lr=1e-2),
        ],
    ),
    "schedule_free": ({}, [schedule_free]),
    "galore": ({"rank": 4, "update_proj_gap": 2}, [galore]),
    "apollo": ({"rank": 4, "update_proj_gap": 2, "scale": 2.0}, [apollo]),
    NADAM: (
        {"momentum_decay": 0.01},
        [lambda model: torch.optim.NAdam(everything(model), lr=1e-2, momentum_decay=0.01)],
    ),
}


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", where_there(EXPECTED))
def test_the_loop_trains_what_the_wrapped_class_trains_in_a_plain_loop(name: str) -> None:
    options, make = EXPECTED[name]
    lane = lane_of(name, optimizer_options=options, warmup_fraction=0.25, warmup_start="first_step")
    (trained,) = train([lane])
    tolerance = 1e-3 if name == "muon" else 1e-4  # Muon makes its steps in bf16
    assert losses_of(trained) == pytest.approx(in_plain_torch(lane.train, *make), abs=tolerance)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_stored_and_validated_is_the_average_and_not_where_gradients_are_taken(precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    lane = lane_of("schedule_free", model=tiny_model("llama", dtype=dtype), evaluate_every_steps=None)
    (trained,) = train([lane], precision=precision)
    with exact(lane.model):
        at_gradients = {name: part.detach().clone() for name, part in trained_parameters(lane.model)}
    assert any(not torch.allclose(trained.state[name], part) for name, part in at_gradients.items())
    _, fresh = patched(model=tiny_model("llama", dtype=torch.float32))
    for name, part in trained_parameters(fresh):
        part.data.copy_(trained.state[name])
    fresh = fresh.to(dtype)
    batch = architecture_of(fresh.config).batch(pairs()[:4], 0)
    logits = fresh(**accepted_inputs(fresh, batch.inputs)).logits.float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1)[batch.predicting], batch.target_ids)
    assert trained.best.loss == pytest.approx(float(loss), abs=1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.usefixtures("one_rank")
def test_trials_in_one_pass_have_optimisers_of_their_own() -> None:
    names = ["schedule_free", "muon", "lion"]
    alone = [train([lane_of(name, "lora")])[0] for name in names]
    models = copies_sharing_weights(tiny_model("llama", dtype=torch.float32), len(names))
    fused = train([lane_of(name, "lora", model) for name, model in zip(names, models, strict=True)])
    for one, other in zip(fused, alone, strict=True):
        assert losses_of(one) == pytest.approx(losses_of(other), abs=1e-5)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("name", "stage"), [("lion", 1), ("lion", 3), (NADAM, 2), ("adamw_8bit", 2)])
def test_elementwise_ones_train_the_same_under_zero(name: str, stage: int) -> None:
    (whole,) = train([lane_of(name, "lora")])
    (cut,) = train([lane_of(name, "lora")], zero_stage=stage)
    assert losses_of(cut) == pytest.approx(losses_of(whole), abs=1e-4)


@pytest.mark.parametrize("name", where_there([*NAMES, NADAM, "torch.optim:RMSprop"]))
def test_what_an_optimiser_is_said_to_keep_is_what_it_keeps(name: str) -> None:
    _, model = patched()
    large = nn.Linear(100, 90)
    model.add_module("large", large)
    train_spec = settings(name, optimizer_options={"rank": 4} if name in ("galore", "apollo") else {})
    optimizer = make_optimizer(train_spec, model, [{"params": [part for _, part in trained_parameters(model)]}])
    for part in model.parameters():
        part.grad = torch.ones_like(part)
    optimizer.step()
    kept = 0
    for state in optimizer.state.values():
        tensors = [value for key, value in state.items() if key != "step"]
        tensors = [getattr(value, "ortho_matrix", value) for value in tensors]
        kept += sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor) and value.ndim)
    assert load_optimizer(name)(train_spec).state_bytes(model.to("meta")) == pytest.approx(kept, rel=0.002)


def resolved(train_spec: dict[str, Any], plugins_dir: Path | None = None, **resources: Any) -> Any:
    spec = validated(TrainSpec, train_spec, "methods.0.train")
    resource_spec = ResourceSpec.model_validate(resources)
    return RegistryResolver(plugins_dir).optimizer(spec, resource_spec, "methods.0")


@pytest.mark.parametrize(
    ("train_spec", "resources", "message"),
    [
        ({"optimizer": "adafactor"}, {"zero_stage": 1}, r"adafactor needs whole matrices.*zero_stage: 0 \(it is 1\)"),
        ({"optimizer": "muon"}, {"zero_stage": 3}, "muon needs whole matrices"),
        ({"optimizer": "galore"}, {"zero_stage": 2}, "galore needs whole matrices"),
        ({"optimizer": "torch.optim:Muon"}, {"zero_stage": 1}, "torch.optim:Muon needs whole matrices"),
        (
            {"optimizer": "schedule_free", "schedule": "constant"},
            {"zero_stage": 2},
            "schedule_free scores other weights than it trains",
        ),
        (
            {"optimizer": "schedule_free"},
            {},
            r"schedule_free needs no schedule; set train.schedule: constant \(it is l",
        ),
        (
            {"optimizer": "schedule_free", "schedule": "constant", "adam_beta1": 0},
            {},
            r"methods.0.train.optimizer: schedule_free divides by adam_beta1 .* set it above 0 \(it is 0\)",
        ),
        (
            {"optimizer": "schedulefree:AdamWScheduleFree", "optimizer_options": {"betas": [0.0, 0.99]}},
            {},
            "AdamWScheduleFree cannot step and score with optimizer_options: .* ZeroDivisionError",
        ),
        pytest.param({"optimizer": "apollo"}, {"zero_stage": 1}, "apollo needs whole matrices", marks=NEEDS_APOLLO),
        ({"optimizer": "galore", "optimizer_options": {"rnk": 1}}, {}, "has no such option; did you mean 'rank'"),
        ({"optimizer": "galore", "optimizer_options": {"rank": 0}}, {}, "options.rank: must be a whole number above 0"),
        ({"optimizer": "galore", "optimizer_options": {"update_proj_gap": 0}}, {}, "update_proj_gap: must be a whole"),
        ({"optimizer": "torch.optim:Rprop", "weight_decay": 0.1}, {}, "Rprop has no weight decay, so that weight_deca"),
        (
            {"optimizer": "torch.optim:SGD", "adam_beta2": 0.95},
            {},
            "methods.0.train.optimizer: torch.optim:SGD does not read adam_beta2, so that it has no effect; leave it",
        ),
        ({"optimizer": "torch:nn"}, {}, "'torch:nn' is not an optimizer"),
        ({"optimizer": "galore"}, {"checkpoint_every_steps": 5}, "galore keeps what no checkpoint holds"),
        ({"optimizer": "adamm"}, {}, "methods.0.train.optimizer: there is no optimizer 'adamm'; did you mean 'adamw'"),
        ({"optimizer": "torch.optim:Muom"}, {}, "'torch.optim:Muom' cannot be loaded: torch.optim has no 'Muom'"),
        ({"optimizer": "torch.optim:LBFGS"}, {}, "torch.optim:LBFGS cannot"),
        ({"optimizer": "torch.optim:Adagrad"}, {}, "Adagrad has state before its first step"),
        (
            {"optimizer_options": {"betas": [0.9, 0.99]}},
            {},
            "methods.0.train.optimizer_options.betas: set train.adam_beta1 and train.adam_beta2 instead",
        ),
        ({"optimizer": "lion", "optimizer_options": {"lr": 1}}, {}, "optimizer_options.lr: set train.learning_rate"),
        ({"optimizer": "lion", "optimizer_options": {"beta": 1}}, {}, "Lion has no such option; did you mean 'betas'"),
        ({"optimizer": "muon", "optimizer_options": {"momentum": -1}}, {}, "muon cannot step with optimizer_options"),
    ],
)
def test_what_cannot_be_had_is_one_error_before_the_sweep(
    train_spec: dict[str, Any], resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(train_spec, **resources)


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "schedulefree", None)
    train = {"optimizer": "schedule_free", "schedule": "constant", "learning_rate": 7e-3}
    with pytest.raises(
        ConfigError, match=r"schedule_free needs the package schedulefree: pip install 'tuneoff\[optimi"
    ):
        resolved(train)


PLUGIN = """
import torch
from bench.optimizers.optimizer import Optimizer


class Plain(Optimizer):
    '''Steps of one size.'''

    @classmethod
    def torch_class(cls):
        return torch.optim.SGD
"""


@pytest.mark.usefixtures("one_rank")
def test_an_optimiser_of_a_folder_is_known_by_its_file_and_its_source_is_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "plain_steps.py").write_text(PLUGIN, encoding="utf-8")
    found, whose = resolved({"optimizer": "plain_steps", "optimizer_options": {"momentum": 0.9}}, tmp_path)
    assert (found.optimizer, whose.name) == ("plain_steps:Plain", "plain_steps")
    base = trial()
    own = base.model_copy(update={"train": found, "optimizer": whose})
    changed = own.model_copy(update={"optimizer": whose.model_copy(update={"source_sha256": "0" * 64})})
    assert len({base.trial_id, own.trial_id, changed.trial_id}) == 3
    assert ("optimizer", whose) in own.resolved
    lane = lane_of("plain_steps:Plain", "lora", optimizer_options={"momentum": 0.9})
    train([lane])
    assert isinstance(lane.optimizer, torch.optim.SGD)


def test_a_class_of_torchs_kind_that_nobody_knows_is_found_again_by_ranks(tmp_path: Path) -> None:
    text = "import torch\n\n\nclass Mine(torch.optim.SGD):\n    whole_matrices = False\n"
    (tmp_path / "own_steps.py").write_text(text, encoding="utf-8")
    found, whose = resolved({"optimizer": "own_steps:Mine"}, tmp_path)
    require_plugins(trial().model_copy(update={"train": found, "optimizer": whose}))
    other = whose.model_copy(update={"source_sha256": "0" * 64})
    with pytest.raises(RegistryError, match=r"the optimizer 'own_steps:Mine' .* is another version here"):
        require_plugins(trial().model_copy(update={"train": found, "optimizer": other}))


def test_an_entry_point_may_be_a_class_of_torchs_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.plugins.registry.entry_points", lambda group: [EntryPoint("nadam", NADAM, group)])
    listed = {entry.name: entry for entry in describe("optimizer")}
    assert (listed["nadam"].target, listed["nadam"].problem) == (NADAM, None)


OF_THE_FAMILY = """
from bench.optimizers.elementwise import AdamW


class OfTheFamily(AdamW):
    checkpoints = True
"""


def test_an_optimiser_of_adams_family_takes_what_the_sweep_says_of_adam(tmp_path: Path) -> None:
    (tmp_path / "of_the_family.py").write_text(OF_THE_FAMILY, encoding="utf-8")
    found, _ = resolved({"optimizer": "of_the_family", "adam_beta2": 0.95, "adam_epsilon": 1e-6}, tmp_path)
    arguments = load_optimizer(found.optimizer)(found).arguments()
    assert (arguments["betas"], arguments["eps"]) == ((0.9, 0.95), 1e-6)


REMEMBERS = """
import torch


class InParts(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["parts"] = [parameter.grad.clone()]
        return super().step(closure)


class OfGroups(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            group["mean"] = sum(parameter.grad.mean() for parameter in group["params"])
        return super().step(closure)


class SaysSo(torch.optim.SGD):
    checkpoints = False
"""


def test_what_no_checkpoint_can_hold_is_refused_where_there_are_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "remembers.py").write_text(REMEMBERS, encoding="utf-8")
    whys = {"InParts": r" \(the state 'parts', a list\)", "OfGroups": r" \('mean' of its groups, a Te", "SaysSo": ""}
    for name, why in whys.items():
        train_spec = {"optimizer": f"remembers:{name}"}
        assert resolved(train_spec, tmp_path)
        with pytest.raises(ConfigError, match=f"remembers:{name} keeps what no checkpoint holds{why}.*; leave resourc"):
            resolved(train_spec, tmp_path, checkpoint_every_steps=2)


@pytest.mark.parametrize("name", where_there([*NAMES, NADAM, "torch.optim:RMSprop"]))
def test_checkpoints_hold_what_they_are_said_to_hold(name: str) -> None:
    kind = load_optimizer(name)
    if kind.checkpoints:
        kind(settings(name, weight_decay=0)).check_checkpoints()


def test_an_optimiser_says_how_often_it_does_rare_work() -> None:
    def period(name: str, **options: Any) -> int:
        return load_optimizer(name)(settings(name, optimizer_options=options)).period()

    assert [period("adamw"), period(NADAM), period("galore"), period("galore", update_proj_gap=7)] == [1, 1, 200, 7]
    assert [period("apollo"), period("apollo", proj="svd")] == [1, 200], "only decompositions take time"


def test_ids_change_with_what_is_new_alone() -> None:
    base = trial()
    new: list[dict[str, object]] = [
        {"optimizer": "lion"},
        {"optimizer": "lion", "optimizer_options": {"betas": [0.9, 0.98]}},
        {"warmup_fraction": 0.1},
        {"schedule": "wsd"},
        {"schedule": "wsd", "decay_fraction": 0.2},
    ]
    assert len({base.trial_id, *(varied(base, train=train_spec).trial_id for train_spec in new)}) == 6
    defaults: dict[str, object] = {"optimizer_options": {}, "warmup_fraction": 0.0, "decay_fraction": 0.1}
    assert varied(base, train=defaults).trial_id == base.trial_id


@pytest.mark.parametrize(
    ("schedule", "theirs", "options"),
    [
        ("inverse_sqrt", "inverse_sqrt", {}),
        ("wsd", "warmup_stable_decay", {"num_decay_steps": 5}),
        ("linear", "linear", {}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(schedule: str, theirs: str, options: Any, warmup: int) -> None:
    from transformers.optimization import get_scheduler

    fractions: dict[str, Any] = {"warmup_fraction": warmup / 21} if warmup else {}
    if schedule == "wsd":
        fractions["decay_fraction"] = 0.2  # of 21 steps: 4.2, rounded up
    ours = learning_rate_factor(TrainSpec.model_validate({"schedule": schedule, **fractions}), 21)
    made = get_scheduler(theirs, torch.optim.AdamW([torch.zeros(1)]), warmup, 21, scheduler_specific_kwargs=options)
    right = made.lr_lambdas[0]  # type: ignore[attr-defined]
    assert [ours(step) for step in range(21)] == pytest.approx([right(step) for step in range(21)])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"warmup_ratio": 0.1}, "warmup_ratio: unknown key .*here that is train.warmup_fraction"),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "set either warmup_steps or warmup_fraction"),
        ({"decay_fraction": 0.2}, "decay_fraction has no effect with schedule: linear"),
        ({"schedule": "wsd", "warmup_fraction": 0.6, "decay_fraction": 0.5}, "more than all steps together"),
        ({"warmup_fraction": 1.0}, "warmup_fraction: Input should be less than 1"),
    ],
)
def test_schedules_that_cannot_be_are_told(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(TrainSpec, train, "train")


def test_a_warm_up_does_not_run_into_the_decay() -> None:
    train = {"schedule": "wsd", "steps": 31, "decay_fraction": 0.1}  # rounded up: the last 4 steps
    check_sizes(validated(TrainSpec, {**train, "warmup_steps": 27}, "train"), DecodeSpec(), "methods.0")
    into_it = validated(TrainSpec, {**train, "warmup_steps": 28}, "train")  # records from before have it
    with pytest.raises(ConfigError, match=r"methods.0.train.warmup_steps: 28 run into the last 4 of 31 .* at most 27"):
        check_sizes(into_it, DecodeSpec(), "methods.0")


def test_a_class_of_its_own_may_also_say_that_it_needs_whole_matrices() -> None:
    kind = type("Own", (torch.optim.SGD,), {"whole_matrices": False})
    assert optimizer_of_torch_class(kind).needs_zero_0() is None
    assert optimizer_of_torch_class(type("Other", (torch.optim.SGD,), {})).needs_zero_0() is not None
