"""The page and its pictures: exact, self-contained, safe against what models and logs say, small, and quick."""

from __future__ import annotations

import gzip
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fakes import completed, record, trial, varied
from sample_sweep import METHODS, sample_results, write_sample
from test_report import assert_golden, content, results

from bench import report
from bench.report.column import Column
from bench.report.columns import TRAINED
from bench.report.configurations import comparisons
from bench.report.figures import Picture, pictures
from bench.report.figures.bars import time_bars
from bench.report.figures.curves import learning_rate_curves
from bench.report.figures.style import PALETTE, inlined, looks
from bench.report.page import html, script_json
from bench.report.pareto import front
from bench.report.side_by_side import SideBySide, side_by_side
from bench.schema.record import Failed, TrialResult

SVG = "{http://www.w3.org/2000/svg}"


class Elements(HTMLParser):
    """Ids, and everything that a page would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action") and not (value or "").startswith(("#", "data:")):
                self.loaded.append(value or "")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of some sixty trials."""
    return report.write(write_sample(tmp_path_factory.mktemp("results") / "sample"), "tuneoff run sample.yaml")


def stub(name: str) -> Picture:
    """A picture whose drawing is left out: how lines and letters come out is matplotlib's business."""
    return Picture(name, f"title of {name}", "caption", 6.4, '<svg width="1pt" height="1pt">drawing</svg>', b"")


def test_the_page_is_exact(update_golden: bool) -> None:
    predictions = SideBySide(
        configurations=("full",),
        trials=("full-s0",),
        sources=(
            {
                "id": "a",
                "source": "x : y : z",
                "tags": ["seen"],
                "references": ["X."],
                "more_references": 2,
                "predictions": ["X!"],
                "scores": [{"bleu": 50.0}],
            },
        ),
        num_sources=3,
    )
    text = html(content(*results()), [[stub("pareto-trained")]], predictions)
    assert_golden("report.html", text, update_golden)


def test_the_page_needs_nothing_but_itself_and_is_small(sample: Path) -> None:
    text = (sample / "report.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert page.loaded == []
    assert "@import" not in text and "fetch(" not in text
    assert len(page.ids) == len(set(page.ids)), "ids of the inlined pictures collide"
    assert len(text) < 5_000_000
    whole = sum(path.stat().st_size for path in sample.rglob("*") if path.is_file())
    assert whole < 2_500_000, "a report is committed, so it has to stay small"


def test_what_models_and_logs_say_stays_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    failure = Failed(reason="error", phase=None, rank=None, message=evil, traceback=evil, log_tail=evil)
    found = (record(trial(evil[:20]), failure), record(trial("full", label=evil), completed()))
    source = {"id": evil, "source": evil, "tags": [evil], "references": [evil], "more_references": 0}
    side = SideBySide((evil,), ("x",), ({**source, "predictions": [evil], "scores": [None]},), 1)
    text = html(content(*found), [[]], side)
    page = Elements(text)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert "<script>alert" not in text
    assert json.loads(script_json({"a": evil})) == {"a": evil}


def test_an_empty_and_a_failed_sweep_have_a_page() -> None:
    for found in ([], [results()[3]]):
        assert f"{len(found)} trials" in html(content(*found), pictures(content(*found)), None)


def test_pictures_are_told_apart_without_colour_and_by_colour_blind_eyes() -> None:
    styles = looks([f"method{n}" for n in range(14)])
    assert len({(look.color, look.marker, look.filled) for look in styles.values()}) == 15
    assert len({(look.marker, str(look.dash), look.filled) for look in styles.values()}) == 15
    assert set(PALETTE[:-1]) < {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442"}


def test_pictures_show_every_method_and_say_what_a_mark_is(sample: Path) -> None:
    names = {path.name for path in (sample / "figures").iterdir()}
    stems = {"pareto-trained", "pareto-memory", "pareto-train", "training", "learning-rates", "memory", "time"}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    drawing = ElementTree.parse(sample / "figures" / "pareto-trained.svg")
    texts = {element.text for element in drawing.iter(f"{SVG}text")}
    assert METHODS.keys() <= texts, "the legend names every method"
    titles = [element.text or "" for element in drawing.iter(f"{SVG}title")]
    assert sum(text.startswith("lora") for text in titles) == 5, "five learning rates, a mark each"
    assert "lora (learning_rate=0.001): BLEU 66.0 ± 0.3, trained 460,800" in titles
    for path in (sample / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_inlined_pictures_follow_the_theme_of_the_page(sample: Path) -> None:
    drawing = (sample / "figures" / "pareto-trained.svg").read_text(encoding="utf-8")
    assert "#0072b2" in drawing and "#1b1f24" in drawing
    text = inlined(drawing)
    assert not re.search("#0072b2|#1b1f24|#ffffff", text)
    assert "currentColor" in text and "var(--series-0)" in text
    assert text.startswith('<svg role="img"') and 'width="' not in text.splitlines()[0]


def test_the_same_records_give_the_same_bytes(sample: Path) -> None:
    (comparison,) = comparisons(sample_results())
    again = time_bars(comparison.scored, "time")
    assert again is not None
    assert (sample / "figures" / "time.svg").read_text(encoding="utf-8") == again.svg
    assert (sample / "figures" / "time.png").read_bytes() == again.png


def test_the_front_is_what_nothing_beats() -> None:
    score, cost = Column("bleu", "BLEU", True), TRAINED
    scores = {"cheap": (50.0, 10), "worse": (49.0, 20), "better": (60.0, 30), "equal": (60.0, 30), "dear": (59.0, 99)}
    found = [record(trial(name), completed(bleu, trained=trained)) for name, (bleu, trained) in scores.items()]
    (comparison,) = comparisons(found)
    assert [configuration.name for configuration in front(comparison.configurations, score, cost)] == [
        "cheap",
        "better",
        "equal",
    ]


def test_learning_rates_join_what_differs_in_nothing_else() -> None:
    results = sample_results(seeds=1)
    (comparison,) = comparisons(results)
    picture = learning_rate_curves(comparison.configurations, looks(METHODS), "rates")
    assert picture is not None
    assert "diverged" in picture.svg
    assert learning_rate_curves(comparison.configurations[:1], looks(METHODS), "rates") is None


def test_predictions_are_cut_evenly_to_a_bounded_size(tmp_path: Path) -> None:
    root = write_sample(tmp_path / "sample", seeds=1, sources=300)
    (comparison,) = comparisons(sample_results(seeds=1))
    everything = side_by_side(root, [comparison])
    assert everything is not None
    assert len(everything.sources) == everything.num_sources == 300
    assert everything.configurations[0] == comparison.scored[0].name
    some = side_by_side(root, [comparison], most_bytes=60_000)
    assert some is not None
    assert 20 < len(some.sources) < 100 and some.num_sources == 300
    assert len(json.dumps(some.sources)) < 80_000


def test_predictions_of_trials_with_other_sources_stand_beside_gaps(tmp_path: Path) -> None:
    first, second = record(trial("full"), completed(60.0)), record(trial("none"), completed(5.0))
    for result, ids in ((first, ("a", "b")), (second, ("b", "c"))):
        folder = tmp_path / "trials" / result.trial_id
        folder.mkdir(parents=True)
        lines = [json.dumps({"id": key, "source": key, "prediction": f"{key}!"}) for key in ids]
        (folder / "predictions.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (comparison,) = comparisons([first, second])
    found = side_by_side(tmp_path, [comparison])
    assert found is not None
    assert [source["predictions"] for source in found.sources] == [["a!", None], ["b!", "b!"], [None, "c!"]]


def test_predictions_of_several_models_and_tasks_are_told_apart(tmp_path: Path) -> None:
    found = []
    for model, task, text in (("a", "facts", "x"), ("b", "facts", "x"), ("b", "other", "y")):
        result = record(varied(trial("lora"), model={"path": model}, task={"name": task}), completed())
        folder = tmp_path / "trials" / result.trial_id
        folder.mkdir(parents=True)
        line = json.dumps({"id": "0", "source": text, "prediction": f"{model} {task}"})
        (folder / "predictions.jsonl.gz").write_bytes(gzip.compress(line.encode()))
        found.append(result)
    shown = side_by_side(tmp_path, comparisons(found))
    assert shown is not None
    assert shown.configurations == ("a on facts: lora", "b on facts: lora", "b on other: lora")
    assert [(source["id"], source["source"], source["predictions"]) for source in shown.sources] == [
        ("0", "x", ["a facts", "b facts", None]),
        ("0", "y", [None, None, "b other"]),
    ]


def many(count: int) -> list[TrialResult]:
    """So many trials of a hundred configurations, with curves."""
    pool = [result for result in sample_results(seeds=1) if result.outcome.status == "completed"]
    return [
        record(
            varied(pool[n % len(pool)].spec, config={"grid": n % 100}).model_copy(update={"seed": n}),
            pool[n % 20].outcome,
        )
        for n in range(count)
    ]


def test_thousands_of_trials_render_in_seconds() -> None:
    report_content = content(*many(3000))
    started = time.process_time()
    text = html(report_content, pictures(report_content), None)
    seconds = time.process_time() - started
    assert text.count("grid=") > 3000
    assert len(text) < 5_000_000
    assert seconds < 30, f"{seconds:.1f} s of processor time, on a busy machine"


def test_a_page_of_a_thousand_configurations_shows_the_best_and_says_so() -> None:
    pool = [result for result in sample_results(seeds=1) if result.outcome.status == "completed"]
    found = []
    for n in range(150):
        method = pool[n % 5].spec.method.model_copy(update={"config": {"rank": n}})
        found.append(record(pool[n % 5].spec.model_copy(update={"method": method, "label": f"rank={n}"}), completed(n)))
    shown = content(*found)
    text = html(shown, [[]], None)
    rows = re.search(r'<table id="table-1".*?</table>', text, re.DOTALL)
    assert rows is not None and rows[0].count("<tr>") == 1 + 100
    assert "The best 100 configurations; 50 more are in report.json" in text
    assert "50 more configurations are in report.json." in report.markdown(shown)
    (comparison,) = shown.comparisons
    assert [
        configuration.name
        for configuration in comparison.configurations
        if comparison.is_best(configuration, comparison.metrics[0])
    ] == [comparison.configurations[0].name]
