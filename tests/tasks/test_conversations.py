"""The task chat: turns of the assistant as examples, in every form that files have; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.config.resolver import RegistryResolver
from bench.plugins.registry import make_task
from bench.schema.validation import ConfigError
from bench.task import Task, TaskError
from bench.tasks.chat import EMPTY_REPLIES, WITHOUT_REPLY
from bench.tasks.splits import load_split

ASK = {"role": "user", "content": "What is 2 + 2?"}
REPLY = {"role": "assistant", "content": "It is 4."}
AGAIN = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
TURNS = (("user", "What is 2 + 2?"), ("assistant", "It is 4."), ("user", "Sure?"))


def chat(folder: Path, *conversations: Any, column: str = "messages", **settings: Any) -> Task:
    rows = [one if isinstance(one, dict) and column in one else {column: one} for one in conversations]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = dict.fromkeys(("train", "dev", "test"), "all.jsonl")
    return make_task(RegistryResolver().task("chat", {"path": str(folder), **names, "messages": column, **settings}))


def test_every_turn_of_the_assistant_is_an_example(tmp_path: Path) -> None:
    first, second = load_split(chat(tmp_path, [ASK, REPLY, *AGAIN]), "train")
    assert (first.id, first.turns, first.references) == ("train-1.1", TURNS[:1], ("It is 4.",))
    assert (second.id, second.turns, second.references) == ("train-1.2", TURNS, ("Yes.",))
    assert second.source == "user: What is 2 + 2?\nassistant: It is 4.\nuser: Sure?"
    (last,) = load_split(chat(tmp_path, [ASK, REPLY, *AGAIN], turns="last"), "dev")
    assert (last.id, last.turns) == ("dev-1", TURNS)
    assert chat(tmp_path, [ASK, REPLY]).stop == ()


@pytest.mark.parametrize(
    "conversation",
    [
        [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "It is 4."}],
        {"from": ["human", "gpt"], "value": ["What is 2 + 2?", "It is 4."]},
        [
            {"role": "User", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]},
            REPLY,
        ],
        [{"from": "gpt", "value": "Welcome."}, {"from": "human", "value": "What is 2 + 2?"}, REPLY],
        [ASK, REPLY, {"role": "user", "content": "Thanks."}],
        [ASK, REPLY, AGAIN[0], {"role": "assistant", "content": "Never.", "weight": 0}],
    ],
    ids=["ShareGPT", "structs of lists", "parts", "greeting", "last word of the user", "weight"],
)
def test_forms_of_a_conversation(conversation: Any, tmp_path: Path) -> None:
    (one,) = load_split(chat(tmp_path, conversation), "train")
    assert (one.turns, one.references) == (TURNS[:1], ("It is 4.",))


def test_a_system_turn_and_columns_beside_it(tmp_path: Path) -> None:
    row = {"conversations": [{"role": "developer", "content": "Be brief."}, ASK, REPLY], "n": 7, "kind": "sums"}
    (one,) = load_split(chat(tmp_path, row, column="conversations", id="n", tags="kind"), "test")
    assert (one.id, one.tags, one.turns[0]) == ("7.1", ("sums",), ("system", "Be brief."))


def test_equal_histories_are_one_example(tmp_path: Path) -> None:
    (one,) = load_split(chat(tmp_path, [ASK, REPLY], [ASK, {"role": "assistant", "content": "4"}]), "dev")
    assert one.references == ("It is 4.", "4")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    empty = {"role": "assistant", "content": " "}
    task = chat(tmp_path, [ASK], [ASK, empty, AGAIN[0], AGAIN[1]], [ASK, empty], [AGAIN[1]])
    (one,) = load_split(task, "train")
    assert one.references == ("Yes.",)
    assert task.skipped("train") == {WITHOUT_REPLY: 3, EMPTY_REPLIES: 2}
    with pytest.raises(TaskError, match=r"all.jsonl: no examples; left out: 1 conversations without a turn of the"):
        chat(tmp_path, [ASK]).load("train")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (
            [ASK, {"role": "tool", "content": "4"}, REPLY],
            r"line 1: 'messages' has a turn of the role 'tool': .*tools",
        ),
        (
            [ASK, {**REPLY, "tool_calls": [{"id": 1}]}],
            r"has a turn with 'tool_calls': conversations with tools",
        ),
        ([{"from": "function_call", "value": "f()"}], "has a turn of the role 'function_call'"),
        (
            {"messages": [ASK, REPLY], "tools": [{"name": "f"}]},
            "line 1: has tools, and conversations with tools",
        ),
        ([ASK, {"role": "narrator", "content": "4"}], "has a turn of 'narrator'; known are system, developer, user"),
        ([ASK, {"content": "4"}], "has a turn without role and content, or from and value"),
        (["What?"], "has a turn without role and content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, REPLY],
            "a part of the type 'image_url'",
        ),
        ([{"role": "user", "content": 4}, REPLY], "has a turn whose content is no text: 4"),
        ([ASK, {"role": "system", "content": "x"}, REPLY], "has a system turn behind other turns"),
        ("user: hi", "must be a list of turns, got 'user: hi'"),
        ({"text": "hi"}, "no column 'messages'; the columns are text"),
    ],
)
def test_what_is_no_conversation_is_one_error(conversation: Any, message: str, tmp_path: Path) -> None:
    row = conversation if isinstance(conversation, dict) else {"messages": conversation}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    task = make_task(RegistryResolver().task("chat", {"path": str(tmp_path)}))
    with pytest.raises(TaskError, match=message):
        task.load("train")


def test_parquet_is_read_and_conversations_stay_together(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    talks = [[{"role": "user", "content": f"q{n}"}, REPLY, *AGAIN] for n in range(60)]
    parquet.write_table(pyarrow.table({"messages": talks}), tmp_path / "all.parquet")
    task = make_task(RegistryResolver().task("chat", {"path": str(tmp_path / "all.parquet")}))
    first_turns = [{one.turns[0] for one in task.load(split)} for split in ("train", "dev", "test")]
    assert sum(map(len, first_turns)) == 60
    assert set.union(*first_turns) == {("user", f"q{n}") for n in range(60)}
    assert len(task.load("train")) == 2 * len(first_turns[0])


def test_parquet_with_tools_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"messages": [[ASK, REPLY]], "tools": ['[{"name": "f"}]']})
    parquet.write_table(table, tmp_path / "train.parquet")
    task = make_task(RegistryResolver().task("chat", {"path": str(tmp_path), "train": "train.parquet"}))
    with pytest.raises(TaskError, match=r"train.parquet: row 1: has tools, and conversations with tools"):
        task.load("train")


@pytest.mark.parametrize("setting", ["revision", "subset"])
def test_settings_of_the_hub_are_refused_with_files(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}: 'x' has no effect with '.*', which is no name on the hub"):
        chat(tmp_path, [ASK, REPLY], **{setting: "x"})


def test_ids_of_conversations_in_files_are_what_they_were(tmp_path: Path) -> None:
    config = chat(tmp_path, [ASK, REPLY]).config.model_dump(mode="json")
    assert not {"revision", "subset"} & config.keys()


def test_conversations_are_read_in_the_chat_template(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task.template: conversations are read in the chat template; got"):
        chat(tmp_path, [ASK, REPLY], template="{source}")
