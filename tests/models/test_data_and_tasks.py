"""Tasks read their documented formats, and batches of training have the documented properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance.tiny_models import WordTokenizer
from bench.models.architecture import DecoderOnly
from bench.models.tokens import Tokenization
from bench.schema.trial import TrainSpec
from bench.task import Example, TaskConfig, TaskError, linearise
from bench.tasks.facts.task import Facts
from bench.tasks.jsonl import JsonLines
from bench.train.order import micro_batches, num_steps, training_order


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not valid JSON"),
        ("[1]", "line 2: expected an object, got list"),
        ('{"references": ["x"]}', "line 2: no column 'source'; the columns are references"),
        ('{"source": "a"}', "line 2: no column 'references'; the columns are source"),
        ('{"source": "a", "references": [["x"]]}', "line 2: 'references' must be a text or a list of texts"),
        ('{"source": "a", "references": ["x"], "facts": 1}', "line 2: 'facts' must be a list of facts or a record"),
    ],
)
def test_malformed_json_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    good = '{"source": "s", "references": ["t"]}'
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(good + "\n")
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(TaskError, match=rf"train.jsonl: {message}"):
        JsonLines(JsonLines.Config(path=str(tmp_path))).load("train")


def test_facts_have_unseen_relations_in_the_test_split_only() -> None:
    task = Facts(Facts.Config())
    sizes = {split: len(task.load(split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 2400, "dev": 300, "test": 400}
    example = task.load("test")[0]
    assert example.source == linearise(example.facts)
    assert len(example.references) >= 3
    trained = {relation for example in task.load("train") for _, relation, _ in example.facts}
    assert len(trained) >= 30
    for example in task.load("test"):
        assert ("unseen" in example.tags) == any(relation not in trained for _, relation, _ in example.facts)


def test_long_sources_are_cut_and_targets_keep_their_end() -> None:
    config = TaskConfig(template="Data: {source} Text:", max_source_tokens=3, max_target_tokens=2)
    tokens = Tokenization(WordTokenizer(), config, DecoderOnly())
    example = Example("x", (), "a b c d e", ("one two three",))
    (pair,) = tokens.pairs([example])
    assert len(pair.source_ids) == 3 + 1, "the end of the template stays"
    assert len(pair.target_ids) == 2 + 1
    assert pair.target_ids[-1] == WordTokenizer.eos_token_id
    assert (tokens.truncated_sources, tokens.truncated_targets) == (1, 1)
    with pytest.raises(ValueError, match=r"a template has the place \{source\}"):
        TaskConfig(template="Text:")


lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths_strategy, st.integers(1, 6), st.integers(1, 30), st.integers(0, 3))
def test_training_order_covers_epochs_and_depends_on_the_seed_alone(
    lengths: list[int], batch_size: int, steps: int, seed: int
) -> None:
    order = training_order(lengths, batch_size, steps, seed)
    assert [len(batch) for batch in order] == [batch_size] * steps
    assert order == training_order(lengths, batch_size, steps, seed)
    counts = [sum(batch.count(index) for batch in order) for index in range(len(lengths))]
    assert max(counts) - min(counts) <= 1, "every pair is seen equally often, to one"


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_ranks_and_micro_batches_share_a_batch_out_exactly(ranks: int, micro: int, accumulation: int) -> None:
    batch = list(range(ranks * micro * accumulation))
    shares = [micro_batches(batch, rank, ranks, micro) for rank in range(ranks)]
    assert sorted(index for share in shares for part in share for index in part) == batch
    assert all(len(share) == accumulation for share in shares)


def test_bucketing_leaves_next_to_no_padding(shared_data: Path) -> None:
    lines = (shared_data / "webnlg" / "webnlg17_train.jsonl").read_text().splitlines()[:4000]
    lengths = [len(json.dumps(json.loads(line)).split()) for line in lines]
    order = training_order(lengths, 8, 400, seed=0)
    useful = sum(lengths[index] for batch in order for index in batch)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in order)
    assert useful / padded > 0.97


@pytest.mark.parametrize(
    ("train", "expected"),
    [({"steps": 7}, 7), ({"epochs": 2, "batch_size": 5}, 8), ({"batch_size": 5}, 4), ({"epochs": 0.01}, 1)],
)
def test_number_of_steps(train: dict[str, Any], expected: int) -> None:
    assert num_steps(TrainSpec(**train), num_pairs=20) == expected
