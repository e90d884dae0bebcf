"""Conversations in tokens: what is read is what the template renders, and what is learned decodes to what was said."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_templates import ENDS, LLAMA, TEMPLATES, chat_tokenizer, save_chat_model

from bench.models.architecture import DecoderOnly, EncoderDecoder
from bench.models.base import ModelError
from bench.models.split_data import data_summary, tokenised
from bench.models.tokens import Tokenization, tokenization
from bench.plugins.registry import make_task
from bench.schema.trial import ModelSpec, TaskSpec
from bench.task import Example, TaskConfig, Turn

SAID = ("2 + 2 is 4.\nThe answer is 4.", "Yes, Ann.")
TALK: tuple[Turn, ...] = (("user", "What is 2 + 2?"), ("assistant", SAID[0]), ("user", "Sure?"))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: chat_tokenizer(tmp_path_factory.mktemp(name), name) for name in TEMPLATES}


def tokens_of(tokenizer: Any, **settings: Any) -> Tokenization:
    turn_end = tokenizer.convert_tokens_to_ids("</turn>")
    return Tokenization(tokenizer, TaskConfig(template="chat", **settings), DecoderOnly(), ends=(turn_end,))


def example(turns: tuple[Turn, ...], reply: str) -> Example:
    return Example("a", (), "source", (reply,), turns=turns)


def rendered(tokenizer: Any, turns: tuple[Turn, ...], asks: bool, **options: Any) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=False, **options)
    assert all(isinstance(one, int) for one in ids)
    return list(ids)


@pytest.mark.parametrize("turns", [TALK[:1], TALK], ids=["first turn", "second turn"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_what_was_said(name: str, turns: tuple[Turn, ...], tokenizers: dict[str, Any]) -> None:
    tokenizer, reply = tokenizers[name], SAID[len(turns) // 2]
    tokens = tokens_of(tokenizer)
    (pair,) = tokens.pairs([example(turns, f" {reply}\n")])
    *said, end = pair.target_ids
    assert tokenizer.decode(said).strip() == reply
    assert tokenizer.convert_ids_to_tokens(end) == ("</turn>" if name == "gemma" else ENDS.get(name, "<end>"))
    assert pair.source_ids == tokens.source(example(turns, "")), "the same is read when texts are generated"
    assert pair.source_ids.count(tokenizer.bos_token_id) == (TEMPLATES[name].startswith("{{ bos_token }}"))
    prompt = rendered(tokenizer, turns, asks=True)
    assert pair.source_ids[: len(prompt)] == prompt
    if name not in ("deepseek",):  # which asks with a word that no turn of a history begins with
        whole = rendered(tokenizer, (*turns, ("assistant", reply)), asks=False)
        assert whole[: len(pair.source_ids) + len(pair.target_ids)] == [*pair.source_ids, *pair.target_ids]
    if name not in ("qwen3", "qwen3_thinking"):
        assert pair.source_ids == prompt


def test_reasoning_of_earlier_turns_is_read_as_the_template_has_it(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["qwen3"]
    turns = (TALK[0], ("assistant", "<think>\nhm\n</think>\n\n4"), TALK[2])
    (pair,) = tokens_of(tokenizer).pairs([example(turns, "Yes")])
    read = tokenizer.decode(pair.source_ids)
    assert "hm" not in read
    assert read.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "empty reasoning is read, not learned"
    off = tokens_of(tokenizer, chat_options={"enable_thinking": False})
    assert off.pairs([example(turns, "Yes")]) == [pair]
    with pytest.raises(ModelError, match=r"writes '<think>.*a reference begins with '<think>hm</think>4'; take this"):
        tokens_of(tokenizer).pairs([example(turns, "<think>hm</think>4")])
    for reply in ("<think>\nhm\n</think>\n\n4", "hm\n</think>\n\n4"):
        with pytest.raises(ModelError, match="ahead of what the assistant says, and a reference begins with"):
            tokens_of(tokenizers["qwen3_thinking"]).pairs([example(TALK, reply)])
    (opened,) = tokens_of(tokenizers["deepseek"]).pairs([example(TALK, "<think>\nhm\n</think>4")])
    assert tokenizers["deepseek"].decode(opened.target_ids) == "hm\n</think>4<end>"


def test_what_the_system_says(tokenizers: dict[str, Any]) -> None:
    def read(name: str, turns: tuple[Turn, ...] = TALK, **settings: Any) -> str:
        tokens = tokens_of(tokenizers[name], **settings)
        return str(tokenizers[name].decode(tokens.source(example(turns, ""))))

    assert read("chatml").startswith("<|im_start|>system\nYou are kind.<|im_end|>")
    assert read("chatml", system_prompt="Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )
    own = (("system", "Shout."), *TALK)
    assert read("chatml", own, system_prompt="Be brief.").startswith("<|im_start|>system\nShout.<|im_end|>")
    assert "user\nBe brief.\n\nWhat is 2 + 2?" in read("gemma", system_prompt="Be brief.", system_in="user")
    assert "USER: Shout.\n\nWhat is" in read("silent", own, system_in="user")
    with pytest.raises(ModelError, match=r"refuses the turns system, .*System role not supported; set system_in: user"):
        read("gemma", system_prompt="Be brief.")
    with pytest.raises(ModelError, match=r"leaves out or changes a turn of the system, 'Shout.'; set system_in: user"):
        read("silent", own)
    with pytest.raises(ModelError, match=r"asks for a turn .* begins one with .*; set system_in: user, or leave out"):
        read("mistral_later", own)
    assert "[INST] Shout.\n\nWhat is 2 + 2? [/INST]" in read("mistral_later", own, system_in="user")


def test_a_date_does_not_depend_on_the_day(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "llama")
    tokenizer.chat_template = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }} " + LLAMA
    assert tokenizer.decode(tokens_of(tokenizer).source(example(TALK, ""))).startswith("26 Jul 2024")
    dated_tokens = tokens_of(tokenizer, chat_options={"date_string": "30 Nov 2026"})
    assert tokenizer.decode(dated_tokens.source(example(TALK, ""))).startswith("30 Nov 2026")


def test_a_template_that_is_of_no_use_is_one_error(tokenizers: dict[str, Any], tiny_models: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"refuses the turns user, user: roles must alternate"):
        tokens_of(tokenizers["mistral"]).pairs([example((TALK[0], TALK[2]), "Yes")])
    plain = tokenization(ModelSpec(path=str(tiny_models["gpt2"])), TaskConfig(template="chat"))
    with pytest.raises(ModelError, match=r"task.template: chat: the tokenizer has no chat template; take a model that"):
        plain.pairs([Example("a", (), "source", ("text",))])
    broken = tokens_of(tokenizers["chatml"])
    broken.tokenizer = deepcopy(broken.tokenizer)
    broken.tokenizer.chat_template = "fixed"
    with pytest.raises(ModelError, match="leaves out what the assistant says"):
        broken.pairs([example(TALK, "Yes")])


def test_the_source_of_any_task_is_a_turn_of_the_user(tokenizers: dict[str, Any]) -> None:
    (pair,) = tokens_of(tokenizers["llama"]).pairs([Example("a", (), "Ann : home : Rome", ("Ann lives in Rome.",))])
    assert tokenizers["llama"].decode(pair.source_ids + pair.target_ids) == (
        "<s><|start|>user<|stop|>\n\nAnn : home : Rome<|eot|><|start|>assistant<|stop|>\n\nAnn lives in Rome.<|eot|>"
    )
    with pytest.raises(ValueError, match="system_prompt has no effect without template: chat"):
        TaskConfig(system_prompt="Be brief.")


def test_an_encoder_decoder_reads_the_rendered_turns_with_its_end(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    from conftest import save_tokenizer

    tokenizer = save_tokenizer(tmp_path, ends_texts=True)
    tokenizer.chat_template = TEMPLATES["silent"]
    tokens = Tokenization(tokenizer, TaskConfig(template="chat"), EncoderDecoder(0))
    (pair,) = tokens.pairs([example(TALK[:1], "4")])
    assert tokenizer.decode(pair.source_ids) == "USER: What is 2 + 2?\nASSISTANT: <end>"
    assert tokenizer.decode(pair.target_ids) == "4<end>"


LONG: tuple[Turn, ...] = tuple(
    turn for n in range(6) for turn in (("user", f"question {n}"), ("assistant", f"reply {n}"))
)[:-1]


def test_what_is_too_long_loses_turns_from_the_middle(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama"]
    turns = (("system", "Be brief."), *LONG)
    whole = len(tokens_of(tokenizer).source(example(turns, "")))
    tokens = tokens_of(tokenizer, max_source_tokens=whole - 1)
    read = tokenizer.decode(tokens.source(example(turns, "")))
    assert "question 1" not in read
    assert "reply 1" not in read
    for kept in ("Be brief.", "question 0", "reply 0", "question 2", "question 5"):
        assert kept in read
    assert (tokens.truncated_sources, tokens.left_out_turns) == (1, 2)
    last = tokens_of(tokenizer, max_source_tokens=len(tokens_of(tokenizer).source(example((turns[0], turns[-1]), ""))))
    assert last.source(example(turns, "")) == tokens_of(tokenizer).source(example((turns[0], turns[-1]), ""))
    assert last.left_out_turns == 10


def test_the_system_keeps_its_words_in_the_first_turn_of_the_user_that_is_left(tokenizers: dict[str, Any]) -> None:
    tokenizer, settings = tokenizers["gemma"], {"system_prompt": "Be brief.", "system_in": "user"}
    smallest = tokens_of(tokenizer, **settings).source(example(LONG[-1:], ""))
    tokens = tokens_of(tokenizer, max_source_tokens=len(smallest), **settings)
    assert tokens.source(example(LONG, "")) == smallest
    assert "user\nBe brief.\n\nquestion 5" in tokenizer.decode(smallest)
    assert (tokens.truncated_sources, tokens.left_out_turns) == (1, 10)
    of_data = tokens.source(example((("system", "Shout."), *LONG), ""))
    assert "user\nShout.\n\nquestion 5" in tokenizer.decode(of_data)
    read = tokenizer.decode(tokens.source(example((("user", "Ann lives in Rome. " * 30),), "")))
    assert "user\nBe brief.\n\nA" in read


def test_a_template_that_leaves_out_empty_turns_cuts_them_all_the_same(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "silent")
    tokenizer.chat_template = TEMPLATES["silent"].replace("m.role == 'user' %}", "m.role == 'user' and m.content %}", 1)
    whole = tokens_of(tokenizer).source(example(TALK[2:], ""))
    cut = tokens_of(tokenizer, max_source_tokens=len(whole) - 1).source(example(TALK[2:], ""))
    assert len(cut) < len(whole)
    assert tokenizer.decode(cut).startswith("USER: S")


def test_what_the_user_says_is_cut_where_nothing_else_is_left(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama"]
    turns: tuple[Turn, ...] = (("user", "Ann lives in Rome. " * 30),)
    tokens = tokens_of(tokenizer, max_source_tokens=40)
    ids = tokens.source(example(turns, ""))
    assert len(ids) <= 40
    read = tokenizer.decode(ids)
    assert read.startswith("<s><|start|>user<|stop|>\n\nAnn lives in Rome. Ann")
    assert read.endswith("<|eot|><|start|>assistant<|stop|>\n\n")
    with pytest.raises(ModelError, match=r"task.max_source_tokens: 5 leave no room"):
        tokens_of(tokenizer, max_source_tokens=5).source(example(turns, ""))


def test_counts_of_a_split_are_in_its_summary(tmp_path: Path) -> None:
    model = ModelSpec(path=str(save_chat_model(tmp_path, "chatml")))
    config = {"template": "chat", "train_examples": 4, "dev_examples": 2, "test_examples": 2}
    spec = TaskSpec(name="facts", target="bench.tasks.facts.task:Facts", config=config)
    task = make_task(spec)
    tokens = tokenization(model, task.config)
    data = tokenised(spec, task, "dev", tokens)
    assert "left_out_turns" not in data_summary({"dev": data})
    counted = replace(data, summary={**data.summary, "left_out_turns": 3})
    assert data_summary({"dev": counted})["left_out_turns"] == 3
