"""The E2E NLG challenge data (Novikova et al. 2017): restaurant descriptions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from bench.task import Example, Split, Task, TaskConfig, TaskError, linearise
from bench.tasks.rows import group_by_source, read_csv, read_lines

PUBLIC = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967"

# The first of these names that exists in the folder is read. The restored training set is a de-tokenised stand-in for
# the original file, for folders that lack it.
RAW_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("trainset.csv", "trainset_restored.csv.gz"),
    "dev": ("devset.csv",),
    "test": ("testset_w_refs.csv",),
}
PAPER_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("src1_train.txt", "src1_train.txt.gz"),
    "dev": ("src1_valid.txt", "src1_valid.txt.gz"),
    "test": ("src1_test.txt", "src1_test.txt.gz"),
}

Facts = tuple[tuple[str, ...], ...]


class E2E(Task):
    """E2E NLG: short restaurant descriptions from three to eight slots."""

    class Config(TaskConfig):
        """Settings of the task e2e."""

        path: str | None = Field(None, description="folder with the files; None reads the public raw files")
        form: Literal["raw", "paper"] = Field(
            "raw", description="raw: the released CSV; paper: tokenised, as Li & Liang 2021 and Hu et al. 2021 used it"
        )

    licence: ClassVar[str] = "CC BY-SA 4.0"
    citation: ClassVar[str] = "Novikova, Dusek and Rieser 2017, The E2E dataset, SIGDIAL, arXiv:1706.09254"
    lowercase: ClassVar[bool] = True  # mteval-v13a of the official script ignores case

    def data_files(self) -> Mapping[Split, str]:
        names = RAW_FILES if self.config.form == "raw" else PAPER_FILES
        if self.config.path is None:
            if self.config.form == "paper":
                raise TaskError("task.form: the paper form is read from a folder; set task.path")
            return {split: f"{PUBLIC}/{candidates[0]}" for split, candidates in names.items()}
        folder = Path(self.config.path).expanduser()
        return {split: _first_existing(folder, candidates) for split, candidates in names.items()}

    def load(self, split: Split) -> list[Example]:
        location = self.data_files()[split]
        if self.config.form == "paper":
            rows = [_paper_row(line, f"{location}: line {n}") for n, line in enumerate(read_lines(location), start=1)]
        else:
            rows = [
                (linearise(facts := slots(row["mr"], f"{location}: row {n}")), facts, row["ref"].strip())
                for n, row in enumerate(read_csv(location, ("mr", "ref")), start=1)
            ]
        return group_by_source(rows, split)


def slots(meaning_representation: str, where: str) -> Facts:
    """Slot and value pairs of ``name[Alimentum], area[city centre]``.

    Raises:
        TaskError: It has another form.
    """
    found = re.findall(r"([^,\[\]][^\[\]]*)\[([^\]]*)\](?:, |$)", meaning_representation)
    if not found or ", ".join(f"{slot}[{value}]" for slot, value in found) != meaning_representation.strip():
        raise TaskError(f"{where}: expected 'slot[value], slot[value]', got {meaning_representation!r}")
    return tuple((slot.strip(), value) for slot, value in found)


def _paper_row(line: str, where: str) -> tuple[str, Facts, str]:
    source, separator, reference = line.partition("||")
    if not separator or not source.strip() or not reference.strip():
        raise TaskError(f"{where}: expected 'slot : value | slot : value||text', got {line!r}")
    facts = tuple(tuple(part.strip() for part in fact.split(" : ", 1)) for fact in source.split(" | "))
    return source.strip(), facts, reference.strip()


def _first_existing(folder: Path, candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if (folder / name).is_file():
            return str(folder / name)
    raise TaskError(f"task.path: no file {' or '.join(candidates)} in {str(folder)!r}")
