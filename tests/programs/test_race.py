"""The conditions of the race on tiny models: contenders have equal losses and equal texts before anything is timed."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from race import decoding, machine, one_process, sweep, trainer_trial, training, workload
from race.__main__ import SIZES, Race, main
from race.contender import Contender, Job, run
from race.ours import LEVERS
from race.pacer import Pacer
from race.render import markdown
from transformers import Trainer

from bench.schema.trial import DecodeSpec, Precision

STEPS, BATCH_SIZE = 20, 4
# Rates at which tiny models learn something in 20 steps.
RATES = {"prefix_tuning": 1e-2, "prompt_tuning": 1e-2, "lora": 1e-3, "full": 1e-4}


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = random.Random(0)
    pairs = [
        [[drawn.randrange(2, 300) for _ in range(drawn.randint(lowest, lowest + 9))] for lowest in (4, 2)]
        for _ in range(STEPS * BATCH_SIZE)
    ]
    shuffled = list(range(len(pairs)))
    drawn.shuffle(shuffled)
    order = [shuffled[at : at + BATCH_SIZE] for at in range(0, len(shuffled), BATCH_SIZE)]
    path = tmp_path_factory.mktemp("race") / "batches.json"
    path.write_text(json.dumps({"pairs": pairs, "random": order}))
    return path


def losses(job: Job, log: Path) -> list[float]:
    """Of all steps. Ours runs in a process of its own, as in the race: DeepSpeed keeps state in a process."""
    if job.contender == "tuneoff":
        with training.start(job, log) as running:
            for _ in job.bursts[1:]:
                running.go()
            assert [len(burst["seconds"]) for burst in running.bursts] == job.bursts
            assert running.first_step_seconds > 0
            return running.losses()
    reports = io.StringIO()
    output = run(job, Pacer(job.bursts, io.StringIO("go\n" * 9), reports))
    said = [json.loads(line) for line in reports.getvalue().splitlines()]
    assert [len(burst["seconds"]) for burst in said if "seconds" in burst] == job.bursts
    return output


# LoRA of queries and values in GPT-2 is another one in peft, which trains one pair for the whole of c_attn.
@pytest.mark.parametrize(
    ("method", "family", "precision"),
    [
        ("prefix_tuning", "llama", "fp32"),
        *(
            pytest.param(name, family, precision, marks=pytest.mark.full)
            for name, family, precision in (
                ("full", "gpt2", "fp32"),
                ("prompt_tuning", "llama", "fp32"),
                ("lora", "llama", "fp32"),
                ("lora", "llama", "bf16"),
                ("prefix_tuning", "llama", "bf16"),
            )
        ),
    ],
)
def test_contenders_have_the_same_losses(
    method: str,
    family: str,
    precision: Precision,
    tiny_models: dict[str, Path],
    batches: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = None
    if method != "full":
        workload.write_start(tmp_path / "start", method, tiny_models[family])
        adapter = str(tmp_path / "start")
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # other tests set it, and accelerate would look for ranks
    rows = []
    contenders: tuple[Contender, ...] = ("tuneoff", "trainer", "trainer_best", "accelerate")
    contenders = contenders if precision == "fp32" else contenders[:3]
    for contender in contenders:
        job = Job(
            contender=contender,
            model=str(tiny_models[family]),
            method=method,
            config=workload.METHODS[method][0],
            adapter=adapter,
            batches=str(batches),
            order="random",
            batch_size=BATCH_SIZE,
            learning_rate=RATES[method],
            bursts=[2, 9, 9],
            threads=1,
            precision=precision,
        )
        found = losses(job, tmp_path / "log")
        assert len(found) == STEPS
        row = {"contender": contender, "method": method, "order": "random", "precision": precision}
        rows.append({**row, "losses": found})
    checks = training.check_losses(rows)
    assert len(checks) == len(contenders) - 1
    assert max(check["largest_difference"] for check in checks) <= (1e-5 if precision == "fp32" else 3e-2)


def test_other_losses_do_not_pass_the_gate() -> None:
    rows = [
        {"contender": name, "method": "lora", "order": "random", "precision": "fp32", "losses": found}
        for name, found in (("tuneoff", [2.0, 1.0]), ("trainer", [2.0, 1.00002]))
    ]
    with pytest.raises(training.GateError, match=r"lora: tuneoff and trainer differ by 2e-05"):
        training.check_losses(rows)


def row_of(contender: str, order: str, losses: list[float], precision: str = "fp32") -> dict[str, Any]:
    row = {"contender": contender, "order": order, "losses": losses, "method": "lora", "precision": precision}
    return {**row, "tokens_per_second": [1.0], "memory_over_baseline_bytes": 1}


def test_every_contender_is_compared_with_tuneoff_or_nothing_passes_the_gate() -> None:
    ours, theirs = row_of("tuneoff", "grouped", [1.0]), row_of("trainer", "random", [2.0])
    with pytest.raises(training.GateError, match=r"no losses of tuneoff for the batches of trainer, accelerate"):
        training.check_losses([ours, theirs, row_of("accelerate", "random", [2.0])])
    checks = training.check_losses([ours, theirs, row_of("tuneoff in bf16", "random", [2.01], "bf16")])
    assert [check["contenders"] for check in checks] == [["tuneoff in bf16", "trainer"]]


@pytest.mark.parametrize("part", ["training full", "training lora", "training lora bf16"])
def test_each_part_has_losses_of_ours_for_all_batches(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(jobs: list[Job], log: Path) -> list[dict[str, Any]]:
        return [row_of(job.name, job.order, [1.0], job.precision) for job in jobs]

    monkeypatch.setattr(training, "race", trained)
    monkeypatch.setattr("race.workload.e2e", lambda folder: None)
    race = Race(SIZES["smoke"], None, 1, tmp_path)
    monkeypatch.setattr(race, "_model", lambda name: (tmp_path, {}))
    monkeypatch.setattr(race, "_start", lambda model, method: tmp_path)
    found = race.parts()[part]()
    assert len(found["gate"]) == 3
    assert len(found["rows"]) == {"training full": 4}.get(part, 5)
    assert [row["ratio"] for row in found["rows"]] == [1.0] * len(found["rows"])


class OneWord:
    """Decoders of which one says another word from some source on."""

    settings = SimpleNamespace(beams=1, max_new_tokens=1)

    def __init__(self, wrong_from: int) -> None:
        self.wrong_from = wrong_from

    def batched(self, sources: list[list[int]]) -> list[list[int]]:
        return sources

    def generate(self, sources: list[list[int]], batch_size: int) -> list[list[int]]:
        return [source if source[0] < self.wrong_from else [0] for source in sources]


def test_texts_that_differ_do_not_pass_the_gate() -> None:
    turns = [[{"ids": [number], "references": 2} for number in range(1, 5)]]
    same: Any = OneWord(5)
    assert decoding.race(same, turns, batch_sizes=(2,), one_by_one=1, line_turns=1)["same_texts"] == 1.0
    other: Any = OneWord(4)
    with pytest.raises(training.GateError, match=r"with 1 beams 5 of 6 texts are the same; 99% have to be"):
        decoding.race(other, turns, batch_sizes=(2,), one_by_one=1, line_turns=1)


@pytest.mark.parametrize("beams", [1, 5])
def test_decoders_say_the_same(beams: int, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    workload.write_start(tmp_path / "start", "lora", tiny_models["llama"])
    decoders = decoding.Decoders(
        str(tiny_models["llama"]),
        ("lora", workload.METHODS["lora"][0], tmp_path / "start"),
        DecodeSpec(beams=beams, max_new_tokens=12),
    )
    drawn = random.Random(1)
    turns = [
        [{"ids": [drawn.randrange(2, 300) for _ in range(drawn.randint(3, 12))], "references": 2} for _ in range(6)]
    ]
    found = decoding.race(decoders, turns, batch_sizes=(2, 4), one_by_one=3, line_turns=1)
    assert found["same_texts"] == 1.0
    assert len({tuple(text) for text in decoders.batched([source["ids"] for source in turns[0]])}) > 1


def sweep_data(folder: Path) -> Path:
    folder.mkdir()
    for split, count in (("train", 160), ("dev", 4), ("test", 2)):
        facts = [{"source": f"name : {n}", "references": [f"This is {n}.", f"It is {n}."]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return folder


def test_trials_in_one_process_are_those_of_a_process_each(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process keeps of one trial changes nothing in the next one."""
    model, data = tiny_models["llama"], sweep_data(tmp_path / "data")
    losses: list[float] = []
    train = Trainer.train

    def told(trainer: Trainer) -> Any:
        found = train(trainer)
        losses.append(found.training_loss)
        return found

    monkeypatch.setattr(Trainer, "train", told)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (tmp_path / "out").mkdir()
    trials = sweep._trials(model, data, tmp_path / "out", 2, 1)
    chosen = [trials[0], trials[4], trials[0]]
    path = tmp_path / "loop.json"
    path.write_text(json.dumps({"trials": chosen}))
    loaded = trainer_trial._base.cache_info().misses
    monkeypatch.setattr(sys, "argv", ["one_process", str(path)])
    one_process.main()
    assert trainer_trial._base.cache_info().misses == loaded + 1, "the model is read once"
    assert losses[0] == losses[2] != losses[1]
    assert len(sweep._written(trials)) == 2


@pytest.mark.full
def test_all_contenders_of_the_sweep_complete_its_trials(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    found = sweep.race(tiny_models["llama"], sweep_data(tmp_path / "data"), tmp_path, 2, 2, 1, tmp_path / "log")
    assert set(found["ratios"]) == {
        "shell loop of Trainer scripts",
        "Ray Tune of the same function",
        "Ray Tune with reused actors",
        "a loop in one process",
    }
    assert all(len(walls) == 1 for walls in found["wall_seconds"].values())


def test_a_record_becomes_a_page_that_says_what_is_missing() -> None:
    row = {
        "contender": "tuneoff without lean modules",
        "method": "lora",
        "order": "grouped",
        "tokens_per_second_median": 1234.0,
        "ratio": 1.5,
        "step_seconds_p50": 0.5,
        "step_seconds_p90": 0.75,
        "memory_over_baseline_bytes": 2**20,
        "memory_ratio": 2.0,
        "first_step_seconds": 3.0,
    }
    part = {
        "rows": [row],
        "gate": [{"largest_difference": 2e-6, "steps": 11}],
        "batches": {"useful_share": {"random": 0.75, "grouped": 0.99}},
        "model": "tiny",
        "method": "lora",
        "others_busy_fraction": 0.5,
    }
    record = {
        "size": {"batch_size": 8, "bursts": [1, 2, 2]},
        "machines": {
            "CPU A, 2 threads": {
                "parts": {"training lora": part},
                "left_out": {"sweep": "out of time after 1 minutes"},
            },
            "CPU B, 4 threads": {"parts": {}, "left_out": {}},
        },
    }
    page = markdown(record)
    assert "| Tuneoff, without lean modules | by length | 1,234 | 1.50 | 0.50 | 0.75 | 1 | 2.00 | 3.0 |" in page
    assert "- sweep: out of time after 1 minutes" in page
    assert "right before: training lora" in page
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## CPU A, 2 threads",
        "## CPU B, 4 threads",
    ]


@pytest.fixture
def stub_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs a race of two parts, of which some fail, on a processor of this name. Returns exit code and record."""

    def raced(cpu: str, *options: str, failing: Collection[str] = ()) -> tuple[int, dict[str, Any]]:
        def run(name: str) -> dict[str, Any]:
            if name in failing:
                raise RuntimeError("no memory")
            return {"cpu of the stub": cpu}

        stub = SimpleNamespace(
            parts=lambda: {name: partial(run, name) for name in ("one", "two")}, log=tmp_path / "scratch.txt"
        )
        monkeypatch.setattr("race.__main__.Race", lambda *_: stub)
        monkeypatch.setattr(machine, "cpu_name", lambda: cpu)
        monkeypatch.setattr(machine, "busy_fraction", lambda: 0.0)
        out = tmp_path / "report"
        monkeypatch.setattr(sys, "argv", ["race", "--out", str(out), "--threads", "2", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(str(ended.value.code)), json.loads((out / "race.json").read_text())

    return raced


def test_each_kind_of_machine_has_a_block_of_its_own(stub_race: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    stub_race("CPU A")
    code, record = stub_race("CPU B", "--part", "one", "--again")
    assert code == 0
    found = {
        kind: {name: part["cpu of the stub"] for name, part in block["parts"].items()}
        for kind, block in record["machines"].items()
    }
    assert found == {"CPU A, 2 threads": {"one": "CPU A", "two": "CPU A"}, "CPU B, 2 threads": {"one": "CPU B"}}


def test_a_race_exits_by_the_parts_that_it_ran(stub_race: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = stub_race("CPU A", failing=["two"])
    assert code == 1
    assert record["machines"]["CPU A, 2 threads"]["left_out"] == {"two": "RuntimeError: no memory"}
    assert stub_race("CPU A", "--part", "one", "--again")[0] == 0, "what was left out before is not of this call"
    code, record = stub_race("CPU A")
    assert (code, record["machines"]["CPU A, 2 threads"]["left_out"]) == (0, {})
    assert stub_race("CPU A", "--minutes", "0", "--again")[0] == 1


def test_a_folder_with_a_race_of_another_size_is_refused_and_left_as_it_is(
    stub_race: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = stub_race("CPU A")
    code, record = stub_race("CPU A", "--size", "smoke")
    assert (code, record) == (2, before)
    assert "there is a race of another size" in capsys.readouterr().err


def test_the_committed_record_is_what_its_page_shows() -> None:
    folder = Path(__file__).resolve().parents[2] / "results" / "exhibits" / "race"
    assert markdown(json.loads((folder / "race.json").read_text())) == (folder / "race.md").read_text()


def test_a_job_travels_as_json() -> None:
    job = Job("tuneoff", "m", "lora", {"rank": 4}, None, "b", "random", 8, 1e-3, [1, 2], 2)
    assert Job(**json.loads(job.dumps())) == job
    assert dataclasses.replace(job, lever_off="lean modules").name == "tuneoff without lean modules"


def test_every_lever_is_there_to_be_switched_off() -> None:
    for name, (module, attribute, _) in LEVERS.items():
        assert hasattr(module, attribute), f"{name}: {module.__name__} has no {attribute}"


def test_a_part_that_there_is_not_is_an_error_that_lists_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["race", "--part", "training loar", "--out", str(tmp_path / "report")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "--part 'training loar': there is no such part; there are" in message
    assert "'training lora'" in message
    assert not (tmp_path / "report").exists()
