"""LISA trains the blocks of its turn, with fresh moments, as a loop that freezes the others does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_rank import training_alone
from torch import nn

from bench.config.resolver import RegistryResolver
from bench.conformance.subject import LONG_PAIRS, PAIRS, batch_of, logits_of
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import MethodError
from bench.plugins.registry import targets
from bench.schema.trial import MethodSpec, ResourceSpec, TrainSpec
from bench.schema.validation import ConfigError
from bench.train.lane import Lane, Trained
from bench.train.optimizer import learning_rate_factor
from methods.lisa import LayerwiseSampling

BLOCKS, EVERY, STEPS = 4, 3, 8
EXAMPLES = [*PAIRS, *LONG_PAIRS[:3]] * 2


class Watched(LayerwiseSampling):
    """Remembers which tensors have moved in each step."""

    def patch(self, model: Any) -> nn.Module:
        patched = super().patch(model)
        self.moved: list[set[str]] = []
        self.before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        return patched

    def after_step(self, model: nn.Module, step: int) -> None:
        now = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        self.moved.append({name for name, tensor in now.items() if not torch.equal(tensor, self.before[name])})
        self.before = now


def patched(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Watched, Any]:
    method = Watched(Watched.Config(**{"num_layers": 1, "every_steps": EVERY, **config}), WordTokenizer())
    torch.manual_seed(seed)
    return method, method.patch(tiny_model("llama", dtype=dtype, layers=BLOCKS))


def train(method: Watched, model: Any, precision: Any = "fp32") -> tuple[Lane, Trained]:
    spec = TrainSpec(learning_rate=1e-2, steps=STEPS, batch_size=4, weight_decay=0.1, max_grad_norm=0.0)
    lane = Lane(method, model, spec, 0, lambda event: None)
    (trained,) = training_alone([lane], precision=precision).run(EXAMPLES, EXAMPLES[:3])
    assert isinstance(trained, Trained)
    return lane, trained


def blocks_of(names: set[str]) -> set[int]:
    return {int(name.split(".")[2]) for name in names if ".layers." in name}


def outside(names: Any) -> set[str]:
    return {name for name in names if ".layers." not in name}


def drawn(method: Watched, model: Any, step: int) -> int:
    idle = {id(parameter) for parameter in method.idle(model, step)}
    (block,) = blocks_of({name for name, parameter in model.named_parameters() if id(parameter) not in idle})
    return block


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_drawn_block_and_all_outside_of_blocks_move_and_nothing_else(precision: str) -> None:
    method, model = patched(dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    turns = [drawn(method, model, step) for step in range(1, STEPS + 1)]
    assert [turns[at : at + EVERY] for at in range(0, STEPS, EVERY)] == [
        [turns[at]] * len(turns[at : at + EVERY]) for at in range(0, STEPS, EVERY)
    ]
    lane, trained = train(method, model, precision)
    for block, moved in zip(turns, method.moved, strict=True):
        assert blocks_of(moved) <= {block}
        assert precision == "bf16" or blocks_of(moved) == {block}
        assert precision == "bf16" or outside(moved) == outside(trained.state)
    assert trained.state.keys() == dict(model.named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert set(turns) < set(range(BLOCKS)), "some are never drawn"
    assert lane.watch is not None
    assert lane.watch.unreached == [], "which is no fault of theirs"
    # The optimiser has moments of the last drawn block alone, and of what is outside.
    of_block = len(list(model.model.layers[0].parameters()))
    assert len(lane.optimizer.state) == of_block + len(outside(trained.state))


@pytest.mark.usefixtures("one_rank")
def test_it_trains_what_a_loop_trains_that_freezes_the_other_blocks() -> None:
    method, model = patched()
    lane, trained = train(method, model)
    method, other = patched()
    optimizer = None
    spec, losses = lane.train, []
    factor = learning_rate_factor(spec, STEPS)
    decaying = {name for name, _ in other.named_parameters() if "norm" not in name}
    state: dict[Any, Any] = {}
    for step in range(STEPS):
        block = drawn(method, other, step + 1)
        for name, parameter in other.named_parameters():
            parameter.requires_grad_(".layers." not in name or blocks_of({name}) == {block})
        active = {name: parameter for name, parameter in other.named_parameters() if parameter.requires_grad}
        if step % EVERY == 0:  # a new optimiser, which goes on with the moments of what is always trained
            optimizer = torch.optim.AdamW(
                [
                    {"params": [p for name, p in active.items() if (name in decaying) is decays], "weight_decay": decay}
                    for decays, decay in ((True, 0.1), (False, 0.0))
                ]
            )
            kept = {
                p: of
                for p, of in state.items()
                if any(p is each for name, each in active.items() if name in outside(active))
            }
            if step and drawn(method, other, step) == block:
                kept |= {p: of for p, of in state.items() if p.requires_grad}
            optimizer.state.update(kept)
        assert optimizer is not None
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * factor(step)
        batch = batch_of(other, [EXAMPLES[index] for index in lane.order[step]])
        loss = nn.functional.cross_entropy(logits_of(other, batch).flatten(0, 1)[batch.predicting], batch.target_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = dict(optimizer.state)
        losses.append(float(loss.detach()))
    assert [point.loss for point in trained.train_curve] == pytest.approx(losses, abs=1e-5)


def test_the_seed_of_a_trial_decides_which_blocks_come_when() -> None:
    def turns(seed: int) -> list[int]:
        method, model = patched(seed)
        return [drawn(method, model, step) for step in range(1, 60, EVERY)]

    assert turns(0) == turns(0) != turns(1)
    assert set(turns(0)) == set(range(BLOCKS))
    with pytest.raises(MethodError, match="num_layers: 5 is more than the 4 blocks"):
        patched(num_layers=5)


def test_it_is_refused_under_zero_and_not_in_bf16_or_with_checkpoints() -> None:
    resolver = RegistryResolver()
    method = MethodSpec(name="lisa", target=targets("method")["lisa"], config=LayerwiseSampling.Config().model_dump())
    allowed = ResourceSpec(precision="bf16", checkpoint_every_steps=5)
    resolver.check_together(method, TrainSpec(), allowed, "methods.0")
    with pytest.raises(ConfigError, match=r"resources.zero_stage: 1: lisa leaves some .* set zero_stage: 0"):
        resolver.check_together(method, TrainSpec(), allowed.model_copy(update={"zero_stage": 1}), "methods.0")
    averaged = TrainSpec(optimizer="schedule_free", schedule="constant")
    with pytest.raises(ConfigError, match=r"train.optimizer: schedule_free scores other weights .* lisa leaves some"):
        resolver.check_together(method, averaged, allowed, "methods.0")
