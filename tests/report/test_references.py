"""Published numbers beside ours in every format of a report, marked as quoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import completed, record, trial
from typer.testing import CliRunner

from bench import report
from bench.cli import app
from bench.config.load import load_sweep
from bench.report.content import Content
from bench.report.data import json_text
from bench.report.latex import latex
from bench.report.page import html
from bench.report.published import Quoted, kept_published, load_published, published_files, quoted
from bench.schema.record import TrialResult
from bench.schema.trial import ModelSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store

MODEL = "openai-community/gpt2-medium"
PUBLISHED = """
schema_version: 1
key: Someone et al. 2020
citation: "Someone et al. 2020, Something"
url: https://example.org
read_in: the paper
tables:
  - table: "Table 1"
    task: facts
    metrics: {bleu: 1, nist: 1, ter: 100}
    spread: "over 3 seeds"
    note: "other references"
    rows:
      - {model: gpt2-medium, method: full, label: "FT", values: [62.5, 8.1, 0.35], spread: [0.3, null, null]}
      - {model: openai-community/gpt2-medium, method: full, label: "FT", tag: unseen, values: [40.0, null, null]}
      - {model: gpt2-medium, method: prefix_tuning, config: {num_prompt_tokens: 5}, label: Prefix, values: [70, 8, 0.3]}
      - {model: openai-community/gpt2-large, method: full, label: "FT, large", values: [64.0, 8.2, 0.33]}
      - {model: openai-community/gpt2-medium, method: adapters, label: "Adapter", values: [66.0, 8.0, 0.36]}
  - table: "Table 2"
    task: e2e
    metrics: {bleu: 1}
    rows:
      - {model: openai-community/gpt2-medium, method: full, label: "FT", values: [99.0]}
"""


@pytest.fixture
def rows(tmp_path: Path) -> tuple[Quoted, ...]:
    (tmp_path / "someone.yaml").write_text(PUBLISHED)
    return tuple(quoted(load_published(tmp_path / "someone.yaml")))


def of(method: str, bleu: float, seed: int = 0, model: str = MODEL, **config: Any) -> TrialResult:
    spec = trial(method, seed=seed)
    method_spec = spec.method.model_copy(update={"config": config})
    return record(spec.model_copy(update={"model": ModelSpec(path=model), "method": method_spec}), completed(bleu))


RESULTS = (
    of("full", 60.0),
    of("full", 61.0, seed=1),
    of("prefix_tuning", 50.0, num_prompt_tokens=10),
    of("lora", 55.0, rank=4),
)


def section(text: str) -> str:
    return text.partition("### Beside published numbers")[2].partition("\n#")[0].strip()


def test_markdown_shows_what_belongs_and_says_that_it_is_quoted(rows: tuple[Quoted, ...]) -> None:
    shown = section(report.markdown(Content("demo", RESULTS, quoted=rows)))
    assert shown == (
        "| method | test sources | quoted from | BLEU | BLEU, quoted | TER | TER, quoted |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| full | all | Someone et al. 2020, Table 1: FT | 60.5 ± 0.7 | 62.5 ± 0.3 | 39.5 ± 0.7 | 35.0 |\n"
        "| full | unseen | Someone et al. 2020, Table 1: FT | 59.5 ± 0.7 | 40.0 | 39.5 ± 0.7 | – |\n\n"  # noqa: RUF001
        "Values called quoted are copied from publications and were not measured here. Their ± is what the publication "
        "prints. Someone et al. 2020, Table 1: other references."
    )


def test_rows_of_another_base_model_come_only_alone_and_are_called_no_reproduction(rows: tuple[Quoted, ...]) -> None:
    shown = section(report.markdown(Content("demo", (of("full", 60.0, model="smollm2-135m"),), quoted=rows)))
    assert "| full | all | Someone et al. 2020, Table 1: FT, large (openai-community/gpt2-large) | 60.0 |" in shown
    assert "They were published on another base model: ours are no reproduction." in shown
    for results in ((of("lora", 60.0, rank=4),), ()):
        assert not section(report.markdown(Content("demo", results, quoted=rows)))


def test_ours_on_quantised_weights_are_no_reproduction(rows: tuple[Quoted, ...]) -> None:
    plain = of("lora", 60.0)
    quantised = of("full", 60.0)
    model = quantised.spec.model.model_copy(update={"quantization": "nf4"})
    spec = quantised.spec.model_copy(update={"model": model})
    quantised = quantised.model_copy(update={"spec": spec, "trial_id": spec.trial_id})
    published = [row for row in rows if "large" not in row.model]
    shown = section(report.markdown(Content("demo", (plain, quantised), quoted=tuple(published))))
    assert "They were published on weights that are not quantised as ours are: ours are no reproduction." in shown
    both = section(report.markdown(Content("demo", (of("full", 61.0), quantised), quoted=rows)))
    assert "no reproduction" not in both
    assert both.count("FT |") == 2, "the quantised row stands beside none"


def test_settings_tell_rows_apart(rows: tuple[Quoted, ...]) -> None:
    results = (of("prefix_tuning", 50.0, num_prompt_tokens=5), of("prefix_tuning", 51.0, num_prompt_tokens=10))
    shown = section(report.markdown(Content("demo", results, quoted=rows)))
    assert shown.count("Table 1: Prefix") == 1
    assert "| 50.0 | 70.0 |" in shown


def test_latex_has_a_table_of_its_own_with_quoted_values_in_italics(rows: tuple[Quoted, ...]) -> None:
    text = latex(Content("demo", RESULTS, quoted=rows))
    assert text.count(r"\begin{table}") == 3, "what does not fit beside goes to a further table"
    quoted_row = r"    full & all & \itshape \raggedright Someone et al. 2020, Table 1: FT & "
    assert quoted_row + r"60.5 $\pm$ 0.7 & \textit{62.5 $\pm$ 0.3} \\" in text
    assert quoted_row + r"39.5 $\pm$ 0.7 & \textit{35.0} \\" in text
    assert r"\label{tab:demo-gpt2-medium-facts-quoted}" in text


def test_the_page_marks_quoted_cells(rows: tuple[Quoted, ...]) -> None:
    page = html(Content("demo", RESULTS, quoted=rows), [()], None)
    assert "<summary>Beside published numbers" in page
    assert '<td>60.5 ± 0.7</td><td class="quoted">62.5 ± 0.3</td>' in page
    assert 'class="quoted"' not in html(Content("demo", RESULTS), [()], None)


def test_json_has_them_unrounded(rows: tuple[Quoted, ...]) -> None:
    (comparison,) = json.loads(json_text(Content("demo", RESULTS, quoted=rows)))["comparisons"]
    first, second = comparison["published"]
    assert (first["configuration"], first["label"], first["same_model"], second["tag"]) == (
        "full",
        "FT",
        True,
        "unseen",
    )
    assert first["scores"] == {
        "bleu": {"ours": 60.5, "quoted": 62.5, "quoted_spread": 0.3},
        "ter": {"ours": 39.5, "quoted": 35.0, "quoted_spread": None},
    }
    assert json.loads(json_text(Content("demo", RESULTS)))["comparisons"][0]["published"] == []


SWEEP = "name: x\ntask: facts\nmethods: [full]\npublished: [{files}]\n"


def test_a_sweep_names_files_beside_itself(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    (tmp_path / "numbers").mkdir()
    for name in ("numbers/one.yaml", "one.yaml", "broken.yaml"):
        (tmp_path / name).write_text(PUBLISHED if "one" in name else "key: x\n")
    path.write_text(SWEEP.format(files="numbers/one.yaml"))
    assert published_files(path, load_sweep(path)) == [tmp_path / "numbers" / "one.yaml"]
    for files, message in (
        ("nothing.yaml", r"sweep.yaml: published: .*nothing.yaml: cannot be read"),
        ("broken.yaml", r"sweep.yaml: published: .*broken.yaml: "),
        ("numbers/one.yaml, one.yaml", r"sweep.yaml: published: two files are called one.yaml"),
    ):
        path.write_text(SWEEP.format(files=files))
        with pytest.raises(ConfigError, match=message):
            published_files(path, load_sweep(path))


def test_the_command_report_takes_further_files_and_keeps_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    store.root.mkdir()
    for result in RESULTS:
        store.commit(result, [])
    (tmp_path / "someone.yaml").write_text(PUBLISHED)
    call = ["report", str(store.root), "--published", str(tmp_path / "someone.yaml")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    (tmp_path / "someone.yaml").unlink()
    assert len(kept_published(store.root)) == 6
    report.write(store.root)
    assert section((store.root / "report" / "report.md").read_text())
    assert isinstance(CliRunner().invoke(app, call).exception, ConfigError)
