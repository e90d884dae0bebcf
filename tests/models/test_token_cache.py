"""A split is tokenised once for all processes of a node; nothing that a trial sees depends on whether it was kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import CPU

from bench.config.resolver import RegistryResolver
from bench.measure.phases import PhaseMeter
from bench.models import token_cache
from bench.models.split_data import SplitData, data_summary
from bench.models.token_cache import read_split
from bench.models.tokenizer_hash import tokenizer_sha256
from bench.models.tokens import Tokenization, tokenization
from bench.plugins.registry import make_task
from bench.rank.context import RankContext
from bench.rank.trial import _Trial
from bench.schema.record import Completed
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TaskSpec, TrainSpec, TrialSpec
from bench.task import SPLITS, Split, TaskError
from bench.tasks.jsonl import JsonLines
from bench.tasks.splits import drawn_examples, load_splits, oddities


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TUNEOFF_TOKEN_CACHE", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """The splits that were read, in order."""
    found: list[Split] = []
    whole = JsonLines.load

    def load(task: JsonLines, split: Split) -> Any:
        found.append(split)
        return whole(task, split)

    monkeypatch.setattr(JsonLines, "load", load)
    return found


def never(message: str) -> None:
    raise AssertionError(message)


class Case:
    """A task in tokens of a tiny model."""

    def __init__(self, model: Path, task: Path, **settings: Any) -> None:
        self.model = ModelSpec(path=str(model))
        self.spec = RegistryResolver().task("jsonl", {"path": str(task), **settings})

    def read(self, split: Split = "dev", say: Callable[[str], None] = never, **how: Any) -> SplitData:
        task = make_task(self.spec)
        tokens = tokenization(self.model.model_copy(update=how), task.config)
        return read_split(self.spec, task, split, tokens, say)


def same(one: SplitData, other: SplitData) -> bool:
    return (
        one.pairs_batch.equals(other.pairs_batch)
        and one.examples_batch.equals(other.examples_batch)
        and one.summary == other.summary
    )


@pytest.fixture
def case(folder: Path, tiny_models: dict[str, Path], tiny_task: Path) -> Case:
    return Case(tiny_models["gpt2"], tiny_task)


def test_a_split_is_read_once_and_is_the_same_with_and_without_the_cache(
    case: Case, folder: Path, loads: list[Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {split: case.read(split) for split in SPLITS}
    assert loads == ["train", "dev", "test"]
    again = {split: case.read(split) for split in SPLITS}
    assert loads == ["train", "dev", "test"], "the second reader maps what the first has made"
    monkeypatch.setenv("TUNEOFF_TOKEN_CACHE", "off")
    without = {split: case.read(split) for split in SPLITS}
    assert loads == ["train", "dev", "test"] * 2
    for split in SPLITS:
        assert same(first[split], again[split])
        assert same(first[split], without[split])
    assert data_summary(again) == data_summary(without)

    task = make_task(case.spec)
    tokens = tokenization(case.model, task.config)
    for split, data in again.items():
        examples = drawn_examples(task, split)
        assert list(data.pairs) == tokens.pairs(examples, None if split == "train" else 1)
        assert data.pairs[-1] == list(data.pairs)[-1]
        assert data.pairs[1:3] == list(data.pairs)[1:3]
        with pytest.raises(IndexError):
            data.pairs[len(data.pairs)]
        assert list(data.examples) == examples
        assert [data.examples[-1], *data.examples[:2]] == [examples[-1], *examples[:2]]
        assert data.examples.reference_counts == [len(example.references) for example in examples]
        assert list(data.examples.all_references()) == [text for example in examples for text in example.references]
        assert data.sources() == [tuple(tokens.source(example)) for example in examples]
    expected = {"train_pairs": 56, "dev_sources": 6, "test_sources": 6, "truncated_sources": 0, "truncated_targets": 0}
    expected |= {**oddities(load_splits(task)), "left_out": {}, "files": task.checksums(SPLITS)}
    assert data_summary(again) == expected


def test_what_is_cut_is_counted_once(folder: Path, tiny_models: dict[str, Path], tiny_task: Path) -> None:
    case = Case(tiny_models["gpt2"], tiny_task, max_source_tokens=3, max_target_tokens=2)
    for _ in range(2):
        summary = data_summary({"dev": case.read("dev"), "test": case.read("test")})
        assert (summary["truncated_sources"], summary["truncated_targets"]) == (12, 12)


def test_tokens_belong_to_content_and_settings_and_not_to_places(
    case: Case, folder: Path, tiny_models: dict[str, Path], tiny_task: Path, tmp_path: Path, loads: list[Split]
) -> None:
    case.read()
    shutil.copytree(tiny_task, tmp_path / "moved")
    shutil.copytree(tiny_models["gpt2"], tmp_path / "model")
    Case(tmp_path / "model", tmp_path / "moved").read()
    assert len(loads) == 1, "the same bytes elsewhere"
    Case(tiny_models["gpt2"], tiny_task, template="{source} =").read()
    Case(tiny_models["gpt2"], tiny_task, dev_examples=3).read()
    Case(tiny_models["t5"], tiny_task).read()
    case.read(beginning_token=False)
    tokenizer = tmp_path / "model" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(content))
    Case(tmp_path / "model", tiny_task).read()
    shutil.copytree(tiny_task, tmp_path / "longer")
    with (tmp_path / "longer" / "dev.jsonl").open("a") as file:
        file.write('{"source": "more", "references": "More."}\n')
    assert len(Case(tiny_models["gpt2"], tmp_path / "longer").read().examples) == 7
    assert len(loads) == 7
    assert len(list(folder.glob("dev-*"))) == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "no account", "empty account"])
def test_a_damaged_entry_is_made_anew(damage: str, case: Case, folder: Path, loads: list[Split]) -> None:
    whole = case.read()
    expected = list(whole.pairs)
    (entry,) = folder.glob("dev-*")
    pairs, account = entry / "pairs.arrow", entry / "told.json"
    if damage == "flip":
        content = bytearray(pairs.read_bytes())
        content[len(content) // 2] ^= 1
        pairs.unlink()
        pairs.write_bytes(content)
    elif damage == "cut":
        content = bytearray(pairs.read_bytes()[:-100])
        pairs.unlink()
        pairs.write_bytes(content)
    elif damage == "no account":
        account.unlink()
    else:
        account.write_text("{}")
    assert list(case.read().pairs) == expected
    assert len(loads) == 2
    assert list(case.read().pairs) == expected
    assert len(loads) == 2
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == [entry.name]


def test_where_nothing_can_be_kept_it_is_said_in_one_line(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Split]
) -> None:
    expected = list(case.read().pairs)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    said: list[str] = []
    assert list(case.read(say=said.append).pairs) == expected
    (line,) = said
    assert line.startswith(f"tokens of jsonl are not kept in {folder}: ")
    folder.unlink()

    def full(path: Path, batch: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_cache, "_write_table", full)
    said.clear()
    assert list(case.read(say=said.append).pairs) == expected
    assert ["No space left on device" in line for line in said] == [True]
    assert len(loads) == 3, "what was made is used although it could not be kept"
    assert not [path for path in folder.iterdir() if not path.name.endswith(".lock")], "nothing half is left"


def test_a_tokenizer_is_hashed_once_for_all_splits_and_calls_leave_its_hash(
    case: Case, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str | None] = []

    def told(tokenizer: Any) -> str | None:
        hashed.append(tokenizer_sha256(tokenizer))
        return hashed[-1]

    monkeypatch.setattr("bench.models.tokens.tokenizer_sha256", told)
    task = make_task(case.spec)
    tokens = tokenization(case.model, task.config)
    splits: tuple[Split, ...] = ("train", "dev", "test")
    for split in splits:
        read_split(case.spec, task, split, tokens, never)
    assert len(hashed) == 1 and hashed[0] is not None
    tokens.tokenizer(["Ann lives", "Bob"], truncation=True, max_length=1, padding=True)
    assert tokens.tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_sha256(tokens.tokenizer) == hashed[0]
    others = tokenization(ModelSpec(path=str(tiny_models["t5"])), task.config)
    assert tokenizer_sha256(others.tokenizer) != hashed[0]


def test_a_tokenizer_that_cannot_be_hashed_keeps_nothing(case: Case, folder: Path) -> None:
    from bench.conformance.tiny_models import WordTokenizer
    from bench.models.architecture import DecoderOnly

    said: list[str] = []
    task = make_task(case.spec)
    data = read_split(case.spec, task, "dev", Tokenization(WordTokenizer(), task.config, DecoderOnly()), said.append)
    assert len(data.pairs) == 6
    assert said == ["tokens of jsonl are not kept: data without a hash, or a tokenizer without tokenizer.json"]


def test_of_many_that_start_at_once_one_tokenises(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Split] = []
    whole = token_cache.tokenised

    def slowly(spec: TaskSpec, task: Any, split: Split, tokens: Tokenization) -> SplitData:
        made.append(split)
        time.sleep(0.2)
        return whole(spec, task, split, tokens)

    monkeypatch.setattr(token_cache, "tokenised", slowly)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: case.read(), range(6)))
    assert made == ["dev"]
    assert all(same(found[0], other) for other in found)


def test_the_cache_is_bounded_and_keeps_what_was_used_last(
    folder: Path, tiny_models: dict[str, Path], tiny_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case(tiny_models["gpt2"], tiny_task, max_source_tokens=100 + n) for n in range(3)]
    names = []
    for number, one in enumerate(cases[:2]):
        one.read()
        (new,) = {path.name for path in folder.glob("dev-*")} - set(names)
        names.append(new)
        os.utime(folder / new / "told.json", (number + 1.0, number + 1.0))
    leftover = folder / ".dev-dead-1234"
    leftover.mkdir()
    os.utime(leftover, (1.0, 1.0))
    cases[0].read()  # used again
    size = sum(path.stat().st_size for path in (folder / names[0]).iterdir())
    monkeypatch.setattr(token_cache, "MOST_BYTES", int(2.5 * size))
    cases[2].read()
    kept = {path.name for path in folder.glob("dev-*")}
    assert names[0] in kept
    assert names[1] not in kept
    assert len(kept) == 2
    assert not leftover.exists()
    monkeypatch.setattr(token_cache, "MOST_BYTES", 1)
    cases[1].read()
    assert {path.name for path in folder.glob("dev-*")} == {names[1]}, "the newest stays whatever its size"


def test_data_that_changed_under_a_sweep_are_refused(
    case: Case, tiny_models: dict[str, Path], tiny_task: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_task, tmp_path / "moving")
    moving = Case(tiny_models["gpt2"], tmp_path / "moving", template="{source}!")
    with (tmp_path / "moving" / "train.jsonl").open("a") as file:
        file.write('{"source": "more", "references": "More."}\n')
    with pytest.raises(TaskError, match="task jsonl: the data have changed since the sweep was started"):
        moving.read()


def test_a_trial_is_the_same_with_and_without_the_cache(
    case: Case, loads: list[Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_rank: None
) -> None:
    spec = TrialSpec(
        method=RegistryResolver().method("none", {}),
        model=RegistryResolver().model(case.model),
        task=case.spec,
        train=TrainSpec(),
        decode=DecodeSpec(max_new_tokens=3),
        resources=ResourceSpec(),
        seed=0,
    )

    def outcome(name: str) -> Completed:
        (tmp_path / name).mkdir()
        context = RankContext(0, 1, 0, torch.distributed.HashStore(), tmp_path / name, "", 1)
        trial = _Trial(spec, context, CPU, PhaseMeter(CPU))
        found = trial.finish(trial.read(), None)
        assert isinstance(found, Completed)
        return found

    first, cached = outcome("first"), outcome("cached")
    assert len(loads) == 3
    monkeypatch.setenv("TUNEOFF_TOKEN_CACHE", "off")
    without = outcome("without")
    assert len(loads) == 6
    for other in (cached, without):
        assert other.data == first.data
        assert other.scores == first.scores
        assert (other.dev_loss, other.test_loss) == (first.dev_loss, first.test_loss)
    predictions = {(tmp_path / name / "predictions.jsonl").read_text() for name in ("first", "cached", "without")}
    assert len(predictions) == 1
