"""Scores in other languages: perfect texts score best, half right ones half, and what does not fit is said before."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from test_task_commands import load_json, run

from bench.metrics.checks import check_metrics, imperfect
from bench.metrics.entities import coverage
from bench.metrics.known import BUILT_IN
from bench.metrics.scoring import MetricError, score_examples
from bench.metrics.scripts import advice, foreign, misfit
from bench.metrics.texts import prepare
from bench.metrics.words import TokenizerError, missing, rouge_words, tokenizer
from bench.schema.record import Scores
from bench.schema.validation import ConfigError
from bench.task import Example, Scoring, Split, Task, TaskConfig, TaskError, TokenizerName
from bench.tasks.e2e import E2E

CHINESE = ["北京是中国的首都。", "上海位于中国东部沿海地区。"]
JAPANESE = ["東京は日本の首都です。", "わたしはりんごをたべます。"]
THAI = ["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เชียงใหม่อยู่ทางภาคเหนือของประเทศไทย"]
RUSSIAN = ["Москва — столица России и крупнейший город.", "Анна живёт в Риме."]
ARABIC = ["القاهرة هي عاصمة جمهورية مصر العربية.", "تعيش آنا في مدينة روما الجميلة."]
HINDI = ["दिल्ली भारत की राजधानी है।", "अन्ना रोम शहर में रहती है।"]
KOREAN = ["서울은 대한민국의 수도이고 가장 큰 도시이다.", "안나는 로마에 산다."]
ENGLISH = ["Ann lives in Rome.", "Bob's home is Oslo."]


def scored(texts: list[str], tokenize: TokenizerName, predictions: list[str] | None = None) -> Scores:
    examples = [Example(str(n), (), f"source {n}", (text,)) for n, text in enumerate(texts)]
    return score_examples(examples, predictions or texts, Scoring(tokenize=tokenize)).scores()


@pytest.mark.parametrize(
    ("texts", "tokenize"),
    [
        (CHINESE, "zh"),
        (CHINESE, "char"),
        (JAPANESE, "char"),
        (THAI, "char"),
        (RUSSIAN, "13a"),
        (RUSSIAN, "intl"),
        (ARABIC, "13a"),
        (HINDI, "intl"),
        (KOREAN, "13a"),
        (ENGLISH, "none"),
    ],
)
def test_perfect_texts_score_best(texts: list[str], tokenize: TokenizerName) -> None:
    found = scored(texts, tokenize).values
    best = {"bleu": 100, "chrf": 100, "ter": 0, "rouge_l": 100, "exact_match": 100, "length_ratio": 1}
    assert {name: found[name] for name in best} == pytest.approx(best)


def test_half_right_texts_score_in_between_and_signatures_say_how() -> None:
    said = ["北京是日本的首都。", "上海位于中国。"]
    found = scored(CHINESE, "zh", said)
    assert found.values["bleu"] == pytest.approx(BLEU(tokenize="zh").corpus_score(said, [CHINESE]).score)
    assert found.values["chrf"] == pytest.approx(CHRF(word_order=0).corpus_score(said, [CHINESE]).score)
    assert found.values["ter"] == pytest.approx(100 * (2 + 6) / (9 + 13))  # one character for each word
    assert found.values["length_ratio"] == pytest.approx((9 + 7) / (9 + 13))
    # Of 8 characters each 6 in order; of 12 and 6 characters 6, punctuation aside.
    assert found.values["rouge_l"] == pytest.approx(100 * (6 / 8 + 2 * 6 / (6 + 12)) / 2)
    for name, part in (("bleu", "tok:zh"), ("ter", "tok:zh"), ("rouge_l", "tok:zh"), ("chrf", "nw:0")):
        assert part in found.signatures[name].split("|"), name
    assert "zh" in found.signatures["length_ratio"]
    assert found.scoring is not None
    assert found.scoring["tokenize"] == "zh"
    assert "tok:letters and digits" in scored(RUSSIAN, "13a").signatures["rouge_l"]
    assert 30 < scored(RUSSIAN, "13a", ["Москва — столица мира.", "Анна в Риме."]).values["rouge_l"] < 90


def test_stuck_texts_are_seen_in_scripts_without_spaces() -> None:
    assert scored(CHINESE, "zh", ["我是我是我是我是我是我是", "上海"]).values["repetition_rate"] == 50


def test_words_of_rouge_are_those_of_the_package_in_english_and_all_letters_elsewhere() -> None:
    from rouge_score.tokenize import tokenize

    text = "The Bob's-eye view: 3.5 km, U.S.A. -- it's FINE!"
    assert rouge_words("13a")(text) == tokenize(text, None)
    assert rouge_words("13a")("Café Москва, हिन्दी!") == ["café", "москва", "हिन्दी"]
    assert rouge_words("zh")("北京。2008") == ["北", "京", "2008"]
    assert rouge_words("13a")("?! 🙂") == ["?!", "🙂"], "a text without letters counts too"


@pytest.mark.parametrize(
    ("tokenize", "text", "cut"), [("intl", "Вот «это», да?", "Вот « это » , да ?"), ("13a", "a, b", "a , b")]
)
def test_tokenizers_are_those_of_sacrebleu(tokenize: TokenizerName, text: str, cut: str) -> None:
    assert tokenizer(tokenize)(text) == cut


@pytest.mark.parametrize(("tokenize", "module"), [("ja-mecab", "MeCab"), ("ko-mecab", "mecab_ko")])
def test_a_tokenizer_without_its_packages_names_what_to_install(
    tokenize: TokenizerName, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else real(name))
    tokenizer.cache_clear()
    with pytest.raises(TokenizerError, match=rf"pip install 'sacrebleu\[{tokenize[:2]}\]'"):
        tokenizer(tokenize)


def test_a_tokenizer_without_its_file_says_where_it_goes_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    found = missing("flores200")
    assert found is not None
    assert f"needs a file that is not there: {tmp_path / 'models' / 'flores200sacrebleuspm'}" in found
    assert "nothing is downloaded unasked" in found
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flores200sacrebleuspm").touch()
    assert missing("flores200") is None


@pytest.mark.parametrize(
    ("texts", "tokenize", "remedy"),
    [
        (CHINESE, "13a", "zh (or flores200, char)"),
        (CHINESE, "none", "zh (or flores200, char)"),
        (JAPANESE, "intl", "ja-mecab (or flores200, char)"),
        (THAI, "13a", "flores200 or char"),
        (THAI, "zh", "flores200 or char"),
        (["ភ្នំពេញគឺជារាជធានីនៃប្រទេសកម្ពុជា។"], "13a", "flores200 or char"),
        (["BMW 是一家德国汽车公司", "iPhone 是苹果公司的产品。"], "13a", "zh (or flores200, char)"),
        (ENGLISH, "zh", "13a or intl"),
        (KOREAN, "ja-mecab", "ko-mecab"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_told_with_the_remedy(
    texts: list[str], tokenize: TokenizerName, remedy: str
) -> None:
    cut = str if tokenize == "ja-mecab" else tokenizer(tokenize)  # of which the packages need not be there
    found = misfit(texts, tokenize, cut)
    assert found is not None
    assert found.endswith(f"set task.tokenize: {remedy}")


@pytest.mark.parametrize(
    ("texts", "tokenize"),
    [
        (CHINESE, "zh"),
        (THAI, "char"),
        (RUSSIAN, "13a"),
        (ARABIC, "13a"),
        (ENGLISH, "13a"),
        (["กรุงเทพ เป็น เมืองหลวง ของ ประเทศ ไทย"], "none"),  # cut by hand
        (["123 456"], "13a"),
    ],
)
def test_a_tokenizer_that_fits_is_left_alone(texts: list[str], tokenize: TokenizerName) -> None:
    assert misfit(texts, tokenize, tokenizer(tokenize)) is None


def test_a_better_tokenizer_is_advised() -> None:
    assert "leaves on words (।)" in (advice(HINDI, "13a") or "")
    assert "ko-mecab" in (advice(KOREAN, "13a") or "")
    assert advice(HINDI, "intl") is None
    assert advice(["The “café” …"], "13a") is None


def write_task(folder: Path, texts: list[str]) -> None:
    for split in ("train", "dev", "test"):
        rows = [{"source": f"{split} {n}", "references": [text]} for n, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_check_task_demands_that_references_score_best(tmp_path: Path) -> None:
    write_task(tmp_path, CHINESE)
    task = ("jsonl", "--set", f"path={tmp_path}")
    found = {one["check"]: one for one in json.loads(run("check-task", *task, "--json", code=1))}
    assert found["references score best"]["reason"].startswith(
        "references scored against themselves have bleu 0 instead of 100: The references are written in Chinese"
    )
    assert "set task.tokenize: zh" in found["tokenizer fits the references"]["reason"]
    run("check-task", *task, "--set", "tokenize=zh")
    write_task(tmp_path, ["three little words", "two words"])
    found = {one["check"]: one for one in json.loads(run("check-task", *task, "--json", code=1))}
    assert "texts of fewer than four words have no run of four" in found["references score best"]["reason"]
    assert found["tokenizer fits the references"]["outcome"] == "pass"
    write_task(tmp_path, KOREAN)
    advised = {one["check"]: one for one in json.loads(run("check-task", *task, "--json"))}
    assert "ko-mecab" in advised["tokenizer fits the references"]["reason"]


@pytest.mark.parametrize(("name", "path"), [("e2e", "e2e"), ("webnlg", "webnlg"), ("dart", "dart")])
def test_references_of_the_benchmarks_score_best(name: str, path: str, shared_data: Path) -> None:
    from bench.config.resolver import RegistryResolver
    from bench.plugins.registry import make_task

    task = make_task(RegistryResolver().task(name, {"path": str(shared_data / path)}))
    examples = task.load("dev")[:60]
    assert imperfect(task, examples) == {}
    assert check_metrics(task, examples) == []
    with pytest.raises(TaskError, match=r"'zh' has no effect: .* is scored as its official script does"):
        RegistryResolver().task(name, {"path": str(shared_data / path), "tokenize": "zh"})


def test_the_tokenizer_is_part_of_the_identity_and_names_are_checked(tiny_task: Path) -> None:
    from bench.config.resolver import RegistryResolver

    plain, intl = (
        RegistryResolver().task("jsonl", {"path": str(tiny_task), **more}) for more in ({}, {"tokenize": "intl"})
    )
    assert plain != intl
    with pytest.raises(ConfigError, match="task jsonl: tokenize"):
        RegistryResolver().task("jsonl", {"path": str(tiny_task), "tokenize": "13b"})


def test_score_and_records_say_that_no_text_is_long_enough_for_bleu(tmp_path: Path) -> None:
    write_task(tmp_path, ["three little words", "two words"])
    (tmp_path / "system.txt").write_text("three little words\ntwo words\n")
    file = str(tmp_path / "system.txt")
    document = load_json("score", "--task", "jsonl", "--set", f"path={tmp_path}", "--hypotheses", file)
    assert document["values"]["bleu"] == 0
    assert document["remarks"] == [
        "No prediction has four words in a row, so that BLEU is 0 whatever they say, as sacrebleu's corpus BLEU is; "
        "with its option effective_order, which leaves out orders that no text reaches, it is 100.0."
    ]
    assert document["examples"][0]["scores"]["bleu"] == pytest.approx(100), "single sources have effective order"


def test_meteor_is_for_english() -> None:
    texts = prepare(RUSSIAN, [[text] for text in RUSSIAN], E2E.scoring)
    assert foreign(RUSSIAN)
    assert not foreign(ENGLISH)
    assert "English alone" in (BUILT_IN["meteor"](texts.scoring).absent(texts) or "")


def test_entities_in_scripts_without_spaces_and_without_letters() -> None:
    facts = [("กรุงเทพ", "เมืองหลวง", "ไทย"), ("東京", "首都", "にほん")]
    assert coverage(facts, "กรุงเทพเป็นเมืองหลวงของประเทศไทย 東京はにほんの首都です") == (4, 4)
    assert coverage(facts, "เชียงใหม่") == (0, 4)
    assert coverage([("☃", "is", "snowman")], "a snowman") == (1, 2)
    assert coverage([("Rome", "in", "Italy")], "Romeo left Italyland") == (0, 2)


def test_statistics_add_up_other_tokenizers_too() -> None:
    said = ["北京是日本的首都。", "上海位于中国。"]
    scoring = Scoring(tokenize="zh")
    texts = prepare(said, [[text] for text in CHINESE], scoring)
    for name in ("bleu", "chrf", "ter"):
        metric = BUILT_IN[name](scoring)
        sums = metric.statistics(texts).sum(axis=0)
        assert float(metric.score(sums)) == pytest.approx(metric.measure(texts).over([0, 1]))


def test_a_sweep_hears_of_the_tokenizer_before_it_starts() -> None:
    class Foreign(Task):
        """Thai."""

        def data_files(self) -> dict[Split, str]:
            return {}

        def load(self, split: Split) -> list[Example]:
            return [Example(str(n), (), f"s{n}", (text,)) for n, text in enumerate(THAI)]

    task = Foreign(TaskConfig())
    assert ["set task.tokenize: flores200 or char" in one for one in check_metrics(task, task.load("dev"))] == [True]
    with pytest.raises(MetricError, match=r"task\.tokenize: the tokenizer 'ja-mecab' needs packages"):
        if importlib.util.find_spec("MeCab") is not None:
            pytest.skip("MeCab is there")
        check_metrics(Foreign(TaskConfig(tokenize="ja-mecab")), task.load("dev"))
