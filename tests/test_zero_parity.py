"""Two gloo ranks under ZeRO 0 to 3 train exactly what one plain PyTorch process trains.

The reference below is a loop of its own: plain AdamW, no DeepSpeed, no process group. Losses agree to 1e-5 and trained
tensors to 2e-5 (fp32; the order of sums differs).
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from bench.architecture import Pair, accepted_inputs, architecture_of
from bench.data import training_order
from bench.method import Method, trained_parameters
from bench.models import load_model
from bench.registry import load_method, targets
from bench.spec import ModelSpec, ResourceSpec, TrainSpec

# Names of trials to method, settings and learning rate.
PROMPT = {"init": "vocabulary", "num_prompt_tokens": 3}
METHODS: dict[str, tuple[str, dict[str, Any], float]] = {
    "full": ("full", {}, 1e-3),
    "prompt_tuning": ("prompt_tuning", PROMPT, 3e-2),
    "prefix_tuning": ("prefix_tuning", PROMPT, 3e-2),
    "prefix_mlp": ("prefix_tuning", {**PROMPT, "parametrization": "mlp", "mlp_hidden_size": 16}, 3e-3),
}
STEPS = 6
LOSS_TOLERANCE = 1e-5
TENSOR_TOLERANCE = 2e-5


def pairs() -> list[Pair]:
    generator = torch.Generator().manual_seed(5)

    def ids(length: int) -> list[int]:
        return torch.randint(2, 300, (length,), generator=generator).tolist()

    return [Pair(ids(4 + number % 7), [*ids(3 + number % 5), 1]) for number in range(24)]


def train_spec(name: str) -> TrainSpec:
    return TrainSpec(
        learning_rate=METHODS[name][2],
        steps=STEPS,
        batch_size=8,
        micro_batch_size=2,
        warmup_steps=2,
        weight_decay=0.01,
        max_grad_norm=0.5,
        label_smoothing=0.1,
        evaluate_every_steps=3,
    )


def patched(name: str, folder: str) -> tuple[Method, Any]:
    method_name, settings, _ = METHODS[name]
    method_class = load_method(targets("method")[method_name])
    method = method_class(method_class.Config(**settings))
    torch.manual_seed(0)
    return method, method.patch(load_model(ModelSpec(path=folder), torch.float32))


def plain_run(name: str, folder: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    train, data = train_spec(name), pairs()
    method, model = patched(name, folder)
    architecture = architecture_of(model.config)
    parameters = dict(trained_parameters(model))
    optimizer = torch.optim.AdamW(parameters.values(), lr=train.learning_rate, weight_decay=train.weight_decay)
    losses = []
    model.train()
    for step, indices in enumerate(training_order([p.num_tokens for p in data], 8, STEPS, seed=0)):
        batch = architecture.batch([data[index] for index in indices], pad_token_id=0)
        logits = model(**accepted_inputs(model, batch.inputs)).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1)[batch.predicting], batch.target_ids, label_smoothing=train.label_smoothing
        )
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * ((step + 1) / 2 if step < 2 else 1 - (step - 2) / (STEPS - 2))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), train.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: tensor.detach() for name, tensor in method.adapter_state(model).items()}


def rank_main(rank: int, ranks: int, stage: int, port: int, folder: str, out: str) -> None:
    from torch.distributed import TCPStore

    from bench.measure import PhaseMeter
    from bench.spec import MethodSpec, TaskSpec, TrialSpec
    from bench.train import Training
    from bench.worker import RankContext, join_process_group

    torch.set_num_threads(1)
    device = torch.device("cpu")
    resources = ResourceSpec(ranks=ranks, zero_stage=stage)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    context = RankContext(rank, ranks, 0, store, Path(out), "", 1)
    nothing = MethodSpec(name="", target="")
    spec = TrialSpec(
        method=nothing,
        model=ModelSpec(),
        task=TaskSpec(name="", target=""),
        train=TrainSpec(),
        decode={},
        resources=resources,
        seed=0,
    )
    join_process_group(spec, context, device)
    found = {}
    for name in METHODS:
        method, model = patched(name, folder)
        trained = Training(
            method=method,
            model=model,
            architecture=architecture_of(model.config),
            train=train_spec(name),
            resources=resources,
            seed=0,
            rank=rank,
            device=device,
            pad_token_id=0,
            meter=PhaseMeter(device),
            progress=lambda event: None,
        ).run(pairs(), pairs()[:5])
        torch.save(trained.state, Path(out) / f"{name}-{rank}.pt")
        found[name] = {
            "losses": [point.loss for point in trained.train_curve],
            "dev": [point.loss for point in trained.dev_curve],
            "best": trained.best.step,
        }
    (Path(out) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def references(tiny_models: dict[str, Path]) -> dict[tuple[str, str], Any]:
    return {(family, name): plain_run(name, str(folder)) for family, folder in tiny_models.items() for name in METHODS}


@pytest.mark.parametrize(
    ("family", "ranks", "stage"),
    [("llama", 2, stage) for stage in (0, 1, 2, 3)] + [("gpt2", 2, 3), ("gpt2", 1, 0), ("t5", 2, 3)],
)
def test_ranks_and_stages_train_what_one_plain_process_trains(
    family: str, ranks: int, stage: int, tiny_models: dict[str, Path], references: Any, tmp_path: Path
) -> None:
    arguments = (ranks, stage, free_port(), str(tiny_models[family]), str(tmp_path))
    mp.spawn(rank_main, args=arguments, nprocs=ranks)
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for name in METHODS:
        losses, tensors = references[family, name]
        for rank in range(ranks):
            assert reports[rank][name]["losses"] == pytest.approx(losses, abs=LOSS_TOLERANCE)
            assert reports[rank][name]["dev"] == reports[0][name]["dev"]
            state = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            if reports[rank][name]["best"] == STEPS:
                assert state.keys() == tensors.keys()
                for key, tensor in tensors.items():
                    torch.testing.assert_close(state[key], tensor, atol=TENSOR_TOLERANCE, rtol=0)
        assert reports[0][name]["best"] == STEPS, "the last state was not the best, so its tensors were not compared"
