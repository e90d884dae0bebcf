"""Tiny models and tasks, made on the fly. No network, no downloaded weights."""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import Done
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from bench.schema.trial import TrialSpec
    from bench.store.records import Store

# Before ray is imported anywhere: Ray decides at import time how clusters authenticate.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray runs what it starts at niceness 15, so that ranks would wait for all other tests.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tokens of tests do not go into the user's cache.
os.environ["TUNEOFF_TOKEN_CACHE"] = tempfile.mkdtemp(prefix="tuneoff-tokens-")
atexit.register(shutil.rmtree, os.environ["TUNEOFF_TOKEN_CACHE"], ignore_errors=True)

# A slow machine must not fail a test because hypothesis takes long to generate examples.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Flo", "Gus", "Hal")
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Kyiv")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the public data sets, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the public data sets are not there: no folder {SHARED_DATA}")
    return SHARED_DATA


def write_split(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    lines = [
        json.dumps(
            {
                "source": f"{name} : home : {city}",
                "facts": [[name, "home", city]],
                "references": [f"{name} lives in {city}.", f"The home of {name} is {city}."],
                "tags": ["seen" if name < "D" else "unseen"],
            }
        )
        for name, city in rows
    ]
    path.write_text("\n".join(lines) + "\n")


def write_task(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    """The files of the task jsonl: 28 / 6 / 6 of 40 sources with two references each."""
    for split, (start, end) in {"train": (0, 28), "dev": (28, 34), "test": (34, 40)}.items():
        write_split(folder / f"{split}.jsonl", rows[start:end])


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the task jsonl."""
    folder = tmp_path_factory.mktemp("task")
    rows = [(name, city) for name in NAMES for city in CITIES]
    random.Random(0).shuffle(rows)
    write_task(folder, rows)
    return folder


def save_tokenizer(folder: Path, ends_texts: bool) -> Any:
    """A byte-level tokenizer, trained on the sentences of the tiny task. ``ends_texts`` adds ``<end>``, as T5 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Data: {n} : home : {c}\nText: {n} lives in {c}. The home of {n} is {c}." for n in NAMES for c in CITIES]
    tokenizer.train_from_iterator(texts, trainer)
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.save_pretrained(folder)
    return fast


def save_tiny_model(folder: Path, family: str) -> Path:
    """A randomly initialised model of a few thousand parameters with its tokenizer, as a model folder."""
    import torch

    from bench.conformance.tiny_models import FAMILIES

    tokenizer = save_tokenizer(folder, ends_texts=family == "t5")
    torch.manual_seed(0)
    FAMILIES[family](len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by family."""
    families = ("gpt2", "llama", "t5")
    return {family: save_tiny_model(tmp_path_factory.mktemp(f"model-{family}"), family) for family in families}


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_are_left_alone() -> None:
    """Exclude present objects from garbage collection, because every phase of a trial begins with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process group of a trial with one rank. DeepSpeed needs one, and always the same."""
    import torch
    from one_rank import join_alone

    join_alone(tmp_path_factory.mktemp("rank"))
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def trials_in_this_process(monkeypatch: pytest.MonkeyPatch, one_rank: None) -> None:
    """Commands of this process run their trials here, one after the other: no process starts."""
    from in_process import run_here

    from bench.driver.rounds import RoundRunner

    def run(runner: RoundRunner, pending: Sequence[TrialSpec]) -> None:
        for result in run_here(runner.store, pending, sweep=runner.sweep):
            runner._board.committed(result)  # of which reports learn what is missing

    monkeypatch.setattr(RoundRunner, "_run", run)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of a sweep that has not begun."""
    from bench.store.records import Store

    folder = tmp_path / "demo"
    folder.mkdir()
    return Store(folder)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that was started before the commands of the test, and does not know their plugins."""
    from bench.launch.embedded_cluster import EmbeddedCluster

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    cluster = EmbeddedCluster()
    try:
        yield cluster.address()
    finally:
        cluster.end()


@pytest.fixture
def imports_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After a test, folders that it made importable are removed from the path, and modules from there forgotten."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    temporary = str(tmp_path_factory.getbasetemp().resolve())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(temporary):
            del sys.modules[name]


@pytest.fixture
def tuneoff(
    imports_forgotten: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command in this process."""
    from bench import cli

    def run(*arguments: str) -> Done:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["tuneoff", *arguments])
        capsys.readouterr()
        return Done(cli.exit_code(), *capsys.readouterr())

    return run
