"""The commands tasks, check-task, score and samples, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import completed, record, trial
from typer.testing import CliRunner

from bench.cli import app
from bench.commands.task_overview import lengths, overview
from bench.conformance.task_checks import verdicts
from bench.metrics.scoring import score_examples
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.task import Example, Scoring, Split, TaskError
from bench.tasks.facts.task import Facts
from bench.tasks.jsonl import JsonLines

runner = CliRunner(env={"COLUMNS": "200"})


def run(*arguments: str, code: int = 0) -> str:
    invoked = runner.invoke(app, arguments)
    if isinstance(invoked.exception, Exception) and not isinstance(invoked.exception, SystemExit):
        raise invoked.exception
    assert invoked.exit_code == code, invoked.output
    return invoked.output


def load_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (("e2e", "path=e2e"), {"train": (4862, 42061), "dev": (547, 4672), "test": (630, 4693)}),
        (("e2e", "path=e2e", "form=paper"), {"train": (4862, 42061), "dev": (547, 4672), "test": (630, 4693)}),
        (("e2e", "path=e2e_cleaned", "form=cleaned"), {"dev": (1484, 4299), "test": (1847, 4693)}),
        (("webnlg", "path=webnlg"), {"train": (6935, 18025), "dev": (871, 2258), "test": (1862, 4928)}),
        (("dart", "path=dart"), {"dev": (2768, 6980), "test": (5097, 12551)}),
    ],
)
def test_tasks_name_tells_what_real_data_hold(
    arguments: tuple[str, ...], counts: dict[str, tuple[int, int]], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of the data's own README, without texts that are left out by rule and counted."""
    monkeypatch.setattr("bench.models.base.embedded_folder", lambda: Path("/nowhere"))
    name, path, *others = arguments
    path = f"path={shared_data / path.partition('=')[2]}"
    document = load_json("tasks", name, *(word for setting in (path, *others) for word in ("--set", setting)))
    holds = document["holds"]
    assert {split: (one["sources"], one["references"]) for split, one in holds["counts"].items()} == counts
    assert set(holds["missing"]) == {"train", "dev", "test"} - set(counts)
    assert len(holds["examples"]) == 3
    assert document["citation"]
    assert document["licence"]
    if name == "webnlg":
        assert document["licence"] == "CC BY-NC-SA 4.0: non-commercial use only"
        left_out = {"references marked toFix": 77, "entries left without a reference": 5}  # of 6,940 entries
        assert holds["counts"]["train"]["skipped"] == left_out
        assert holds["counts"]["test"]["tags"] == {"seen": 971, "unseen": 891}
    if name == "dart":
        assert holds["counts"]["test"]["skipped"] == {"empty references": 1}
        assert holds["oddities"]["repeated_test_sources"] == 938


def test_tasks_name_shows_settings_examples_and_lengths(tiny_models: dict[str, Path], tiny_task: Path) -> None:
    text = run("tasks", "jsonl", "--set", f"path={tiny_task}", "--model", str(tiny_models["gpt2"]))
    for expected in ("max_source_tokens", "28", "56", "example 1: the model reads", "lives in", "train references"):
        assert expected in text
    holds = load_json("tasks", "jsonl", "--set", f"path={tiny_task}", "--model", str(tiny_models["gpt2"]))["holds"]
    sources = holds["lengths"]["train"]["sources"]
    assert sources["total"] == 28
    assert sources["too_long"] == 0
    assert 0 < sources["percentiles"]["50"] <= sources["percentiles"]["100"]
    assert "path" in run("tasks", "jsonl"), "without settings, what can be set"
    with pytest.raises(ConfigError, match="there is no task 'e3e'; did you mean 'e2e'"):
        run("tasks", "e3e")
    with pytest.raises(ConfigError, match=r"task jsonl: pat: unknown key .*did you mean 'path'"):
        run("tasks", "jsonl", "--set", "pat=x", "--set", f"path={tiny_task}")


def test_lengths_count_what_would_be_cut() -> None:
    from bench.conformance.tiny_models import WordTokenizer
    from bench.models.architecture import DecoderOnly
    from bench.models.tokens import Tokenization
    from bench.task import TaskConfig

    config = TaskConfig(template="{source} =", max_source_tokens=2, max_target_tokens=2)
    tokens = Tokenization(WordTokenizer(), config, DecoderOnly())
    examples = [Example("a", (), "one two three", ("x", "x y z")), Example("b", (), "one", ("x",))]
    lengths_of_splits = lengths(tokens, examples)
    assert (lengths_of_splits["sources"].too_long, lengths_of_splits["sources"].total) == (1, 2)
    assert (lengths_of_splits["references"].too_long, lengths_of_splits["references"].total) == (1, 3)
    assert lengths_of_splits["sources"].percentiles == {50: 2, 90: 4, 99: 4, 100: 4}
    assert lengths_of_splits["references"].percentiles[100] == 4


def test_check_task_passes_ours_and_tells_strangers_what_is_wrong(tiny_task: Path, tmp_path: Path) -> None:
    assert "fail" not in run("check-task", "jsonl", "--set", f"path={tiny_task}")
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"source": "a", "references": ["two\\nlines"]}\n')
    output = run("check-task", "jsonl", "--set", f"path={tmp_path}", code=1)
    assert "a prediction of this task ends at the first" in " ".join(output.replace("│", " ").split())


def test_the_facts_keep_the_contract() -> None:
    assert {verdict.outcome for verdict in verdicts(Facts(Facts.Config()))} == {"pass"}


class Careless(JsonLines):
    """A task with mistakes that a plugin may have."""

    calls = 0

    def load(self, split: Split) -> list[Example]:
        type(self).calls += 1
        if split == "dev":
            raise RuntimeError("forgotten")
        return [Example(f"{split}", (), f"source {self.calls}", ("",))]

    def data_sha256(self) -> str | None:
        type(self).calls += 1
        return str(self.calls)


def test_careless_tasks_fail_check_by_check(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    verdicts_by_check = {
        one.check: one.reason for one in verdicts(Careless(Careless.Config(path=str(tmp_path)))) if one.reason
    }
    assert verdicts_by_check["loads dev"] == "RuntimeError: forgotten"
    assert verdicts_by_check["loads the same twice"].startswith("loading train again gives other examples")
    assert verdicts_by_check["examples are whole"] == "train: example 'train': a reference is empty"
    assert verdicts_by_check["hash is steady"].startswith("data_sha256 differs from call to call")
    assert "references hold no stop string" not in verdicts_by_check


def test_an_overview_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(TaskError, match=r"train.jsonl: no examples"):
        overview(JsonLines(JsonLines.Config(path=str(tmp_path))))


def test_score_prints_the_official_numbers(shared_data: Path) -> None:
    text = run(
        "score",
        *("--task", "webnlg", "--set", f"path={shared_data / 'webnlg'}"),
        *("--hypotheses", str(shared_data / "metric_fixtures" / "webnlg17_all_bart-base.tok.lc.txt")),
    )
    (bleu,) = (line for line in text.splitlines() if "bleu ↑" in line)
    assert [cell.strip() for cell in bleu.split("│")[2:5]] == ["52.9781", "62.3595", "41.6989"]
    assert "seen (971)" in text
    assert "no bertscore: the package bert-score is not installed" in text


def test_score_any_file(tiny_task: Path, tmp_path: Path) -> None:
    examples = JsonLines(JsonLines.Config(path=str(tiny_task))).load("dev")
    path = tmp_path / "system.txt"
    path.write_text("\n".join(example.references[1] for example in examples[:-1]) + "\n\n")
    task = ("--task", "jsonl", "--set", f"path={tiny_task}", "--split", "dev")
    document = load_json("score", *task, "--hypotheses", str(path))
    assert document["values"]["exact_match"] == pytest.approx(100 * 5 / 6)
    assert document["values"]["empty_rate"] == pytest.approx(100 / 6), "an empty line is an empty text"
    assert len(document["examples"]) == 6
    assert document["examples"][0]["scores"]["bleu"] == pytest.approx(100)
    path.write_text("one line\n")
    with pytest.raises(ConfigError, match=r"system.txt: 1 lines; the dev split has 6 sources, and each has one line"):
        run("score", *task, "--hypotheses", str(path))
    with pytest.raises(ConfigError, match=r"nowhere.txt: cannot be read"):
        run("score", *task, "--hypotheses", str(tmp_path / "nowhere.txt"))
    assert "'train' is not one of 'test', 'dev'" in run(
        "score", "--task", "facts", "--split", "train", "--hypotheses", str(path), code=2
    )
    with pytest.raises(ConfigError, match=r"there is no metric 'blue'; did you mean 'bleu' or 'bleurt'\? Known: bleu"):
        path.write_text("x\n" * 6)
        run("score", *task, "--hypotheses", str(path), "--metric", "blue")


@pytest.fixture
def stored_trial(tmp_path: Path) -> Path:
    """Folder of a trial with three predictions: perfect, half right, wrong."""
    examples = [
        Example(f"test-{n}", (), f"source {n}", ("the cat sat on the mat", "a cat sat"), (tag,))
        for n, tag in enumerate(("seen", "seen", "unseen"))
    ]
    predictions = ["the cat sat on the mat", "the cat ran on the mat", "a dog"]
    system = score_examples(examples, predictions, Scoring(), truncated=[False, True, False])
    store = Store(tmp_path / "demo")
    store.root.mkdir()
    path = tmp_path / "predictions.jsonl"
    rows = [
        {
            "id": example.id,
            "source": example.source,
            "prediction": prediction,
            "references": example.references,
            "tags": example.tags,
            "truncated": index == 1,
            "scores": system.source_scores(index),
        }
        for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = record(trial("full"), completed().model_copy(update={"scores": system.scores()}))
    store.commit(result, [path])
    return store.trials / result.trial_id


def test_samples_show_the_worst_first(stored_trial: Path) -> None:
    text = run("samples", str(stored_trial))
    positions = [text.index(name) for name in ("test-2  bleu", "test-1  bleu", "test-0  bleu")]
    assert positions == sorted(positions)
    for expected in ("3 of 3 sources, worst bleu first", "cut off at the length limit", "a dog", "reference"):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (("--best",), ["test-0", "test-1", "test-2"]),
        (("--by", "ter"), ["test-2", "test-1", "test-0"]),
        (("--tag", "seen"), ["test-1", "test-0"]),
        (("--text", "DOG"), ["test-2"]),
        (("-n", "1"), ["test-2"]),
    ],
)
def test_samples_are_sorted_and_filtered_as_asked(
    arguments: tuple[str, ...], ids: list[str], stored_trial: Path
) -> None:
    document = load_json("samples", str(stored_trial / "result.json"), *arguments)
    assert [row["id"] for row in document] == ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "nist"), "--by nist: single sources have no such score; they have bleu, chrf"),
        (("--tag", "odd"), "--tag odd: no source has it; there are seen, unseen"),
    ],
)
def test_samples_say_what_could_be_asked_for(arguments: tuple[str, ...], message: str, stored_trial: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run("samples", str(stored_trial), *arguments)


def test_samples_need_a_trial(tmp_path: Path, stored_trial: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file result.json; give the folder of a trial"):
        run("samples", str(tmp_path))
    bare = record(trial("none"), completed())
    Store(stored_trial.parent.parent).commit(bare, [])
    with pytest.raises(ConfigError, match=r"no predictions.jsonl.gz beside the record"):
        run("samples", str(stored_trial.parent / bare.trial_id))
