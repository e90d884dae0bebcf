"""Trials that train in one pass have the same results as alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from one_rank import training_alone

from bench.conformance.tiny_models import VOCABULARY, WordTokenizer, tiny_model
from bench.method import Lanes, Method, MethodError
from bench.models.architecture import Pair
from bench.plugins.registry import load_method, targets
from bench.schema.trial import TrainSpec
from bench.train.fused_engine import copies_sharing_weights
from bench.train.lane import Diverged, Lane, Trained
from methods.full import FullFineTuning
from methods.lora import LoRA

TOLERANCE = 1e-12

PROMPT: dict[str, Any] = {"num_prompt_tokens": 3, "init": "normal"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": ("prefix_tuning", PROMPT),
    "prefix_key_value": ("prefix_tuning", {**PROMPT, "parametrization": "key_value"}),
    "prefix_mlp": ("prefix_tuning", {**PROMPT, "parametrization": "mlp", "mlp_hidden_size": 8}),
    "prefix_infix": ("prefix_tuning", {**PROMPT, "infix": True}),
    "prompt": ("prompt_tuning", PROMPT),
    "prompt_infix": ("prompt_tuning", {**PROMPT, "infix": True}),
    "lora": ("lora", {"rank": 2}),
    "lora_all_linear": ("lora", {"rank": 2, "target_modules": "all_linear"}),
    "ia3": ("ia3", {}),
}
# Everything that may differ between trials that share their passes does. The second ends first.
SHAPE: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2, "label_smoothing": 0.1}
TRAIN = (
    TrainSpec(learning_rate=1e-2, steps=6, warmup_steps=2, max_grad_norm=0.05, evaluate_every_steps=2, **SHAPE),
    TrainSpec(learning_rate=3e-2, steps=4, schedule="cosine", weight_decay=0.1, max_grad_norm=0, **SHAPE),
    TrainSpec(learning_rate=3e-3, steps=6, schedule="constant", loss_reduction="sequence_sum", adam_beta2=0.9, **SHAPE),
)


def pairs(count: int, seed: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    return [Pair(ids(3 + number % 7), [*ids(2 + number % 5), 1]) for number in range(count)]


def patched(name: str, model: Any, seed: int) -> tuple[Method, Any]:
    method_name, settings = METHODS[name]
    method_class = load_method(targets("method")[method_name])
    method = method_class(method_class.Config(**settings), WordTokenizer())
    torch.manual_seed(seed)
    return method, method.patch(model)


def lanes_on(models: Sequence[Any], name: str, trains: Sequence[TrainSpec], seeds: Sequence[int]) -> list[Lane]:
    return [
        Lane(*patched(name, model, seed), train, seed, lambda event: None)
        for model, train, seed in zip(models, trains, seeds, strict=True)
    ]


def run(lanes: Sequence[Lane]) -> list[Trained | Diverged]:
    return training_alone(lanes).run(pairs(24, seed=5), pairs(5, seed=6))


def fresh(family: str) -> Any:
    return tiny_model(family).double().requires_grad_(False).eval()


def trained_alone(family: str, name: str, train: TrainSpec, seed: int) -> Trained:
    (result,) = run(lanes_on([fresh(family)], name, [train], [seed]))
    assert isinstance(result, Trained)
    return result


def require_equal(computed: Trained | Diverged, expected: Trained) -> None:
    assert isinstance(computed, Trained)
    for curve in ("train_curve", "dev_curve"):
        points, wanted = getattr(computed, curve), getattr(expected, curve)
        assert [point.step for point in points] == [point.step for point in wanted]
        assert [point.loss for point in points] == pytest.approx([point.loss for point in wanted], abs=TOLERANCE)
    assert [point.learning_rate for point in computed.train_curve] == [
        point.learning_rate for point in expected.train_curve
    ]
    assert computed.best.step == expected.best.step
    assert computed.state.keys() == expected.state.keys()
    for key, tensor in expected.state.items():
        torch.testing.assert_close(computed.state[key], tensor, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("family", "name"),
    [("gpt2", name) for name in ("prefix", "prefix_mlp", "prompt", "prompt_infix", "lora", "ia3")]
    + [("llama", name) for name in METHODS if name != "prompt_infix"]
    + [("t5", "prompt")],
)
def test_trials_in_one_pass_train_to_what_each_trains_to_alone(one_rank: None, family: str, name: str) -> None:
    seeds = (0, 1, 2)
    fused = run(lanes_on(copies_sharing_weights(fresh(family), 3), name, TRAIN, seeds))
    for found, train, seed in zip(fused, TRAIN, seeds, strict=True):
        require_equal(found, trained_alone(family, name, train, seed))


def test_a_trial_that_diverges_takes_nothing_from_the_others(one_rank: None) -> None:
    trains = (TRAIN[0], TRAIN[1].model_copy(update={"learning_rate": 1e200}), TRAIN[2])
    seeds = (0, 1, 2)
    fused = run(lanes_on(copies_sharing_weights(fresh("llama"), 3), "prefix", trains, seeds))
    assert isinstance(fused[1], Diverged)
    for number in (0, 2):
        require_equal(fused[number], trained_alone("llama", "prefix", trains[number], seeds[number]))


def test_gradient_checkpointing_finds_the_parameters_of_each_row_again(one_rank: None) -> None:
    plain, saving = (
        run(
            lanes_on(
                copies_sharing_weights(fresh("llama"), 2),
                "lora",
                [train.model_copy(update={"gradient_checkpointing": checkpointing}) for train in TRAIN[:2]],
                (0, 1),
            )
        )
        for checkpointing in (False, True)
    )
    for found, expected in zip(saving, plain, strict=True):
        assert isinstance(expected, Trained)
        require_equal(found, expected)


class JoinsNothing(LoRA):
    def fuse(self, models: Sequence[Any], lanes: Lanes) -> None:
        pass


def test_a_method_that_forgets_trained_tensors_is_found_out(one_rank: None) -> None:
    models = copies_sharing_weights(fresh("llama"), 2)
    lanes = [
        Lane(method, method.patch(model), TRAIN[0], 0, lambda event: None)
        for method, model in zip((JoinsNothing(LoRA.Config()), JoinsNothing(LoRA.Config())), models, strict=True)
    ]
    with pytest.raises(MethodError, match=r"JoinsNothing: \d+ of \d+ trained tensors get no gradient"):
        run(lanes)


def test_a_method_refuses_unless_it_says_otherwise() -> None:
    method = FullFineTuning(FullFineTuning.Config())
    assert not method.fusable
    with pytest.raises(MethodError, match="trials of FullFineTuning with these settings cannot share"):
        method.fuse([], Lanes())


def test_copies_share_weights_and_nothing_else() -> None:
    model, other = copies_sharing_weights(fresh("gpt2"), 2)
    assert [id(weight) for weight in model.parameters()] == [id(weight) for weight in other.parameters()]
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}
    assert model.get_output_embeddings().weight is other.get_input_embeddings().weight, "tied weights stay tied"
