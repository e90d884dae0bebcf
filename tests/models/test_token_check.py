"""References that a base model cannot generate are found before a sweep starts, with a remedy."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from conftest import CITIES, NAMES, write_task
from kinds_of_tokenizers import KINDS, byte_level, word_piece
from typer.testing import CliRunner

from bench.cli import app
from bench.config.resolver import RegistryResolver
from bench.conformance.tiny_models import FAMILIES
from bench.doctor.tokens import check_tokens_of
from bench.driver.prepare import prepare
from bench.models.few_shot import require_room, with_examples
from bench.models.token_check import (
    MOST_REFERENCES,
    TokenFinding,
    check_positions,
    check_tokens,
    lost_references,
    try_references,
)
from bench.models.tokens import tokenization
from bench.plugins.registry import make_task
from bench.schema.trial import DecodeSpec, ModelSpec
from bench.schema.validation import ConfigError
from bench.task import Task
from bench.tasks.jsonl import JsonLines
from bench.tasks.splits import load_splits


@pytest.fixture
def task(tmp_path: Path) -> JsonLines:
    """28, 6 and 6 sources with two references each."""
    (tmp_path / "task").mkdir()
    write_task(tmp_path / "task", [(name, city) for name in NAMES for city in CITIES])
    return JsonLines(JsonLines.Config(path=str(tmp_path / "task")))


def saved(folder: Path, tokenizer: Any, rows: int | None = None, ends: Any = None) -> ModelSpec:
    """A tiny GPT-2 with this tokenizer, an embedding of so many rows, and end tokens in its generation_config."""
    tokenizer.save_pretrained(folder)
    model = FAMILIES["gpt2"](rows or len(tokenizer))
    model.config.eos_token_id = model.config.bos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = ends or tokenizer.eos_token_id
    model.save_pretrained(folder)
    return ModelSpec(path=str(folder))


def rewritten(task: Task, change: Any, every: int = 1) -> Task:
    """The same task with references changed."""
    folder = Path(task.config.path)
    for split in ("train", "dev", "test"):
        path = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        for row in rows[::every]:
            row["references"] = [change(text) for text in row["references"]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task


def found(model: ModelSpec, task: Task, **settings: Any) -> dict[str, TokenFinding]:
    """What is not in order, by the name of the check."""
    findings = check_tokens(model, task, load_splits(task), DecodeSpec(**settings))
    return {one.check.removeprefix(f"{model.path}: "): one for one in findings if one.outcome != "pass"}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"word pieces", "slow"}))
def test_a_model_that_can_say_the_task_has_nothing_to_mind(kind: str, tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", KINDS[kind]())
    assert found(model, task) == {}
    assert lost_references(tokenization(model, task.config), load_splits(task), task.stop) == {}


def test_references_are_taken_evenly_over_the_splits(tmp_path: Path, task: Task) -> None:
    splits = load_splits(task)
    tried = try_references(tokenization(saved(tmp_path / "model", byte_level()), task.config), splits, task.stop)
    ids = {one.example.id for one in tried}
    assert len(tried) == 80 < MOST_REFERENCES
    assert all(ids & {example.id for example in part} for part in splits.values())


def test_an_uncased_tokenizer_is_told_with_the_score_that_can_be_reached(tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", word_piece())
    finding = found(model, task)["tokens give the references back"]
    assert finding.outcome == "warning"
    assert "80 of 80 references do not come back from their tokens, because capitals are lost" in finding.found
    shown = re.search(r"e.g. '(.*)' as '(.*)'; the most", finding.found)
    assert shown is not None
    assert shown.group(1).lower() == shown.group(2)
    texts = [one.reference for one in try_references(tokenization(model, task.config), load_splits(task), task.stop)]
    bleu = sacrebleu.corpus_bleu([text.lower() for text in texts], [texts]).score
    assert f"the most that a text can score on these is bleu {bleu:.1f}" in finding.found
    assert "take a cased model" in finding.remedy
    lost = lost_references(tokenization(model, task.config), load_splits(task), task.stop)
    assert lost == {"references_tried": 80, "references_lost": 80}


def test_characters_that_the_tokenizer_does_not_know(tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", KINDS["unigram"]())
    finding = found(model, rewritten(task, lambda text: text.replace("Ann", "Яна")))["tokens give the references back"]
    assert "the tokenizer does not know all characters" in finding.found


def test_white_space_is_no_difference(tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", KINDS["unigram"]())
    assert found(model, rewritten(task, lambda text: " " + text.replace(" ", "  "))) == {}


def test_tokens_without_a_row_in_the_embedding_are_a_problem(tmp_path: Path, task: Task) -> None:
    tokenizer = byte_level()
    model = saved(tmp_path / "model", tokenizer, rows=len(tokenizer) - 60)
    finding = found(model, task)["tokens fit the embedding"]
    assert finding.outcome == "problem"
    assert f"and the embedding has {len(tokenizer) - 60} rows" in finding.found
    assert "resize the embedding" in finding.remedy
    banned = found(saved(tmp_path / "other", byte_level()), task, banned_token_ids=[5, 9999])[
        "tokens fit the embedding"
    ]
    assert "decode.banned_token_ids: [9999] are no tokens of this model" in banned.found


@pytest.mark.parametrize(("more", "outcome"), [(-2, "pass"), (-1, "problem")])
def test_a_beam_search_has_no_more_beams_than_a_text_has_beginnings(
    more: int, outcome: str, tmp_path: Path, task: Task
) -> None:
    tokenizer = byte_level()
    model = saved(tmp_path / "model", tokenizer, rows=len(tokenizer))
    finding = found(model, task, banned_token_ids=[5, 6], beams=len(tokenizer) + more).get("beams fit the vocabulary")
    assert (finding.outcome if finding else "pass") == outcome
    assert finding is None or "decode.beams: " in finding.found


@pytest.mark.parametrize(("every", "outcome"), [(1, "problem"), (7, "warning")])
def test_references_with_a_line_break(every: int, outcome: str, tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", byte_level())
    finding = found(model, rewritten(task, lambda text: f"{text}\nMore.", every))["no reference holds what ends a text"]
    assert finding.outcome == outcome
    assert "references hold '\\n'" in finding.found
    assert "\\nMore.', and a text ends at the first" in finding.found
    other = rewritten(task, lambda text: text.replace("\nMore.", "\u2028More."))
    assert "no reference holds what ends a text" not in found(model, other)


def test_one_reference_with_a_stop_string_is_found_among_many(tmp_path: Path, task: Task) -> None:
    example, *_ = load_splits(task)["test"]
    many = [replace(example, references=("Ann.",))] * 998 + [replace(example, references=("Ann.\n", "Ann.\nBob."))]
    findings = check_tokens(saved(tmp_path / "model", byte_level()), task, {"test": many})
    (finding,) = [one for one in findings if "holds what ends a text" in one.check]
    assert (finding.outcome, finding.found[:33]) == ("warning", "1 of 1,000 references hold '\\n', ")


def test_an_ordinary_token_that_ends_texts_is_a_problem(tmp_path: Path, task: Task) -> None:
    tokenizer = byte_level()
    (point,) = tokenizer(".")["input_ids"]
    finding = found(saved(tmp_path / "model", tokenizer, ends=[2, point]), task)["no reference holds what ends a text"]
    assert finding.outcome == "problem"
    assert f"80 of 80 references hold an end token of the model, e.g. '.' (id {point})" in finding.found
    assert "generation_config.json" in finding.remedy


def test_a_banned_token_in_references(tmp_path: Path, task: Task) -> None:
    tokenizer = byte_level()
    model = saved(tmp_path / "model", tokenizer)
    (point,) = tokenizer(".")["input_ids"]
    assert found(model, task, banned_token_ids=[point])["no reference holds a banned token"].outcome == "problem"


def test_a_setting_without_effect_is_a_problem(tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", byte_level()).model_copy(update={"beginning_token": False})
    assert "has no effect, because the tokenizer puts nothing" in found(model, task)["beginning token"].found
    begins = saved(tmp_path / "other", KINDS["llama"]()).model_copy(update={"beginning_token": False})
    assert found(begins, task) == {}


def test_a_sweep_does_not_start_with_a_problem_and_says_warnings(tmp_path: Path, task: Task) -> None:
    from fakes import trial

    spec = RegistryResolver().task("jsonl", {"path": task.config.path})
    good, uncased = saved(tmp_path / "good", byte_level()), saved(tmp_path / "uncased", word_piece())
    bad = saved(tmp_path / "bad", byte_level(), rows=100)

    def of(model: ModelSpec) -> Any:
        return trial("none").model_copy(update={"model": model, "task": spec})

    said: list[str] = []
    prepare([of(good)], said.append)
    assert not any("warning" in line for line in said)
    prepare([of(good), of(uncased)], said.append)
    assert any(line.startswith(f"warning: {uncased.path}: tokens give the references back") for line in said)
    with pytest.raises(ConfigError, match=r"bad: tokens fit the embedding: .*; take the tokenizer that belongs"):
        prepare([of(good), of(bad)], said.append)
    statuses = {model: [one.status for one in check_tokens_of([of(model)])] for model in (good, uncased, bad)}
    assert statuses == {good: ["ok"], uncased: ["warning"], bad: ["problem"]}


@pytest.mark.parametrize(
    ("family", "outcome"), [("gpt2", "problem"), ("opt", "problem"), ("bart", "problem"), ("llama", "warning")]
)
def test_a_table_of_positions_ends_and_computed_ones_go_on(family: str, outcome: str, tmp_path: Path) -> None:
    FAMILIES[family](96).save_pretrained(tmp_path)
    model = ModelSpec(path=str(tmp_path))
    assert check_positions(model, 128).outcome == "pass"
    assert check_positions(model, 129).outcome == outcome


def test_a_sweep_does_not_start_with_sequences_beyond_a_table_of_positions(tmp_path: Path, task: Task) -> None:
    from fakes import trial

    model = saved(tmp_path / "model", byte_level())
    rewritten(task, lambda text: text * 20)

    def of(target: int, new_tokens: int, **update: object) -> Any:
        spec = RegistryResolver().task("jsonl", {"path": task.config.path, "max_target_tokens": target})
        decode = DecodeSpec(max_new_tokens=new_tokens)
        return trial("none").model_copy(update={"model": model, "task": spec, "decode": decode, **update})

    message = r"the longest source takes .* behind it [\d,]+ tokens, and the model has 128 positions; lower task.max_s"
    for wrong in (of(8, 128), of(1000, 4)):
        with pytest.raises(ConfigError, match=message):
            prepare([of(8, 4), wrong], [].append)
    said: list[str] = []
    prepare([of(8, 4), of(8, 128, stage="tune")], said.append)  # which writes no texts
    told = [line for line in said if "references are longer" in line]
    assert len(told) == 2, "of the splits of each stage"
    for line in told:
        assert re.match(r"task jsonl: warning: \d+ references are longer than task.max_target_tokens \(8\) and", line)
        assert line.endswith(f"in tokens of {model.path}")


def test_every_choice_fits_the_positions(tmp_path: Path, task: Task) -> None:
    from fakes import trial

    model = saved(tmp_path / "model", byte_level())
    rewritten(task, lambda _: "Rome")

    def of(wrong: str) -> Any:
        spec = RegistryResolver().task("jsonl", {"path": task.config.path, "choices": ["Rome", wrong]})
        decode = DecodeSpec(max_new_tokens=500)  # of no text
        return trial("none").model_copy(update={"model": model, "task": spec, "decode": decode})

    prepare([of("Oslo")], [].append)
    require_room(of("Oslo"), 1)
    with pytest.raises(ConfigError, match=r"behind it [\d,]+ tokens, and the model has 128 positions"):
        prepare([of("xyz" * 100)], [].append)
    with pytest.raises(ConfigError, match=r"--shots 1: the longest prompt takes [\d,]+ tokens .* reads at most 128"):
        require_room(of("xyz" * 100), 1)


def test_a_pair_that_names_a_column_is_not_shown(tmp_path: Path, task: Task) -> None:
    from fakes import trial

    spec = RegistryResolver().task("jsonl", {"path": rewritten(task, "as {{references}}: {}".format, 2).config.path})
    of = trial("none").model_copy(update={"model": saved(tmp_path / "model", byte_level()), "task": spec})
    with pytest.raises(ConfigError, match="have 14 sources that are no dev or test sources"):
        with_examples(of, 15)
    shown = with_examples(of, 14).task
    assert load_splits(make_task(shown), ("dev",)), "its template is none with columns"


def test_an_indented_first_line_is_told(tmp_path: Path, task: Task) -> None:
    model = saved(tmp_path / "model", byte_level())
    check = "no reference of several lines is indented"
    code = rewritten(task, lambda text: f"\n    {text}\n    {text}\n")
    finding = found(model, code, stop=[])[check]
    assert (finding.outcome, finding.found[:20]) == ("warning", "80 of 80 references ")
    assert check not in found(model, code, stop=["\n    Ann", "\n    "])  # what is left has one line
    assert check not in found(model, rewritten(task, lambda text: text.strip()), stop=[])


def test_check_task_tries_the_tokens_of_a_model(tmp_path: Path, task: Task) -> None:
    runner = CliRunner(env={"COLUMNS": "300"})
    models = {
        "fail": (saved(tmp_path / "bad", byte_level(), rows=100), 1),
        "warn": (saved(tmp_path / "uncased", word_piece()), 0),
    }
    for outcome, (model, code) in models.items():
        arguments = ["check-task", "jsonl", "--set", f"path={task.config.path}", "--model", model.path, "--json"]
        done = runner.invoke(app, arguments)
        assert done.exit_code == code, done.output
        assert [row["outcome"] for row in json.loads(done.output) if row["outcome"] != "pass"] == [outcome]
