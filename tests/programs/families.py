"""Tries every built-in method on tiny random models of the families that people fine-tune: a whole trial, the contract.

``PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/families.py`` writes
``docs/inside/families.md``. It takes a quarter of an hour on one core; ``--families`` and ``--methods`` try a part, and
the other cells of the page stay.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).resolve().parents[2] / "docs" / "inside" / "families.md"
COMMAND = "PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/families.py"

FAMILIES = {
    "GPT-2": "gpt2",
    "Llama": "llama",
    "T5": "t5",
    "gpt-oss": "gpt_oss",
    "Qwen3": "qwen3",
    "Qwen3-MoE": "qwen3_moe",
    "Gemma-3": "gemma3",
    "Gemma-3n": "gemma3n_text",
    "Gemma-4": "gemma4_text",
    "Llama-4": "llama4_text",
    "DeepSeek-V2-Lite": "deepseek_v2_lite",
    "Phi-4": "phi4",
    "OLMo-2": "olmo2",
    "OLMo-3": "olmo3",
    "Granite": "granite_3",
    "SmolLM3": "smollm3",
    "Falcon-H1": "falcon_h1",
    "LFM2": "lfm2",
    "Mamba-2": "mamba2",
}
"""Row to the name of a tiny model of bench/conformance/tiny_models.py or tests/support/text_families.py."""

SETTINGS: dict[str, dict[str, Any]] = {"hf_peft": {"peft_type": "LORA", "target_modules": "all-linear"}}
"""Methods that have no default."""

CHECKED = (
    "precisions",
    "causal",
    "padding changes nothing",
    "cached logits",
    "beams share a row",
    "only what is declared is trained",
    "every tensor gets a gradient",
    "gradient checkpointing",
    "equal layers are adapted alike",
    "start from examples",
    "state reloads",
    "merging changes nothing",
    "counts",
)
"""The checks of the contract whose result depends on the family more than on the method."""

RELATIVES = ("rslora", "lora_plus", "lora_fa", "dora", "pissa", "olora", "eva", "corda", "lora_ga")
"""Methods with the layers of LoRA, whose steps cost what LoRA's do, so that the planner need not trace them."""

WORKS, REFUSES, FAILS = "works", "refuses", "fails"
STEPS = 8
HEAD = """# Which method works on which family

Tiny models with random weights in fp32, two layers or as many as it takes to have one of each kind, {steps}
steps. *works*: a whole trial (train, validate, store, load anew, decode, score; the dev loss fell), and the
{checks} checks of the contract whose result depends on the family (`--whole`: all of them), if the base model
itself passes them. *refuses*: `patch` says why, before anything is trained; the reason is below the table.
Methods have their default settings; `hf_peft` is peft's LORA on all linear layers. What a method adapts in a
family is in [methods.md](../methods/methods.md).

Made by `{command}`,
in parts (`--families`, `--methods`), last on {date}, with torch {torch}, transformers {transformers}, peft {peft} and
deepspeed {deepspeed}.
"""


@dataclass(frozen=True)
class Tried:
    """The verdict on a method in a family, with its reason unless it works."""

    verdict: str
    reason: str = ""


@dataclass
class Page:
    """The cells of the table so far, and what is said of families."""

    cells: dict[tuple[str, str], Tried] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Page:
        """The cells of a page that this program has written; none if there is no such page."""
        page = cls()
        if not path.exists():
            return page
        text = path.read_text(encoding="utf-8")
        reasons = dict(re.findall(r"^\[\^(\d+)\]: (.*)$", text, re.MULTILINE))
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        for family, *cells in rows[2:]:
            for method, cell in zip(rows[0][1:], cells, strict=True):
                verdict, _, number = cell.rstrip("]").partition("[^")
                if verdict:
                    page.cells[family, method.strip("`")] = Tried(verdict.strip(), reasons.get(number, ""))
        page.families = dict(re.findall(r"^- \*\*(.*?)\*\*: (.*)$", text, re.MULTILINE))
        return page

    def text(self, methods: Sequence[str]) -> str:
        """The page."""
        numbers: dict[str, int] = {}
        lines = [
            f"| | {' | '.join(f'`{method}`' for method in methods)} |",
            f"|---|{'---|' * len(methods)}",
        ]
        for family in FAMILIES:
            cells = []
            for method in methods:
                cell = self.cells.get((family, method), Tried(""))
                note = f" [^{numbers.setdefault(cell.reason, len(numbers) + 1)}]" if cell.reason else ""
                cells.append(f"{cell.verdict}{note}")
            lines.append(f"| {family} | {' | '.join(cells)} |")
        reasons = [f"- **{family}**: {self.families[family]}" for family in FAMILIES if family in self.families]
        notes = [f"[^{number}]: {reason}" for reason, number in numbers.items()]
        head = HEAD.format(
            steps=STEPS,
            checks=len(CHECKED),
            command=COMMAND,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")},
        )
        pairs = len(FAMILIES) * len(methods)
        if len(self.cells) < pairs:
            head += (
                f"\n{len(self.cells)} of {pairs} pairs of method and family were tried. An empty cell is unknown; "
                "`--continue` tries it.\n"
            )
        of_families = ["\nOf the families themselves:\n\n" + "\n".join(reasons)] if reasons else []
        return "\n".join([head, *lines, *of_families, "\nReasons:\n", *notes]) + "\n"


@dataclass
class Ground:
    """A folder with models and a task, and what is known of base models so far.

    Args:
        folder: Empty.
        whole: Whether all checks of the contract are tried.
    """

    folder: Path
    whole: bool = False

    def __post_init__(self) -> None:
        from conftest import CITIES, NAMES, write_task

        (self.folder / "task").mkdir()
        write_task(self.folder / "task", [(name, city) for name in NAMES for city in CITIES])
        self._models: dict[str, Path] = {}

    @cached_property
    def methods(self) -> list[str]:
        from methods import METHODS

        return list(METHODS)

    def model(self, family: str) -> Path:
        """The folder of a family's model."""
        from conftest import save_tokenizer

        from bench.conformance.tiny_models import FAMILIES as KNOWN

        if family not in self._models:
            folder = self._models[family] = self.folder / family
            folder.mkdir()
            tokenizer = save_tokenizer(folder, ends_texts=family == "t5")
            torch.manual_seed(0)
            model = KNOWN[family](len(tokenizer))
            for parameter in model.parameters():  # some start at zero (in Gemma 3n), and keep gradients from others
                parameter.data += 0.05 * torch.randn_like(parameter)
            model.save_pretrained(folder)
        return self._models[family]

    def spec(self, family: str, method: str) -> Any:
        """A small trial."""
        from bench.config.load import expand, load_sweep
        from bench.config.resolver import RegistryResolver

        settings = {"config": SETTINGS[method]} if method in SETTINGS else {}
        sweep = {
            "name": "families",
            "model": {"path": str(self.model(family)), "attention": attention_of(family)},
            "task": {"name": "jsonl", "path": str(self.folder / "task")},
            "methods": [{"name": method, **settings}],
            "train": {"steps": STEPS, "batch_size": 8, "learning_rate": 3e-3, "evaluate_every_steps": 1},
            "decode": {"max_new_tokens": 4},
            "resources": {"device": "cpu", "cpus_per_rank": 1},
        }
        path = self.folder / "sweep.yaml"
        path.write_text(json.dumps(sweep), encoding="utf-8")
        (spec,) = expand(load_sweep(path), RegistryResolver())
        return spec

    def trial(self, family: str, method: str) -> Any:
        """What came of a trial."""
        from in_process import run_here

        from bench.store.records import Store

        store = Store(Path(tempfile.mkdtemp(dir=self.folder)))
        (record,) = run_here(store, [self.spec(family, method)], alone=method not in RELATIVES)
        return record.outcome

    def cell(self, family: str, method: str) -> Tried:
        """Try a method on a family, given by the name of its tiny model."""
        if (reason := refusal(family, method)) is not None:
            return (
                Tried(REFUSES, reason) if "\n" not in reason else Tried(FAILS, f"a reason of several lines: {reason}")
            )
        try:
            outcome = self.trial(family, method)
        except Exception as error:  # noqa: BLE001 - whatever it is goes into the table
            return Tried(FAILS, one_line(f"trial: {type(error).__name__}: {error}"))
        losses = [point.loss for point in outcome.dev_curve]
        if method != "none" and not losses[-1] < losses[0]:
            return Tried(FAILS, f"trial: the dev loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
        if method == "none":
            return Tried(WORKS)  # told_of says what a base model does not keep
        broken = self.broken(family, method)
        if broken and broken.keys() <= self.broken(family, "none", broken).keys():
            return Tried(WORKS)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        return Tried(FAILS if broken else WORKS, one_line(reasons))

    def broken(self, family: str, method: str, among: Collection[str] | None = None) -> dict[str, str]:
        """The checks of the contract that fail, with the reasons, of these or of all that are tried."""
        from bench.conformance.method_checks import CHECKS, PROCESS_CHECK
        from bench.conformance.surroundings import put_back

        tried_subject = subject(family, method)
        taken = among if among is not None else CHECKS.keys() - {PROCESS_CHECK} if self.whole else CHECKED
        broken = {}
        with put_back(tried_subject.base_model()):
            for name in taken:
                try:
                    CHECKS[name](tried_subject)
                except Exception as error:  # noqa: BLE001 - all that are broken are wanted
                    broken[name] = one_line(f"{type(error).__name__}: {error}")
        return broken

    def told_of(self, family: str) -> str:
        """What the page says of a family: its attention, its decoder, and which checks the base model does not pass."""
        reasons = [f"`attention: {attention_of(family)}`"] if attention_of(family) != "sdpa" else []
        if self.trial(family, "none").decode.engine == "transformers":
            reasons.append("decoded by `generate` of transformers")
        faults = self.broken(family, "none")
        reasons += [f"the base model itself does not pass *{name}* ({reason})" for name, reason in faults.items()]
        return "; ".join(reasons)


def attention_of(family: str) -> str:
    """The kind of attention that a family has."""
    from bench.conformance.tiny_models import FAMILIES as KNOWN

    with torch.device("meta"):
        return "sdpa" if KNOWN[family]()._supports_sdpa else "eager"


def one_line(text: str) -> str:
    """The text, for a footnote of Markdown."""
    return " ".join(text.replace("|", "\\|").split())


def subject(family: str, method: str) -> Any:
    """A method on a tiny model, for the contract."""
    from bench.conformance.subject import Subject
    from bench.plugins.registry import load_method, targets

    method_class = load_method(targets("method")[method])
    return Subject(method_class, method_class.Config(**SETTINGS.get(method, {})), family, torch.float32)


def refusal(family: str, method: str) -> str | None:
    """Why a method refuses a family; None if it does not."""
    from bench.method import MethodError

    try:
        subject(family, method).patched()
    except MethodError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - the trial meets it again
        return None
    return None


@contextmanager
def known_to_the_contract() -> Iterator[None]:
    """Inside the block the contract has tiny models of all families of this program."""
    from text_families import untrained_family

    from bench.conformance.tiny_models import FAMILIES as KNOWN

    added = {name: partial(untrained_family, name) for name in FAMILIES.values() if name not in KNOWN}
    KNOWN.update(added)
    try:
        yield
    finally:
        for name in added:
            del KNOWN[name]


def main() -> None:
    """Entry of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="leave cells alone that have a verdict")
    parser.add_argument("--whole", action="store_true", help="try all checks of the contract")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, known_to_the_contract():
        from one_rank import join_alone

        (Path(folder) / "rank").mkdir()
        join_alone(Path(folder) / "rank")
        ground = Ground(Path(folder), arguments.whole)
        gc.collect()
        gc.freeze()  # every phase of a trial collects garbage, and need not look at what is here already
        for method in arguments.methods or ground.methods:
            for title in arguments.families:
                page = Page.read(arguments.out)
                if arguments.goes_on and (title, method) in page.cells:
                    continue
                started = datetime.datetime.now(datetime.UTC)
                noise = StringIO()
                with redirect_stdout(noise), redirect_stderr(noise):
                    cell = ground.cell(FAMILIES[title], method)
                    reasons = ground.told_of(FAMILIES[title]) if method == "none" else page.families.get(title)
                if cell.verdict == WORKS and "Traceback" in noise.getvalue():
                    cell = Tried(FAILS, one_line(f"a traceback: {noise.getvalue()[-300:]}"))
                page.cells[title, method] = cell
                page.families.pop(title, None)
                if reasons:
                    page.families[title] = reasons
                arguments.out.write_text(page.text(ground.methods), encoding="utf-8")
                failed += cell.verdict == FAILS
                seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
                sys.stdout.write(f"{title} {method} {seconds:.1f} s: {cell.verdict} {cell.reason}\n")
                sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
