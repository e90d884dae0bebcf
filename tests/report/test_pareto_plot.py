"""The picture of score against cost says which configurations cannot be told apart."""

from fakes import completed, record, trial

from bench.report.content import Content
from bench.report.figures.pareto_plot import pareto_plot
from bench.report.figures.picture import Picture
from bench.report.figures.style import looks
from bench.schema.record import TrialResult
from bench.schema.trial import FewShotSpec


def drawn(letters: dict[str, str], *more: TrialResult) -> Picture:
    records = (
        *more,
        record(trial("full"), completed(50.0, trained=1000)),
        record(trial("lora"), completed(49.0, trained=10)),
        record(trial("bitfit"), completed(30.0, trained=20)),
    )
    (comparison,) = Content("demo", records).comparisons
    (cost,) = (column for column in comparison.columns if column.picture == "trained")
    styles = looks(one.spec.method.name for one in records)
    picture = pareto_plot(comparison, comparison.metrics[0], cost, styles, "pareto", letters)
    assert picture is not None
    return picture


def test_points_carry_the_letters_of_their_groups() -> None:
    picture = drawn({"full": "a", "lora": "a", "bitfit": "b"})
    for text in ("full (a)", "lora (a)", "(b)"):  # bitfit is not on the front, so that its name stands in the legend
        assert f">{text}<" in picture.svg
    assert picture.caption == "Those that share a letter cannot be told apart in BLEU."


def test_without_groups_no_letter_is_drawn() -> None:
    for letters in ({}, {"full": "a", "lora": "a", "bitfit": "a"}):
        picture = drawn(letters)
        assert ">lora<" in picture.svg
        assert "(a)" not in picture.svg
        assert picture.caption == ""


def test_the_line_of_the_base_model_is_that_of_a_plain_prompt() -> None:
    shots = FewShotSpec(examples=["a"], template="{source}", max_source_tokens=9)
    prompted = trial("none").model_copy(update={"few_shot": shots})
    scores = ((prompted, 40.0), (trial("none"), 20.0))
    picture = drawn({}, *(record(spec, completed(score, trained=0, train=False)) for spec, score in scores))
    assert "base model: 20.0" in picture.svg
