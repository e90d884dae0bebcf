"""The E2E NLG challenge data (Novikova et al. 2017): restaurant descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bench.task import Scoring, Split, TaskError, linearise
from bench.tasks.benchmark import Entry, GroupedTask, PublishedConfig, PublishedCounts, PublishedFile
from bench.tasks.rows import numbered_lines, read_csv, read_text
from bench.tasks.values import Facts

RAW = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967"
CLEANED = (
    "https://raw.githubusercontent.com/tuetschek/e2e-cleaning/164acdf986146d76f18893b3de9488725deda4c2/cleaned-data"
)
PAPER = (
    "https://raw.githubusercontent.com/XiangLi1999/PrefixTuning/6519d30e69b15a180f23e2cd41b766d3f62b8e82/data/e2e_data"
)

Form = Literal["raw", "paper", "cleaned"]

# The restored training set is a de-tokenised stand-in for the original file, for folders that lack it.
FILES: dict[Form, dict[Split, PublishedFile]] = {
    "raw": {
        "train": PublishedFile(("trainset.csv", "trainset_restored.csv.gz"), f"{RAW}/trainset.csv"),
        "dev": PublishedFile(
            ("devset.csv",),
            f"{RAW}/devset.csv",
            "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
        ),
        "test": PublishedFile(
            ("testset_w_refs.csv",),
            f"{RAW}/testset_w_refs.csv",
            "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
        ),
    },
    "paper": {
        "train": PublishedFile(
            ("src1_train.txt", "src1_train.txt.gz"),
            f"{PAPER}/src1_train.txt",
            "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
        ),
        "dev": PublishedFile(
            ("src1_valid.txt", "src1_valid.txt.gz"),
            f"{PAPER}/src1_valid.txt",
            "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
        ),
        "test": PublishedFile(
            ("src1_test.txt", "src1_test.txt.gz"),
            f"{PAPER}/src1_test.txt",
            "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
        ),
    },
    "cleaned": {
        "train": PublishedFile(("train-fixed.no-ol.csv",), f"{CLEANED}/train-fixed.no-ol.csv"),
        "dev": PublishedFile(
            ("devel-fixed.no-ol.csv",),
            f"{CLEANED}/devel-fixed.no-ol.csv",
            "bb88df2565826a463f96e93a5ab69a8c6460de54f2e68179eb94f0019f430d4d",
        ),
        "test": PublishedFile(
            ("test-fixed.csv",),
            f"{CLEANED}/test-fixed.csv",
            "99b43c2769a09d62fc5d37dcffaa59d4092bcffdc611f226258681df61269b17",
        ),
    },
}

_ORIGINAL: dict[Split, PublishedCounts] = {
    "train": PublishedCounts(4862, 42061),
    "dev": PublishedCounts(547, 4672),
    "test": PublishedCounts(630, 4693),
}
COUNTS: dict[Form, dict[Split, PublishedCounts]] = {
    "raw": _ORIGINAL,
    "paper": _ORIGINAL,
    "cleaned": {
        "train": PublishedCounts(None, 33525),
        "dev": PublishedCounts(1484, 4299),
        "test": PublishedCounts(1847, 4693),
    },
}

# The names of slots that differ in the files of the papers.
PAPER_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


class E2E(GroupedTask):
    """E2E NLG: short restaurant descriptions from three to eight slots.

    Li & Liang 2021 and Hu et al. 2021 trained on the form ``paper`` and scored against it: sources and texts are
    tokenised, which raises BLEU by about one point, so that scores of the two forms must not be compared.
    """

    class Config(PublishedConfig):
        """Settings of the task e2e."""

        form: Literal["raw", "paper", "cleaned"] = Field(
            "raw",
            description="raw: the released CSV; paper: tokenised, as Li & Liang 2021 and Hu et al. 2021 used it; "
            "cleaned: sources that say what the texts say (Dusek et al. 2019)",
        )

    config: Config

    licence: ClassVar[str] = "CC BY-SA 4.0"
    citation: ClassVar[str] = "Novikova, Dusek and Rieser 2017, The E2E dataset, SIGDIAL, arXiv:1706.09254"
    # mteval-v13a and the captioning scripts, as tuetschek/e2e-metrics runs them.
    scoring = Scoring(
        metrics=("bleu", "nist", "meteor", "rouge_l", "cider", "chrf", "slot_error_rate"),
        lowercase=True,
        bleu="mteval",
        rouge_l="coco",
    )

    def files(self) -> Mapping[Split, PublishedFile]:
        return FILES[self.config.form]

    def published(self) -> Mapping[Split, PublishedCounts]:
        return COUNTS[self.config.form]

    def read(self, location: str, sha256: str | None, split: Split) -> Iterator[Entry]:
        if self.config.form == "paper":
            for number, line in numbered_lines(read_text(location, sha256)):
                facts, reference = _paper_row(line, f"{location}: line {number}")
                yield Entry(facts, (reference,))
            return
        for number, row in read_csv(location, ("mr", "ref"), sha256):
            facts, reference = slots(row["mr"], f"{location}: line {number}"), row["ref"].strip()
            yield Entry(facts, (reference,) if reference else (), skipped={} if reference else {"empty references": 1})

    def word(self, facts: Facts) -> str:
        if self.config.form != "paper" and self.config.linearisation != "plain":
            return linearise([(PAPER_SLOTS.get(slot, slot), tokenised_value(value)) for slot, value in facts])
        return linearise(facts)


def slots(meaning_representation: str, where: str) -> Facts:
    """Slot and value pairs of ``name[Alimentum], area[city centre]``.

    Raises:
        TaskError: The text has another form.
    """
    pairs = re.findall(r"([^,\[\]][^\[\]]*)\[([^\]]*)\](?:, |$)", meaning_representation)
    if not pairs or ", ".join(f"{slot}[{value}]" for slot, value in pairs) != meaning_representation.strip():
        raise TaskError(f"{where}: expected 'slot[value], slot[value]', got {meaning_representation[:200]!r}")
    return tuple((slot.strip(), value) for slot, value in pairs)


def tokenised_value(value: str) -> str:
    """A slot's value in the form of the papers' files: ``£20-25`` is ``£ 20 - 25``."""
    return re.sub(r"(?<=\d)-(?=\d)", " - ", value.replace("£", "£ "))


def _paper_row(line: str, where: str) -> tuple[Facts, str]:
    source, separator, reference = line.partition("||")
    if not separator or not source.strip() or not reference.strip():
        raise TaskError(f"{where}: expected 'slot : value | slot : value||text', got {line[:200]!r}")
    return tuple(
        tuple(part.strip() for part in fact.split(" : ", 1)) for fact in source.split(" | ")
    ), reference.strip()
