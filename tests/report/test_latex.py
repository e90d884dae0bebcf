"""report.tex: it fits a page and is set by every engine, whatever names say. Compiled where there is a TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes import completed, record, trial
from sample_sweep import sample_results
from test_hostile_texts import EVIL
from test_report import content

from bench.report.latex import latex
from bench.report.latex_text import escaped
from bench.schema.record import TrialResult

ENGINES = ("pdflatex", *(pytest.param(one, marks=pytest.mark.full) for one in ("xelatex", "lualatex")))
DOCUMENT = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b%c&d$e#f{g}h~ i^j\\k", r"a\_b\%c\&d\$e\#f\{g\}h\textasciitilde{} i\textasciicircum{}j\textbackslash{}k"),
        ("[x] *", "{[}x{]} {*}"),
        ("a--b", "a-{}-b"),
        ("é Ł ñ", r"\'{e} \L{} \~{n}"),
        ("中", r"\tuneoffletter{中}{4E2D}"),
        ('<|`">', r"\textless{}\textbar{}\textasciigrave{}''\textgreater{}"),
        ("\x1b[31mred\u202e\nx", "red x"),
        ("learning_rate=0.0001", r"learning\_\allowbreak{}rate=\allowbreak{}0.\allowbreak{}0001"),
    ],
)
def test_every_letter_is_text(text: str, shown: str) -> None:
    assert escaped(text) == shown


def hostile() -> list[TrialResult]:
    return [record(trial(text), completed(50.0 + n, trained=10**n)) for n, text in enumerate(EVIL)]


def many() -> list[TrialResult]:
    """A hundred configurations with a dozen scores."""
    base = completed()
    found = []
    for n in range(100):
        names = [f"score_of_{metric}" for metric in range(12)]
        values = {name: 10.0 * n + metric for metric, name in enumerate(names)}
        scores = base.scores.model_copy(update={"values": values, "higher_is_better": dict.fromkeys(values, True)})
        spec = trial(f"method_{n}_with_a_rather_long_name_of_its_own", seed=n % 3)
        found.append(record(spec, base.model_copy(update={"scores": scores})))
    return found


@pytest.mark.parametrize("records", [hostile, many, sample_results], ids=["hostile", "many", "sample"])
@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_and_nothing_sticks_out(engine: str, records: object, tmp_path: Path) -> None:
    program = shutil.which(engine)
    if program is None:
        pytest.skip(f"no {engine} here")
    assert callable(records)
    (tmp_path / "report.tex").write_text(DOCUMENT % latex(content(*records())), encoding="utf-8")
    arguments = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    log = (tmp_path / "report.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){4}", log, flags=re.MULTILINE)
    assert not re.findall(r"Overfull \\[hv]box \((\d{2,}|[3-9])\.", log), re.findall(r"Overfull.*", log)
    assert "Float too large" not in log


def test_tables_are_no_wider_and_no_longer_than_a_page() -> None:
    """What holds without a TeX: few columns, few rows, and as many cells in every row as there are columns."""
    text = latex(content(*many()))
    tables = re.findall(r"\\begin{tabular}{([^\n]*)}\n(.*?)\\end{tabular}", text, flags=re.DOTALL)
    assert len(tables) > 3
    for alignment, body in tables:
        columns = len(re.findall(r"[lrc]|p\{\d+pt\}", alignment))
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert columns <= 9 and len(rows) <= 43
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    assert text.count(r"\caption{") == text.count(r"\label{") == len(set(re.findall(r"\\label{(.*?)}", text)))
    everything = "".join(body for _, body in tables)
    assert all(rf"method\_\allowbreak{{}}{n}\_" in everything for n in range(100))


def test_the_one_answer_of_what_no_seed_changes_is_no_number_of_seeds() -> None:
    trained = [record(trial("full", seed=seed), completed()) for seed in range(5)]
    base = record(trial("none"), completed(5.0, trained=0, train=False))
    assert "over seeds (n = 5)." in latex(content(base, *trained))
    untouched = [record(trial("none", seed=seed), completed(5.0, trained=0, train=False)) for seed in range(2)]
    assert "over seeds" not in latex(content(*untouched))
