"""Published numbers: the files that ship, and what breaks their schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import trial, varied

from bench.report.published import Quoted, fits, load_published, other_base, quoted
from bench.schema.trial import FewShotSpec
from bench.schema.validation import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "papers" / "published"


def rows(name: str, **wanted: str) -> list[Quoted]:
    rows_quoted = quoted(load_published(FOLDER / name))
    return [row for row in rows_quoted if all(str(getattr(row, key)) == value for key, value in wanted.items())]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_keeps_the_schema(path: Path) -> None:
    published = load_published(path)
    assert all(row.values for row in quoted(published))
    assert published.url.startswith("https://")


def test_the_versions_of_a_paper_are_kept_apart() -> None:
    tables = {
        row.table: row.values["bleu"]
        for row in rows("li_liang_2021.yaml", task="e2e", label="Prefix (0.1%)", split="test")
        if row.model.endswith("medium")
    }
    assert tables == {"arXiv:2101.00190v1 Table 1, E2E": 69.7, "ACL 2021 Table 2, E2E": 70.3}


def test_values_come_in_our_units() -> None:
    (row,) = (
        row
        for row in rows("li_liang_2021.yaml", task="webnlg", label="Fine-tune", tag="unseen")
        if row.table.startswith("arXiv") and row.model.endswith("medium")
    )
    assert row.values == {"bleu": 27.7, "meteor": 30.0, "ter": 76.0}
    (lora,) = (row for row in rows("hu_2021.yaml", label="LoRA", task="e2e") if row.model.endswith("medium"))
    assert (lora.values["bleu"], lora.spread["bleu"], lora.parameters) == (70.4, 0.1, 350_000)
    (small,) = (row for row in rows("hu_2021.yaml", label="Adapter L", task="e2e") if row.parameters == 880_000)
    assert small.spread == {"bleu": 0.1, "nist": 0.03, "meteor": 0.0, "rouge_l": 0.2, "cider": 0.0}


def test_tables_13_and_14_of_hu_have_every_spread_meteor_and_ter() -> None:
    ours = ("LoRA", "Adapter L")
    spreads = {
        (row.model.rsplit("-", 1)[1], row.parameters, row.tag): row.spread
        for row in rows("hu_2021.yaml")
        if row.table in ("Table 13, DART", "Table 14, WebNLG") and row.spread
    }
    assert {key: value["bleu"] for key, value in spreads.items()} == {
        ("medium", 350_000, "all"): 0.2,  # the last of two tables with one key: both print .2
        ("medium", 350_000, "unseen"): 0.4,
        ("medium", 350_000, "seen"): 0.2,
        ("large", 880_000, "all"): 0.0,
        ("large", 880_000, "unseen"): 0.0,
        ("large", 880_000, "seen"): 0.0,
        ("large", 23_000_000, "all"): 0.1,
        ("large", 23_000_000, "unseen"): 0.1,
        ("large", 23_000_000, "seen"): 0.2,
        ("large", 770_000, "all"): 0.1,
        ("large", 770_000, "unseen"): 0.3,
        ("large", 770_000, "seen"): 0.3,
    }
    dart = [row for row in rows("hu_2021.yaml", task="dart") if row.model.endswith("large") and row.label in ours]
    assert [(row.spread["bleu"], row.values["meteor"], row.values["ter"]) for row in dart] == [
        (0.1, 38.0, 46.0),
        (0.1, 39.0, 45.0),
        (0.1, 39.0, 45.0),
    ]
    assert all(row.values.keys() == {"bleu", "meteor", "ter"} for row in rows("hu_2021.yaml", task="webnlg"))
    unseen = [row for row in rows("hu_2021.yaml", task="webnlg", tag="unseen") if row.model.endswith("large")]
    assert [(row.values["meteor"], row.values["ter"]) for row in unseen] == [
        (38.0, 53.0),
        (38.0, 44.0),
        (39.0, 46.0),
        (39.0, 48.0),
        (39.0, 45.0),
    ]


def test_table_18_of_hu_has_every_rank_and_names_what_is_left_out() -> None:
    found = [row for row in rows("hu_2021.yaml") if row.table.startswith("Table 18")]
    bleu = {row.config["rank"]: row.values["bleu"] for row in found}
    assert bleu == dict(
        zip(
            (2**power for power in range(11)),
            (68.72, 69.17, 70.38, 69.57, 69.61, 69.33, 69.24, 68.73, 68.92, 68.78, 69.37),
            strict=True,
        )
    )
    assert found[2].values == {"bleu": 70.38, "nist": 8.8439, "meteor": 46.89, "rouge_l": 71.86, "cider": 2.5349}
    assert "val_loss" in found[0].note


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("ACL 2021 Table 2, WebNLG", "METEOR and TER are left out"),
        ("ACL 2021 Table 9, E2E dev", "what else the table prints is left out"),
        ("arXiv:2101.00190v1 Table 1, WebNLG", "T5-large"),
    ],
)
def test_a_table_that_is_not_complete_says_so(table: str, named: str) -> None:
    assert {row.note for row in rows("li_liang_2021.yaml", table=table)} != set()
    assert all(named in row.note for row in rows("li_liang_2021.yaml", table=table))


TABLE = """
schema_version: 1
key: X
citation: x
url: https://x
read_in: y
tables:
  - table: "1"
    task: e2e
    metrics: {bleu: 1, nist: 1}
    rows:
      - {model: m, method: full, label: FT, values: [1, 2]}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("values: [1, 2]", "values: [1]"), r"FT \(all\): 1 values for 2 metrics"),
        (("values: [1, 2]", "values: [1, 2], spread: [1, 1]"), "a spread, and the table does not say what it is"),
        (("method: full", "methd: full"), "did you mean 'method'"),
        (("task: e2e", "task: e2e\n    split: all"), "split"),
        (("schema_version: 1", "schema_version: 2"), "schema_version"),
        (("tables:", "tables: ["), "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_clear_message(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TABLE)
    assert len(list(quoted(load_published(path)))) == 1
    assert change[0] in TABLE
    path.write_text(TABLE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_published(path)
    with pytest.raises(ConfigError, match=r"nothing.yaml: cannot be read"):
        load_published(tmp_path / "nothing.yaml")


def test_quantised_weights_are_not_the_published_model(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TABLE.replace("model: m", "model: someone/m"))
    (row,) = quoted(load_published(path))

    def beside(**model: object) -> str | None:
        return other_base(row, varied(trial(), model=model))

    assert beside(path="someone/m") is None
    assert beside(path="/models/m/") is None
    assert beside(path="someone/n") == "another model"
    assert beside(path="someone/m", quantization="nf4") == "its weights in nf4"
    assert beside(path="/models/m", checkpoint_quantization="gptq") == "its weights in gptq"
    assert beside(path="someone/m", checkpoint_quantization="gptq") is None, "which is what they published on"


def test_a_prompt_with_pairs_fits_only_rows_that_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TABLE.replace("task: e2e", "task: facts").replace("values:", "shots: 2, values:"))
    plain, few = (
        trial(),
        trial().model_copy(
            update={"few_shot": FewShotSpec(examples=["a", "b"], template="{source}", max_source_tokens=9)}
        ),
    )
    (with_pairs,) = quoted(load_published(path))
    without = with_pairs.model_copy(update={"shots": 0})
    assert [fits(row, spec) for row in (without, with_pairs) for spec in (plain, few)] == [True, False, False, True]
