"""The names in the glossary exist in the code, and no text uses a word in its old sense."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "docs" / "inside" / "words.md"
ROWS = [
    [part.strip() for part in line.strip("|").split("|")]
    for line in WORDS.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| word")
]

# The old sense as a pattern, and the files that may have it. Besides these, none of HISTORY is searched.
OLD_SENSES: dict[str, tuple[str, ...]] = {
    r"\bcompanions?\b": ("bench/schema/record.py", "bench/store/outbox.py", "tests/driver/test_fused_sweeps.py"),
    r"\b(in|its|any|the) company\b": (),
    r"\b[Ff]used (projections?|activations?|layers?|MLPs?|GELU)\b": (),
    r"\bfused `c_attn`": (),
    r"fused_(projections|activations|layers)": (),
    r"\bclass Prediction\b|\bimport Prediction\b": (),
    r"\b(could|can|cannot) be predicted\b": (),
    r"\bfor cells? in (comparison|content)\b|\bcells?: (Configuration|Sequence\[Configuration\])": (),
    r"\bclass (References?|Cell)\b": (),
    r"\b(SearchSettings|GreedySearch|make_search)\b": (),
    r"^#+ Mind$": (),
}
# Pages of the past, what is shown as it was measured, and data.
HISTORY = (
    "CHANGELOG.md",
    "docs/inside/decisions.md",
    "docs/inside/words.md",
    "results/",
    "tests/data/",
    "bench/tasks/facts/",
)
SELF = "tests/repository/test_words.py"


def tracked() -> list[str]:
    """Text files of the repository, or of the folder where there is no repository."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    names = listed.stdout.splitlines() or [
        str(path.relative_to(ROOT))
        for part in ("bench", "methods", "tests", "docs")
        for path in (ROOT / part).rglob("*")
    ]
    kinds = (".py", ".md", ".yaml", ".toml", ".jinja", ".js")
    return [name for name in names if name.endswith(kinds) and not name.startswith(HISTORY) and name != SELF]


@pytest.mark.parametrize(("word", "names"), [(row[0], row[2]) for row in ROWS], ids=lambda text: text.split()[0])
def test_a_word_has_its_thing_in_the_code(word: str, names: str) -> None:
    dotted = re.findall(r"`([\w.]+)`", names)
    assert dotted, f"{word}: which class or function is it?"
    for name in dotted:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), f"{word}: there is no {name}"


def test_the_glossary_of_the_readme_has_words_of_this_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    glossary = readme.partition("## Glossary")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([A-Z][\w, ]*) \|", glossary, re.MULTILINE)
    assert len(words) >= 8
    assert {one for word in words for one in word.split(", ")} - {row[0] for row in ROWS} == set()


@pytest.mark.parametrize(
    "line",
    [
        "what fails in company is run again alone",
        "GPT-2's fused layer",
        "use_fused_activations(model)",
        "best = [cell.name for cell in comparison.scored]",
        "trials that could be predicted",
        "class Reference:",
    ],
)
def test_an_old_sense_is_recognised(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in OLD_SENSES)


def test_no_text_uses_a_word_in_an_old_sense() -> None:
    found = [
        f"{name}:{number}: {pattern}: {line.strip()}"
        for name in tracked()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1)
        for pattern, allowed in OLD_SENSES.items()
        if name not in allowed and re.search(pattern, line)
    ]
    assert found == []
