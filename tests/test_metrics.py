"""Scores equal the official ones, digit for digit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.metrics import CorpusScores, score
from bench.tasks.e2e import E2E


@pytest.mark.parametrize(("system", "bleu"), [("tgen-std", 66.1612), ("tgen-plus", 66.7169)])
def test_e2e_bleu_equals_the_official_script(
    system: str, bleu: float, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TER over 4,693 references takes a minute and is not what is tested here.
    monkeypatch.setattr("bench.metrics.TER._compute_segment_statistics", lambda *_: [0, 1])
    examples = E2E(E2E.Config(path=str(shared_data / "e2e"))).load("test")
    path = shared_data / "metric_fixtures" / f"e2e_{system}.run0.test-orig.txt"
    scores = CorpusScores(path.read_text().splitlines(), [example.references for example in examples], E2E.lowercase)
    assert round(scores.over(range(630))["bleu"], 4) == bleu
    assert scores.signatures()["bleu"].startswith("nrefs:var|case:lc|eff:no|tok:13a|smooth:exp|version:2.6")


def test_scores_by_tag_equal_scores_of_those_sources_alone() -> None:
    predictions = ["the cat sat on the mat", "a dog ran away quickly today", "nothing alike at all here"]
    references = [["the cat sat on a mat"], ["the dog ran away quickly", "a dog ran off today"], ["some other words"]]
    tags = [["seen"], ["seen", "odd"], ["unseen"]]
    found = score(predictions, references, tags, lowercase=False)
    alone = score(predictions[:2], references[:2], tags[:2], lowercase=False)
    assert found.by_tag["seen"] == pytest.approx(alone.values)
    assert found.sources_by_tag == {"odd": 1, "seen": 2, "unseen": 1}
    assert found.higher_is_better == {"bleu": True, "chrf": True, "ter": False, "rouge_l": True}


def test_perfect_and_empty_predictions() -> None:
    perfect = score(["one two three four five"], [["one two three four five"]], [[]], lowercase=False)
    assert perfect.values == pytest.approx({"bleu": 100, "chrf": 100, "ter": 0, "rouge_l": 100})
    empty = score(["", ""], [["one two"], ["three"]], [[], []], lowercase=True)
    assert empty.values["bleu"] == 0
    assert empty.values["rouge_l"] == 0


def test_a_missing_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 sources"):
        CorpusScores(["a"], [["a"], ["b"]], lowercase=False)
