"""Names of metrics are checked before anything is trained; meaningless scores are absent or have a remark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import completed, record, trial
from test_task_commands import load_json, run

from bench.config.load import load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.stages import Stages
from bench.metrics.checks import check_metrics, check_scoring, choosable, imperfect
from bench.metrics.known import BUILT_IN
from bench.metrics.scoring import MetricError, check_names, score_examples
from bench.metrics.texts import prepare
from bench.report.caveats import caveats
from bench.report.columns import metric_columns
from bench.schema.record import Completed, Scores, TrialResult
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.task import Example, Scoring, Split
from bench.tasks.dart import Dart
from bench.tasks.e2e import E2E
from bench.tasks.jsonl import JsonLines
from bench.tasks.webnlg import WebNLG


class Blue(JsonLines):
    """A plugin with a metric that there is not."""

    scoring = Scoring(metrics=("blue",))


class OtherScript(JsonLines):
    """A plugin with a setting that there is not."""

    scoring = Scoring(bleu="multibleu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("blue", "'bleu'"),
        ("ROUGE-L", "'rouge_l'"),
        ("chrf++", "'chrf'"),
        ("exactmatch", "'exact_match'"),
        ("zzz", None),
    ],
)
def test_an_unknown_metric_is_told_with_what_is_close(name: str, meant: str | None) -> None:
    with pytest.raises(MetricError, match="there is no metric") as caught:
        check_names([name], "here")
    assert str(caught.value).startswith(f"here: there is no metric {name!r}; known: bleu, nist")
    assert ("did you mean" in str(caught.value)) == (meant is not None)
    if meant is not None:
        assert meant in str(caught.value).partition("did you mean")[2]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("jsonl", {"metrics": ["precision"]}, r"task jsonl: metrics: there is no metric 'precision'. Known: bleu"),
        ("test_metric_names:Blue", {}, r"task .*Blue: scoring.metrics: there is no metric 'blue'.*did you mean 'bleu'"),
        ("test_metric_names:OtherScript", {}, r"task .*OtherScript: scoring.bleu: Input should be 'sacrebleu', "),
    ],
)
def test_metrics_are_checked_when_a_task_is_read(
    task: str, settings: dict[str, Any], message: str, tiny_task: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        RegistryResolver().task(task, {"path": str(tiny_task), **settings})
    given = [word for key, value in settings.items() for word in ("--set", f"{key}=[{','.join(value)}]")]
    for command in ("check-task", "tasks", "score"):
        of_score = ["--hypotheses", str(tmp_path / "none")] if command == "score" else []
        named = ["--task", task] if command == "score" else [task]
        with pytest.raises(ConfigError, match=message):
            run(command, *named, "--set", f"path={tiny_task}", *given, *of_score)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        (Scoring(metrics=("bleu", "rouge")), "x.metrics: there is no metric 'rouge'"),
        (Scoring(single_reference=("bleu",)), "x.single_reference: there is no metric 'bleu'; known: meteor, ter"),
        (Scoring(rouge_l="f2"), "x.rouge_l: Input should be 'f1' or 'coco'"),  # type: ignore[arg-type]
        (Scoring(preparation="web"), "x.preparation: Input should be"),  # type: ignore[arg-type]
        (Scoring(tokenize="13b"), "x.tokenize: Input should be"),  # type: ignore[arg-type]
        (Scoring(bleu="multi-bleu", tokenize="zh"), "x.tokenize: 'zh' has no effect with bleu='multi-bleu'"),
    ],
)
def test_every_setting_of_scores_is_checked(scoring: Scoring, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        check_scoring(scoring, "x")


def test_shipped_settings_of_scores_pass() -> None:
    for scoring in (Scoring(), E2E.scoring, WebNLG.scoring, Dart.scoring, Scoring(tokenize="ja-mecab")):
        check_scoring(scoring, "x")


SWEEP = """
name: named
task: {name: jsonl, path: PATH}
methods: [lora]
stages:
  tune: {trials: 3, metric: METRIC}
  final: {seeds: [0]}
"""


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("bleus", r"stages.tune.metric: there is no score 'bleus'; known: dev_loss, bleu, .*did you mean 'bleu'"),
        ("length_ratio", "there is no score 'length_ratio'"),  # of which neither more nor less is better
        ("nist", "there is no score 'nist'"),  # which this task does not have
        ("dev-loss", "did you mean 'dev_loss'"),
    ],
)
def test_what_settings_are_chosen_by_is_checked_before_the_sweep(
    metric: str, message: str, tiny_task: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    path = tmp_path / "sweep.yaml"
    model = f"model: {tiny_models['llama']}\n"
    path.write_text(model + SWEEP.replace("PATH", str(tiny_task)).replace("METRIC", metric))
    with pytest.raises(ConfigError, match=message):
        Stages(load_sweep(path), RegistryResolver())
    path.write_text(model + SWEEP.replace("PATH", str(tiny_task)).replace("METRIC", "bleu"))
    assert Stages(load_sweep(path), RegistryResolver()).metrics == ("bleu",)


def test_what_settings_are_chosen_by_has_to_be_had(tiny_task: Path) -> None:
    task = JsonLines(JsonLines.Config(path=str(tiny_task), metrics=("slot_error_rate",)))
    assert "slot_error_rate" in choosable(task)
    plain = JsonLines(JsonLines.Config(path=str(tiny_task)))
    with pytest.raises(MetricError, match=r"stages.tune.metric: 'slot_error_rate' cannot be had"):
        check_metrics(plain, plain.load("dev"), ["slot_error_rate"])


def examples(*references: tuple[str, ...]) -> list[Example]:
    return [Example(str(n), (), f"source {n}", some) for n, some in enumerate(references)]


def test_cider_of_one_source_or_of_equal_ones_is_absent_and_statistics_go_on(tmp_path: Path) -> None:
    scoring = Scoring(metrics=("bleu", "cider", "nist"))
    one = score_examples(examples(("a b c d e",)), ["a b c d e"], scoring)
    assert one.absent["cider"].startswith("there is one source")
    assert "cider" not in one.scores().values
    equal = score_examples(examples(("a b c d", "d c b a"), ("a b c d",)), ["a b c d"] * 2, scoring)
    assert equal.absent["cider"].startswith("the references of all sources have the same words")
    several = score_examples(examples(("a b c d e",), ("f g h i j",)), ["a b c d e", "f g h i j"], scoring)
    assert several.scores().values["cider"] == pytest.approx(10)
    assert several.over([0, 0]) == several.over([0]), "a bootstrap may draw one source alone"
    word = score_examples(examples(("Rome",), ("rome", "rome rome")), ["rome", "rome"], scoring)
    assert word.absent["nist"].startswith("the references have but one word")


def with_scores(method: str, scores: Scores) -> TrialResult:
    return record(trial(method), completed().model_copy(update={"scores": scores}))


def test_comparisons_go_on_where_a_record_lacks_a_score(tmp_path: Path) -> None:
    from bench.statistics.significance import significance

    store = Store(tmp_path / "some")
    store.root.mkdir()
    both = [
        with_scores(method, Scores(values=values, signatures={}, higher_is_better={"bleu": True}))
        for method, values in (("lora", {"bleu": 1.0}), ("full", {}))
    ]
    assert significance(store.root, {"lora": both[:1], "full": both[1:]}, "bleu", True) is None


@pytest.mark.parametrize("predictions", [[""], ["?!"], ["🙂 🙂"], ["a"], ["x " * 200], ["我"], ["مرحبا"]])
@pytest.mark.parametrize("scoring", [Scoring(), E2E.scoring, WebNLG.scoring, Dart.scoring, Scoring(tokenize="zh")])
def test_odd_texts_have_finite_scores(predictions: list[str], scoring: Scoring) -> None:
    for references in (("a b c",), ("?",), ("🙂",), ("我是人。",), ("a", "a b c d e f")):
        texts = prepare(predictions, [references], replace(scoring, metrics=("bleu",)))
        for name, metric in {name: known(texts.scoring) for name, known in BUILT_IN.items()}.items():
            if name not in ("meteor", "bertscore", "bleurt", "mauve") and metric.absent(texts) is None:
                value = metric.measure(texts).over([0])
                assert abs(value) < 1e6, (name, references)
        found = score_examples(examples(references), predictions, replace(scoring, metrics=("bleu", "chrf", "ter")))
        assert Scores.model_validate_json(found.scores().model_dump_json()) == found.scores()


def test_perfect_texts_of_signs_score_best() -> None:
    texts = prepare(["?! 🙂 🙂 !", "🙂 ?"], [["?! 🙂 🙂 !"], ["🙂 ?"]], Scoring())
    assert BUILT_IN["rouge_l"](texts.scoring).measure(texts).over([0, 1]) == 100


def test_texts_in_another_form_than_the_references_are_told(shared_data: Path) -> None:
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg")))
    some = task.load("test")[:40]
    lines = (shared_data / "metric_fixtures" / "webnlg17_all_bart-base.tok.lc.txt").read_text().splitlines()[:40]
    system = score_examples(some, lines, task.scoring)
    assert system.remarks == [
        "The predictions are without capital letters and the references have them: chrf compare texts as they are, so "
        "that these differences count as errors there.",
        "The predictions are with spaces before punctuation and the references have none there: exact_match compare "
        "texts as they are, so that these differences count as errors there.",
    ]
    assert score_examples(some, [example.references[0] for example in some], task.scoring).remarks == []


def test_the_other_way_round_and_equal_predictions_are_told() -> None:
    lower = examples(*(((f"the cat {n} sat there .",)) for n in range(6)))
    cased = [f"The cat {n} sat there." for n in range(6)]
    remarks = " ".join(score_examples(lower, cased, Scoring()).remarks)
    assert (
        "The references are without capital letters and the predictions have them: chrf, exact_match, bleu" in remarks
    )
    assert "The references are with spaces before punctuation and the predictions have none there" in remarks
    assert "capital" not in " ".join(score_examples(lower, cased, Scoring(metrics=("ter",), lowercase=True)).remarks)
    assert "All predictions are the same text." in score_examples(lower, ["the cat ."] * 6, Scoring()).remarks
    assert score_examples(lower, [""] * 6, Scoring()).remarks == ["All predictions are empty."]


def test_reports_tell_the_remarks_of_records() -> None:
    scores = Scores(
        values={"bleu": 1.0}, signatures={"bleu": "x"}, higher_is_better={"bleu": True}, remarks=["Texts are odd."]
    )
    plain = scores.model_copy(update={"remarks": []})
    odd = with_scores("lora", scores)
    even = with_scores("full", plain)
    assert isinstance(odd.outcome, Completed)
    assert "lora: Texts are odd." in caveats([odd, even])
    assert "Texts are odd." in caveats([odd])


def test_chrf_without_words_is_not_called_chrf_with_words() -> None:
    found = Scores(values={"chrf": 1.0}, signatures={"chrf": "nc:6|nw:0"}, higher_is_better={"chrf": True})
    assert [column.title for column in metric_columns([with_scores("lora", found)])] == ["chrF"]
    plain = found.model_copy(update={"signatures": {"chrf": "nc:6|nw:2"}})
    assert [column.title for column in metric_columns([with_scores("lora", plain)])] == ["chrF++"]


def test_references_that_are_prepared_into_something_else_do_not_fail(shared_data: Path) -> None:
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg")))
    accents = [example for example in task.load("test") if not example.references[0].isascii()][:5]
    assert set(imperfect(task, accents)) == {"all"}
    assert imperfect(task, accents + task.load("test")[:5]) == {}


def test_score_checks_the_task(tiny_task: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("\n" * 6)
    document = load_json(
        *("score", "--task", "jsonl", "--set", f"path={tiny_task}", "--split", "dev"),
        *("--hypotheses", str(tmp_path / "system.txt")),
    )
    assert document["remarks"] == ["All predictions are empty."]
    splits: dict[Split, int] = {"dev": 6}
    assert len(document["examples"]) == splits["dev"]
