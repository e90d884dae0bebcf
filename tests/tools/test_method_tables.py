"""docs/methods/methods.md says what is there, and what the contract finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plugins.registry import targets
from bench.tools.method_tables import (
    BRIDGE,
    PEFT_SETTINGS,
    native_table,
    peft_outcome,
    peft_table,
    peft_types,
    renew,
    settings_sections,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "methods.md"


def test_the_page_has_every_method_with_its_settings() -> None:
    assert native_table() in PAGE.read_text(), "docs/methods/methods.md is out of date; run make docs"


def test_settings_are_listed_once() -> None:
    sections = {section.split("`")[1]: section for section in settings_sections()}
    assert sections["loftq"] == "### `loftq`\n\nAs `lora`."
    assert sections["dora"] == "### `dora`\n\nAs `lora`, without `dropout`."
    assert sections["corda"].startswith("### `corda`\n\nAs `lora`, without `dropout` and with:\n\n| setting |")
    assert "| `alpha` |" in sections["rslora"]
    assert "| `rank` |" not in sections["rslora"]
    assert "| `rank` |" in sections["loreft"]


def test_the_page_has_every_type_of_the_installed_peft() -> None:
    page = PAGE.read_text()
    assert [name for name in peft_types() if f"\n| `{name}` |" not in page] == []
    assert PEFT_SETTINGS.keys() <= set(peft_types())
    assert BRIDGE in targets("method")


@pytest.mark.parametrize(
    ("peft_type", "family", "expected"),
    [
        ("LOHA", "llama", ("keeps it", [])),
        ("LOHA", "gpt2", ("refused", ["it does not support Conv1D, which GPT-2's linear layers are"])),
    ],
)
def test_cells_are_what_the_contract_finds(peft_type: str, family: str, expected: tuple[str, list[str]]) -> None:
    assert peft_outcome(peft_type, family) == expected


def test_only_what_is_between_markers_changes() -> None:
    page = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n"
    assert renew(page, {"one": "new"}) == "a\n<!-- begin one -->\n\nnew\n\n<!-- end one -->\nb\n"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_whole_table_of_peft_is_what_the_contract_finds() -> None:
    assert peft_table(peft_types()) in PAGE.read_text(), "docs/methods/methods.md is out of date; run make docs"
