"""A training that continues from a checkpoint has, to the bit, the result of an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import completed, record, trial
from one_rank import training_alone
from safetensors import safe_open

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.conformance.tiny_models import WordTokenizer, tiny_gpt2
from bench.driver.fusable import why_alone
from bench.measure.provenance import cpu_flags
from bench.models.architecture import Pair
from bench.models.base import weights_dtype
from bench.plugins.registry import load_method, targets
from bench.report.caveats import caveats
from bench.report.rows import row
from bench.schema.digests import sha256_of
from bench.schema.record import Completed, Failed, TrialResult
from bench.schema.trial import TrainSpec
from bench.store.outbox import checkpoints_beside, new_attempt, open_attempt
from bench.store.records import Store
from bench.store.recover import recover
from bench.train.checkpoint import CheckpointError, Checkpoints
from bench.train.lane import Lane, Trained
from methods.parts.lora_family import svd_factors

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"dropout": 0.1},
    "prefix_tuning": {"num_prompt_tokens": 3, "init": "vocabulary"},
    "lisa": {"num_layers": 1, "every_steps": 3},
    "lora_ga": {"examples": 2, "rank": 2},
}
STEPS = 9
SEAL = {"trial": "a", "code": "b"}


class Interrupted(Exception):
    """The rank is gone."""


def train(
    name: str,
    checkpoints: Checkpoints | None,
    die_after: int | None = None,
    optimizer: str = "adamw",
    zero_stage: Any = 0,
    precision: Any = "fp32",
    evaluate_every_steps: int = 3,
    state_folder: Path | None = None,
) -> Trained:
    """Nine steps with warm-up, decay, clipping, two micro-batches a step, dropout, and a dev loss every three steps."""
    torch.manual_seed(7)
    model = tiny_model_with_dropout().to(weights_dtype(precision))
    method_class = load_method(targets("method")[name])
    method = method_class(method_class.Config(**SETTINGS[name]), WordTokenizer())
    patched = method.patch(model)
    if die_after is not None:
        make_die(method, die_after)
    settings = TrainSpec.model_validate(
        {
            "learning_rate": 3e-2,
            "steps": STEPS,
            "batch_size": 4,
            "micro_batch_size": 2,
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "max_grad_norm": 0.5,
            "schedule": "constant" if optimizer == "schedule_free" else "cosine",
            "evaluate_every_steps": evaluate_every_steps,
            "optimizer": optimizer,
            "optimizer_options": {"min_8bit_size": 16} if optimizer == "adamw_8bit" else {},
        }
    )
    lane = Lane(method, patched, settings, seed=0, progress=lambda event: None, state_folder=state_folder)
    training = training_alone([lane], checkpoints=checkpoints, zero_stage=zero_stage, precision=precision)
    (trained,) = training.run(pairs(), pairs()[:5])
    assert isinstance(trained, Trained)
    return trained


def tiny_model_with_dropout() -> Any:
    from transformers import GPT2LMHeadModel

    config = tiny_gpt2().config
    for place in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, place, 0.1)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def make_die(method: Any, step_of_death: int) -> None:
    def after_step(model: Any, step: int) -> None:
        if step == step_of_death:
            raise Interrupted

    method.after_step = after_step


def pairs() -> list[Pair]:
    generator = torch.Generator().manual_seed(5)

    def ids(length: int, words: int) -> list[int]:
        return torch.randint(2, words, (length,), generator=generator).tolist()

    return [Pair(ids(4 + number % 7, 90), [*ids(3 + number % 5, 12), 1]) for number in range(24)]


def assert_same(one: Trained, other: Trained) -> None:
    assert one.train_curve == other.train_curve
    assert one.dev_curve == other.dev_curve
    assert one.best == other.best
    assert one.state.keys() == other.state.keys()
    for key, tensor in one.state.items():
        assert torch.equal(tensor, other.state[key]), key


def places(folder: Path, every_steps: int = 2, seal: dict[str, Any] | None = None) -> Checkpoints:
    folder.mkdir(exist_ok=True)
    return Checkpoints(folder, every_steps, SEAL if seal is None else seal)


@pytest.mark.parametrize(
    ("name", "optimizer", "best"),
    [
        ("lora", "adamw", "before"),
        ("lora", "adafactor", "after"),
        ("lora", "muon", "after"),
        ("lora", "schedule_free", "after"),
        ("lora", "adamw_8bit", "after"),
        ("prefix_tuning", "adamw", "before"),
        ("prefix_tuning", "adamw", "after"),
        ("lisa", "adamw", "after"),
    ],
)
def test_continued_twice_equals_in_one_go(
    one_rank: None, tmp_path: Path, name: str, best: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if best == "before":  # The loss falls; turned round, the best state is the first one.
        falling = Lane.evaluated
        monkeypatch.setattr(Lane, "evaluated", lambda lane, step, loss: falling(lane, step, -loss))
    whole = train(name, None, optimizer=optimizer)
    assert (whole.best.step < 4) == (best == "before"), whole.dev_curve
    assert whole.cost.continued_after_steps == []
    for death in (5, 8):
        with pytest.raises(Interrupted):
            train(name, places(tmp_path / "checkpoints"), death, optimizer=optimizer)
    continued = train(name, places(tmp_path / "checkpoints"), optimizer=optimizer)
    assert continued.cost.continued_after_steps == [4, 6]
    assert continued.cost.steps == STEPS
    assert_same(continued, whole)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [
        *((0, "bf16"), (0, "fp16"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")),
        pytest.param(2, "fp16", marks=pytest.mark.skipif("avx512_fp16" not in cpu_flags(), reason="no units for fp16")),
    ],
)
def test_every_stage_and_precision_continues_to_the_bit(
    one_rank: None, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    settings: dict[str, Any] = {"zero_stage": zero_stage, "precision": precision}
    folder = tmp_path / "checkpoints"
    with pytest.raises(Interrupted):
        train("lora", places(folder), 5, **settings)
    continued = train("lora", places(folder), **settings)
    assert continued.cost.continued_after_steps == [4]
    assert_same(continued, train("lora", None, **settings))
    assert sorted(path.name[:13] for path in folder.iterdir()) == [
        *(["engine-000000"] if zero_stage else []),
        "step-00000008",
    ]


def test_an_average_of_masters_continues_to_the_bit(one_rank: None, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": "schedule_free", "precision": "bf16"}
    with pytest.raises(Interrupted):
        train("lora", places(tmp_path / "checkpoints"), 5, **settings)
    continued = train("lora", places(tmp_path / "checkpoints"), **settings)
    assert continued.cost.continued_after_steps == [4]
    assert_same(continued, train("lora", None, **settings))


def test_another_number_of_ranks_starts_from_zero_and_says_so(
    one_rank: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed_for = Checkpoints.sealed_for

    def sealed_for_two_ranks(checkpoints: Checkpoints, order: Any) -> Checkpoints:
        sealed = sealed_for(checkpoints, order)
        assert sealed.seal["number of ranks"] == 1
        return replace(sealed, seal={**sealed.seal, "number of ranks": 2})

    with monkeypatch.context() as patches:
        patches.setattr(Checkpoints, "sealed_for", sealed_for_two_ranks)
        with pytest.raises(Interrupted):
            train("lora", places(tmp_path / "checkpoints"), 5, zero_stage=2)
    again = train("lora", places(tmp_path / "checkpoints", every_steps=100), zero_stage=2)
    output = capsys.readouterr().out
    assert "was made with another number of ranks; removed, training starts from zero" in output
    assert again.cost.continued_after_steps == []


def test_a_changed_file_of_the_engine_is_not_opened(
    one_rank: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(Interrupted):
        train("lora", places(folder), 5, zero_stage=2)
    changed = next((folder / "engine-00000004").iterdir())
    changed.write_bytes(b"no pickle")
    again = train("lora", places(folder, every_steps=100), zero_stage=2)
    assert f"{changed} of " in capsys.readouterr().out
    assert again.cost.continued_after_steps == []


@pytest.mark.parametrize(("every_steps", "kept"), [(8, ["state-00000006"]), (4, ["state-00000004", "state-00000006"])])
def test_a_best_state_in_files_goes_when_a_better_one_is_there_unless_a_checkpoint_names_it(
    every_steps: int, kept: list[str], one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr("bench.train.lane.LARGE_BYTES", 0)
    settings: dict[str, Any] = {"zero_stage": 3, "evaluate_every_steps": 2, "state_folder": tmp_path / "state"}
    with pytest.raises(Interrupted):
        train("full", places(folder, every_steps), 7, **settings)
    assert sorted(path.name for path in folder.glob("state-*")) == kept
    if every_steps == 4:
        continued = train("full", places(folder, every_steps), **settings)
        assert continued.cost.continued_after_steps == [4]
        assert_same(continued, train("full", None, **settings))


def test_a_best_state_is_hashed_once(one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.parent.name)
        return sha256_of(path)

    monkeypatch.setattr("bench.train.checkpoint.sha256_of", noted)
    monkeypatch.setattr("bench.train.lane.LARGE_BYTES", 0)
    folder = tmp_path / "checkpoints"
    with pytest.raises(Interrupted):
        train("full", places(folder), 9, zero_stage=3, evaluate_every_steps=4, state_folder=tmp_path / "state")
    assert hashed == ["state-00000004", "state-00000008"], "at steps 4 and 8, and not again at step 6"
    (sealed,) = folder.glob("step-00000008*")
    with safe_open(sealed, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    beside = sorted(path for name in ("engine-00000008", "state-00000008") for path in (folder / name).iterdir())
    assert len(beside) == 3
    assert facts["files"] == {path.relative_to(folder).as_posix(): sha256_of(path) for path in beside}


def test_making_checkpoints_changes_nothing_and_leaves_the_last(one_rank: None, tmp_path: Path) -> None:
    assert_same(train("lora", places(tmp_path / "checkpoints")), train("lora", None))
    assert [path.name[:13] for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000008"]


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_start_that_comes_out_with_other_signs_is_that_of_the_first_attempt(
    zero_stage: int, one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("lora_ga", None, zero_stage=zero_stage)
    with pytest.raises(Interrupted):
        train("lora_ga", places(tmp_path / "checkpoints"), 5, zero_stage=zero_stage)

    def flipped(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, values, right = svd_factors(*arguments)
        signs = torch.tensor([1.0, -1.0]).repeat(2)
        return left * signs, values, right * signs[:, None]

    monkeypatch.setattr("methods.lora_ga.svd_factors", flipped)
    assert_same(train("lora_ga", places(tmp_path / "checkpoints"), zero_stage=zero_stage), whole)


def test_without_the_random_states_it_would_be_another_training(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train("lora", places(tmp_path / "checkpoints"), 5)
    monkeypatch.setattr("bench.train.checkpoint._set_random_states", lambda *_: None)
    assert train("lora", places(tmp_path / "checkpoints")).train_curve != train("lora", None).train_curve


def test_a_torn_or_changed_checkpoint_is_set_aside_and_named(
    one_rank: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    whole = train("lora", None)
    for damage in (lambda data: data[: len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(Interrupted):
            train("lora", places(folder), 5)
        (path,) = folder.glob("*.safetensors")
        path.write_bytes(damage(path.read_bytes()))
        capsys.readouterr()
        again = train("lora", places(folder, every_steps=100))
        assert f"{path} is damaged" in capsys.readouterr().out
        assert again.cost.continued_after_steps == []
        assert_same(again, whole)
        path.with_name(f"{path.name}.damaged").unlink()
        assert not list(folder.iterdir())


def test_a_checkpoint_of_other_sources_or_data_is_not_continued(
    one_rank: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train("lora", places(tmp_path / "checkpoints"), 5)
    fewer = pairs()[:-1]
    with monkeypatch.context() as patches:
        patches.setattr(f"{__name__}.pairs", lambda: fewer)
        with pytest.raises(Interrupted):
            train("lora", places(tmp_path / "checkpoints"), 5)
    assert "was made with another order of the data; removed, training starts from zero" in capsys.readouterr().out
    with pytest.raises(Interrupted):
        train("lora", places(tmp_path / "checkpoints"), 3)
    other = train("lora", places(tmp_path / "checkpoints", seal={**SEAL, "code": "c"}))
    assert "was made with another code; removed" in capsys.readouterr().out
    assert other.cost.continued_after_steps == []


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = places(tmp_path / "checkpoints")
    monkeypatch.setattr("bench.store.files.os.fsync", full)
    train("lora", checkpoints)
    assert "no checkpoint after step 4: [Errno 28]" in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_full_disk_under_zero_costs_the_checkpoint_and_keeps_the_one_before(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, written, write = tmp_path / "checkpoints", [], torch.save

    def until_full(state: Any, path: str, **options: Any) -> None:
        written.append(path)
        write(state, path, **options)
        if "engine-00000004" in path and "optim_states" in path:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", until_full)
    with pytest.raises(Interrupted):
        train("lora", places(folder), 5, zero_stage=2)
    assert "no checkpoint after step 4: PytorchStreamWriter failed" in capsys.readouterr().out
    assert len(written) >= 4
    assert sorted(path.name.rpartition("-")[0] for path in folder.iterdir()) == ["engine", "step-00000002"]
    continued = train("lora", places(folder, every_steps=100), zero_stage=2)
    assert continued.cost.continued_after_steps == [2]


def test_storage_that_a_node_does_not_see_is_one_error(one_rank: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="storage that all nodes share"):
        train("lora", Checkpoints(tmp_path / "elsewhere", 2, SEAL))


def test_checkpoints_outlive_a_driver_and_go_when_the_record_is_there(tmp_path: Path) -> None:
    spec = trial(checkpoint_every_steps=2)
    store = Store(tmp_path)
    started = new_attempt(spec, "demo", "fake", [])
    open_attempt(store.outbox, started)
    store.log("started", trial_id=spec.trial_id, attempt=started.attempt.attempt_id)
    folder = checkpoints_beside(store.outbox, spec.trial_id)
    for name in ("a.safetensors", "b.safetensors.damaged", ".c.partial"):
        (folder / name).touch()
    (folder / "engine-00000002").mkdir()
    (folder / "engine-00000002" / "pieces.pt").touch()
    with store.locked():
        recover(store)
        assert not store.outbox.exists()
        assert len(list(folder.iterdir())) == 4, "the retry continues from them"
        store.commit(record(spec, Failed(reason="timed_out", phase="train", rank=0, message="late")), [])
        assert len(list(folder.iterdir())) == 4, "so does --retry-failed"
        store.discard(spec.trial_id)
        store.commit(record(spec, completed()), [])
    assert [path.name for path in folder.iterdir()] == ["b.safetensors.damaged"]


def test_what_is_there_to_be_measured_is_trained_in_one_go(tmp_path: Path) -> None:
    spec = trial(checkpoint_every_steps=2)
    assert spec.checkpoint_every_steps == 2
    assert why_alone(spec) == "a trial that makes checkpoints runs alone"
    measured = spec.model_copy(update={"stage": "cost"})
    assert measured.checkpoint_every_steps is None
    open_attempt(tmp_path / "outbox", new_attempt(measured, "demo", "fake", []))
    assert not checkpoints_beside(tmp_path / "outbox", measured.trial_id).exists()


def test_reports_leave_out_what_a_continued_training_cost() -> None:
    whole = record(trial("lora"), completed())
    assert isinstance(whole.outcome, Completed)
    assert whole.outcome.train is not None
    part = whole.outcome.train.model_copy(update={"continued_after_steps": [4]})
    continued = whole.model_copy(update={"outcome": whole.outcome.model_copy(update={"train": part})})
    costs = ("train_seconds", "total_seconds", "train_tokens_per_second", "step_seconds_p50", "peak_memory_bytes")
    assert all(row(whole)[name] is not None for name in costs)
    assert all(row(continued).get(name) is None for name in costs)
    assert row(continued)["bleu"] == row(whole)["bleu"]
    assert row(continued)["steps"] == row(whole)["steps"]
    assert not any("checkpoint" in sentence for sentence in caveats([whole]))
    assert any(sentence.startswith("1 trial continued from a checkpoint") for sentence in caveats([continued]))


def test_a_killed_rank_continues_until_the_trial_is_done(
    tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.driver.schedule import Schedule
    from bench.launch.capacity import Machine
    from bench.launch.local import LocalLauncher
    from bench.store.retry import RetryPolicy

    plain: dict[str, Any] = {
        "name": "continued",
        "model": str(tiny_models["llama"]),
        "task": {"name": "jsonl", "path": str(tiny_task)},
        "methods": [{"name": "lora", "config": {"dropout": 0.1}}],
        "train": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3},
        "decode": {"max_new_tokens": 4},
        "resources": {"ranks": 2, "cpus_per_rank": 1, "zero_stage": 3},
    }
    with_checkpoints = {**plain, "resources": {**plain["resources"], "checkpoint_every_steps": 2}}
    records: list[Completed] = []
    for name, sweep in {"whole": plain, "continued": with_checkpoints}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sweep))
        (spec,) = expand(load_sweep(path), RegistryResolver())
        store = Store(tmp_path / name)
        store.root.mkdir()
        if name == "continued":
            monkeypatch.setenv("TUNEOFF_CRASH_AT", "rank.after_checkpoint")  # each attempt dies after its first one
        launcher = LocalLauncher(store.outbox, Machine(cpus=2, gpus=0))
        try:
            Schedule(store, launcher, name, retries=RetryPolicy(backoff_seconds=0.1)).run([spec])
        finally:
            launcher.close()
        stored_result = store.read(spec.trial_id)
        assert isinstance(stored_result, TrialResult)
        assert isinstance(stored_result.outcome, Completed), stored_result.outcome
        records.append(stored_result.outcome)
        assert not checkpoints_beside(store.outbox, spec.trial_id).exists(), "what is committed needs none"
    whole, continued = records
    assert stored_result.attempt.earlier_reasons == ["worker_lost", "worker_lost"]
    assert whole.train is not None
    assert continued.train is not None
    assert (whole.train.continued_after_steps, continued.train.continued_after_steps) == ([], [2, 4])
    assert continued.train_curve == whole.train_curve
    assert (continued.dev_loss, continued.test_loss) == (whole.dev_loss, whole.test_loss)
    adapters = [next((tmp_path / name / "trials").glob("*/adapter.safetensors")) for name in ("whole", "continued")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
