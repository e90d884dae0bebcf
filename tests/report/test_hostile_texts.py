"""Unexpected names, labels, errors and numbers: every format shows them as text, or as absent."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from fakes import completed, record, trial
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text
from test_report import content

from bench import report
from bench.commands.console import PlainConsole
from bench.report.data import json_text
from bench.report.figures import pictures
from bench.report.latex import latex
from bench.report.markdown import table
from bench.report.markdown_text import code
from bench.report.page import html, script_json
from bench.schema.printable import escaped_controls, in_one_line, printable
from bench.schema.record import DevPoint, Failed, TrainPoint, TrialResult
from bench.tuning.search import value_of

EVIL = (
    "\x1b[31mred\x1b[2J",
    "\x1b]0;title\x07x",
    "\x9b2Jc1",
    "\u202egnp.exe\u202c",
    "a|b\\|c\\",
    "line\nbreak\r\nand\rreturn",
    "$x^2$ and $",
    "**bold** _it_ `code` <b>&amp; [a](http://b)",
    "=1+1",
    "\t=tab",
    "_hidden",
    "中文 łß ☃",
    "x" * 150,
)
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def hostile() -> list[TrialResult]:
    """A configuration for each such label, and a failure that says such things."""
    found = [
        record(trial("lora", label=label), completed(50.0 + n, trained=100 * (n + 1))) for n, label in enumerate(EVIL)
    ]
    said = "".join(EVIL)
    failure = Failed(reason="error", phase="train", rank=0, message=said, traceback=said, log_tail=said)
    named = record(trial("$x^2$ and $"), completed(80.0, trained=5000, peak=700))
    return [*found, named, record(trial("full"), failure)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1b(Bb\x1b7c", "abc"),
        ("\u202eabc\u2069", "abc"),
        ("a\r\nb\u2028c\td", "a\nb\nc\td"),
        ("one\ud800", "one"),
        ("é 中 ☃ 👩‍👩‍👧", "é 中 ☃ 👩‍👩‍👧"),
    ],
)
def test_what_is_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert in_one_line(text) == " ".join(shown.split())


def test_a_terminal_gets_no_control_sequence_from_a_text() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=60)
    shown = Table()
    for text in EVIL:
        shown.add_row(Text(text))
        console.print(text, markup=False)
        console.print(Text(text))
    console.print(shown)
    assert not FORBIDDEN.search(file.getvalue())
    assert "red" in file.getvalue() and "gnp.exe" in file.getvalue()
    lines = file.getvalue().splitlines()
    frame = [line for line in lines if line.startswith("│")]
    assert {line[-1] for line in frame} == {"│"}, "the frame is where it was laid out"


def test_json_for_machines_keeps_every_character() -> None:
    file = io.StringIO()
    PlainConsole(file=file, width=20).print_json(json.dumps({"texts": EVIL, "none": math.nan}))
    assert not FORBIDDEN.search(file.getvalue())
    assert json.loads(file.getvalue()) == {"texts": list(EVIL), "none": None}
    assert json.loads(escaped_controls(json.dumps(EVIL, ensure_ascii=False))) == list(EVIL)


def test_cells_of_markdown_come_out_as_they_went_in() -> None:
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(table(["method", *map(str, range(len(EVIL)))], [["lora", *EVIL]]))
    cells = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    assert cells[len(EVIL) + 2 :] == [in_one_line(text) for text in EVIL]
    plain = {child.type for token in tokens for child in token.children or ()}
    assert plain == {"text"} or plain == {"text", "text_special"}, "no emphasis, no link, no HTML"
    for text in ("a`b", "``", "`a"):
        (paragraph,) = [token for token in parser.parse(code(text)) if token.type == "inline"]
        assert [child.content for child in paragraph.children or () if child.type == "code_inline"] == [text]


def test_no_format_lets_a_name_control_anything() -> None:
    report_content = content(*hostile())
    drawn = pictures(report_content)
    texts = [
        report.markdown(report_content),
        latex(report_content),
        html(report_content, drawn, None),
        *(one.svg for one in drawn[0]),
    ]
    for text in texts:
        assert not FORBIDDEN.search(text)
    assert any("$x^2$ and $" in one.svg for one in drawn[0]), "a dollar is a dollar"


def test_a_spreadsheet_meets_neither_a_formula_nor_a_torn_row() -> None:
    named = [record(trial(text), completed()) for text in EVIL]
    rows = list(csv.DictReader(io.StringIO(report.csv_text([*hostile(), *named]), newline="")))
    assert len(rows) == 2 * len(EVIL) + 2
    assert {"'=1+1", "'\t=tab", "line\nbreak\nand\nreturn"} <= {row["method"] for row in rows}
    for row in rows:
        for name in ("method", "label", "message"):
            assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert "\r" not in report.csv_text(hostile())


def broken(**values: Any) -> TrialResult:
    """A record whose numbers are not finite."""
    whole = completed(60.0)
    scores = whole.scores.model_copy(
        update={
            "values": {**whole.scores.values, "bleu": math.nan},
            "by_tag": {"seen": {"bleu": math.inf}, "unseen": {"bleu": math.nan}},
        }
    )
    curves = {
        "train_curve": [TrainPoint(step=1, loss=math.nan, learning_rate=0.1), *whole.train_curve],
        "dev_curve": [DevPoint(step=1, loss=math.inf), *whole.dev_curve],
    }
    outcome = whole.model_copy(
        update={"scores": scores, "dev_loss": math.nan, "test_loss": -math.inf, **curves, **values}
    )
    return record(trial("lora", seed=1), outcome)


@pytest.mark.parametrize("beside", [0, 1, 2])
def test_one_number_that_is_not_finite_is_absent_and_named(beside: int) -> None:
    others = [record(trial("lora"), completed(50.0)), record(trial("full"), completed(55.0, trained=500))][:beside]
    report_content = content(broken(), *others)
    texts = {
        "md": report.markdown(report_content),
        "tex": latex(report_content),
        "csv": report.csv_text(report_content.records),
        "html": html(report_content, pictures(report_content), None),
    }
    for kind in ("md", "html"):
        assert f"Absent, not finite: bleu, test_loss, dev_loss of {broken().trial_id}." in texts[kind]
    for kind, text in texts.items():
        assert not re.search(r"\b(nan|inf)\b", re.sub("<script>.*", "", text, flags=re.DOTALL)), kind
    if beside:
        (lora,) = [one for one in report_content.comparisons[0].configurations if one.method == "lora"]
        estimate = lora.estimate("bleu")
        assert estimate is not None and estimate.values == (50.0,)


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("render", [json_text, lambda found: script_json({"a": [math.nan, {"b": -math.inf}]})])
def test_json_is_strict(render: Callable[..., str]) -> None:
    text = render(content(broken(), record(trial("full"), completed(55.0))))
    assert json.loads(text, parse_constant=refuse)


def test_a_search_never_chooses_what_is_not_finite() -> None:
    from fakes import probed

    for loss in (math.nan, math.inf):
        assert value_of(record(trial(), probed(dev_loss=loss)), "dev_loss") is None
