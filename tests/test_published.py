"""Published numbers: the files that ship, and what breaks their schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.config import ConfigError
from bench.published import Quoted, load_published, quoted

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "papers" / "published"


def rows(name: str, **wanted: str) -> list[Quoted]:
    found = quoted(load_published(FOLDER / name))
    return [row for row in found if all(str(getattr(row, key)) == value for key, value in wanted.items())]


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
    (partly,) = (row for row in rows("hu_2021.yaml", label="Adapter L", task="e2e") if row.parameters == 880_000)
    assert partly.spread.keys() == {"bleu", "nist", "rouge_l"}


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
