"""Data and models of the hub are those of the branch's commit before the first trial, in record and identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Done
from fakes import trial, varied
from hub_stand_in import StandIn, point_at, stand_in

from bench.config.resolver import RegistryResolver, _model
from bench.driver.moved import moved_commits
from bench.models.base import weights_sha256
from bench.plugins.registry import make_task
from bench.schema.record import hub_commits
from bench.schema.trial import ModelSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.task import TaskError
from bench.tasks.hub_commits import Commit, HubError, commit_of
from bench.tasks.splits import load_splits

FIRST, SECOND = "a" * 39 + "1", "b" * 39 + "2"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub that this process and those that it starts ask, with an empty cache."""
    forget()
    with stand_in() as found:
        point_at(found, tmp_path / "hub", monkeypatch)
        yield found
    forget()


def forget() -> None:
    """What a process has asked once it does not ask again."""
    commit_of.cache_clear()
    _model.cache_clear()


def test_a_revision_is_the_commit_that_it_is_at(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("org/tiny", tmp_path, FIRST)
    assert commit_of("org/tiny", None, "model") == Commit(FIRST, "hub")
    assert commit_of("org/tiny", SECOND, "model") == Commit(SECOND, "given"), "nobody need be asked"
    with pytest.raises(HubError, match="'org/tiny' has no revision 'v2' on the hub"):
        commit_of("org/tiny", "v2", "model")
    with pytest.raises(
        HubError, match="'org/tinny' is no folder here, and so a name on the hub, which has no model of"
    ):
        commit_of("org/tinny", None, "model")


def test_without_the_hub_its_cache_tells_or_nobody(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text("{}")
    hub.push("org/tiny", tmp_path / "files", FIRST)
    hf_hub_download("org/tiny", "config.json", endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
    hub.push("org/tiny", tmp_path / "files", SECOND)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of("org/tiny", None, "model") == Commit(FIRST, "cache")
    assert commit_of("org/tiny", FIRST[:12], "model") == Commit(FIRST, "cache")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert commit_of("org/tiny", None, "model") == Commit(FIRST, "cache"), "nor where it does not answer"
    with pytest.raises(ConfigError, match=r"model.path: 'org/other' is no folder here.*give the commit that its page"):
        RegistryResolver().model(ModelSpec(path="org/other"))


def test_a_model_of_the_hub_says_how_its_weights_are_quantised(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    hub.push("org/packed", tmp_path / "files", FIRST)
    found = RegistryResolver().model(ModelSpec(path="org/packed"))
    assert (found.commit, found.stored_in) == (FIRST, "gptq")
    with pytest.raises(ConfigError, match="nf4 cannot be had of 'org/packed', whose weights are quantised already, by"):
        RegistryResolver().model(ModelSpec(path="org/packed", quantization="nf4"))
    spec = varied(trial(), model={"path": "org/packed", "commit": FIRST})
    assert varied(spec, model={"checkpoint_quantization": "gptq"}).trial_id == spec.trial_id, "the commit says it"


def test_data_of_the_hub_are_named_by_their_commit(hub: StandIn, tmp_path: Path) -> None:
    hub.push("org/rows", tmp_path, FIRST)
    named = {"path": "org/rows", "source": "document", "references": "summary"}
    first = RegistryResolver().task("hub", named)
    assert first.config["revision"] == FIRST
    assert RegistryResolver().task("hub", {**named, "revision": FIRST}).data_sha256 == first.data_sha256
    assert RegistryResolver().task("hub", {**named, "revision": SECOND}).data_sha256 != first.data_sha256
    with pytest.raises(ConfigError, match="task hub: revision: v9 for 'org/rows': 'org/rows' has no revision 'v9'"):
        RegistryResolver().task("hub", {**named, "revision": "v9"})


def test_a_sweep_whose_model_moves_makes_new_trials_and_says_so(
    hub: StandIn, tiny_models: dict[str, Path], tiny_task: Path, tmp_path: Path, tuneoff: Callable[..., Done]
) -> None:
    hub.push("org/tiny", tiny_models["gpt2"], FIRST)
    sweep = {
        "name": "moving",
        "model": "org/tiny",
        "task": {"name": "jsonl", "path": str(tiny_task), "test_examples": 2, "dev_examples": 2, "train_examples": 2},
        "decode": {"max_new_tokens": 2},
        "methods": ["none"],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    run = ("run", str(tmp_path / "sweep.yaml"), "--launcher", "local", "--results", str(tmp_path))
    done = tuneoff(*run)
    assert done.returncode == 0, done.stdout
    assert f"model org/tiny: main is commit {FIRST}" in done.stdout
    (first,) = Store(tmp_path / "moving").read_all()
    assert (first.spec.model.revision, first.spec.model.commit) == (None, FIRST)
    assert FIRST[:12] in (tmp_path / "moving" / "report" / "report.md").read_text()
    assert not any("/resolve/main/" in path for path in hub.requested_paths), "what is loaded is the commit"
    assert "download" in first.outcome.ranks[0].phases

    hub.push("org/tiny", tiny_models["gpt2"], SECOND)
    forget()
    spec = RegistryResolver().model(ModelSpec(path="org/tiny"))
    assert spec.commit == SECOND
    now = first.spec.model_copy(update={"model": spec})
    assert now.trial_id != first.trial_id
    assert moved_commits([first], [first.spec]) == []
    sentence = (
        f"model: org/tiny (main) is at commit {SECOND} now, and was at {FIRST} when 1 finished trials of this sweep "
        f"were made. Their records stay, and new trials run. To keep the old trials, set model.revision: {FIRST}"
    )
    assert moved_commits([first], [now]) == [sentence]
    refused = tuneoff(*run, "--set", "task.test_examples=999")
    assert refused.returncode == 2
    assert sentence in refused.stdout
    forget()
    again = tuneoff(*run, "--set", f"model.revision={FIRST}")
    assert "1 trials, 1 done, 0 to run" in again.stdout, "as the message says"


def test_every_file_of_a_tokenizer_is_part_of_the_weights_hash(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["gpt2"], folder)
    found = {weights_sha256(ModelSpec(path=str(folder)))}
    for name in ("spiece.model", "merges.txt", "vocab.txt", "chat_template.jinja"):
        (folder / name).write_text("x")
        found.add(weights_sha256(ModelSpec(path=str(folder))))
    (folder / "README.md").write_text("x")
    found.add(weights_sha256(ModelSpec(path=str(folder))))
    assert len(found) == 5


def test_conversations_of_the_hub_are_those_of_a_commit(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for number, commit in enumerate((FIRST, SECOND)):
        folder = tmp_path / commit
        folder.mkdir()
        for split in ("train", "test"):
            talks = [talk(f"{split} {n}?", f"so\nit is {n + number}") for n in range(5)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
        hub.push("org/talks", folder, commit)
    named = {"path": "org/talks", "dev": "train[60%:]", "train": "train[:60%]"}
    now = RegistryResolver().task("chat", named)
    assert now.config["revision"] == SECOND
    assert now.config["test"] == "test"
    splits = load_splits(make_task(now))
    assert [example.turns for example in splits["dev"]] == [(("user", "train 3?"),), (("user", "train 4?"),)]
    assert splits["test"][0].references == ("so\nit is 1",)
    before = RegistryResolver().task("chat", {**named, "revision": FIRST})
    assert load_splits(make_task(before))["test"][0].references == ("so\nit is 0",)
    assert before.data_sha256 != now.data_sha256
    spec = varied(trial("none"), task=now.model_dump())
    assert hub_commits(spec) == (("task", "org/talks", SECOND),)
    with pytest.raises(TaskError, match=r"org/talks: validation: cannot be loaded: Unknown split"):
        make_task(RegistryResolver().task("chat", {"path": "org/talks"})).load("dev")
    with pytest.raises(TaskError, match=r"no column 'conversations'; the columns are messages"):
        make_task(RegistryResolver().task("chat", {**named, "messages": "conversations"})).load("test")


def talk(asked: str, told: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
