"""Writes the tables of docs/methods/methods.md: methods with their settings, and the types of peft with their checks.

``python -m bench.tools.method_tables docs/methods/methods.md`` replaces the text between the page's markers.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from bench.conformance import Verdict, verdicts
from bench.conformance.tiny_models import CORE_FAMILIES
from bench.method import MethodError
from bench.models.parameters import count_parameters
from bench.models.quantization import Storage, quantize
from bench.plugins.registry import load_method, summary, targets
from bench.plugins.settings import settings_of

BRIDGE = "hf_peft"
KEEPS = "keeps it"
# A method's settings are told by those of another one that has at least so many of them.
FEWEST_IN_COMMON = 3
MARKER = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

# For each type of peft, settings small enough for tiny models. The defaults of all other types fit.
PEFT_SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 50},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "LILY": {"r": 4},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4},
    "OFT": {"oft_block_size": 8},
    "PEANUT": {"r": 4},
    "POLY": {"r": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"r": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [5, 7, 13]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 50},
    "XLORA": {"hidden_size": 32, "adapters": {}},
}
# Types that find their modules themselves. All others get queries and values, by their names in each family.
OWN_TARGETS = frozenset({"ADAPTION_PROMPT", "IA3", "LN_TUNING", "SHADOW", "TRAINABLE_TOKENS"})
TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}
# Types that refuse float64.
FLOAT32_ONLY = frozenset({"PSOFT"})


def native_table() -> str:
    """A table of Tuneoff's methods: description, source, sizes on GPT-2 medium by default; then their settings."""
    rows = ["| method | what it does | source | trained / stored of GPT-2 medium |", "|---|---|---|---|"]
    for name, target in targets("method").items():
        method_class = load_method(target)
        counts = "depends on the type" if name == BRIDGE else _counts(method_class)
        rows.append(f"| `{name}` | {summary(method_class)} | {method_class.paper or 'none'} | {counts} |")
    return "\n\n".join(["\n".join(rows), *settings_sections()])


def settings_sections() -> list[str]:
    """A section of settings for each method that has any. What an earlier section lists too is not listed again."""
    whole: dict[str, dict[str, str]] = {}
    sections = []
    for name, target in targets("method").items():
        lines = {
            one.name: f"| `{one.name}` | {_cell(one.type)} | {_cell(one.default_text)} | {_cell(one.description)} |"
            for one in settings_of(load_method(target).Config)
        }
        if not lines:
            continue
        like = max(whole, key=lambda other: len(lines.items() & whole[other].items()), default=None)
        text = ""
        if like is None or len(lines.items() & whole[like].items()) < FEWEST_IN_COMMON:
            whole[name] = lines
        else:
            lacking = [f"`{setting}`" for setting in whole[like] if setting not in lines]
            lines = {setting: line for setting, line in lines.items() if whole[like].get(setting) != line}
            without = f", without {', '.join(lacking)}" if lacking else ""
            text = f"As `{like}`{without}" + ((" and with:" if lacking else ", but with:") if lines else ".")
        table = ["| setting | type | default | meaning |", "|---|---|---|---|", *lines.values()] if lines else []
        sections.append("\n\n".join(part for part in (f"### `{name}`", text, "\n".join(table)) if part))
    return sections


def _counts(method_class: Any) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)).requires_grad_(False)
    method = method_class(method_class.Config())
    try:
        patched = method.patch(model)
    except MethodError:  # it wants quantised weights
        quantize(model, Storage("nf4"))
        patched = method.patch(model)
    counts = count_parameters(method, patched)
    return f"{counts.trained:,} / {counts.stored:,}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def peft_types() -> list[str]:
    """Every type that the installed peft has, in alphabetical order."""
    from methods.hf_peft import peft_config_classes

    return sorted(peft_config_classes())


def peft_table(types: Iterable[str]) -> str:
    """A table of the types of peft, by family, with the reason if one does not keep the contract."""
    rows = [f"| type | settings | {' | '.join(CORE_FAMILIES)} |", "|---|---|" + "---|" * len(CORE_FAMILIES)]
    reasons: dict[str, dict[str, list[str]]] = {}
    kept = dict.fromkeys(CORE_FAMILIES, 0)
    types = list(types)
    for peft_type in types:
        cells = []
        for family in CORE_FAMILIES:
            outcome, family_reasons = peft_outcome(peft_type, family)
            cells.append(outcome)
            kept[family] += outcome == KEEPS
            for reason in family_reasons:
                reasons.setdefault(reason, {}).setdefault(peft_type, []).append(family)
        settings = ", ".join(f"{key}: {value}" for key, value in PEFT_SETTINGS.get(peft_type, {}).items())
        rows.append(f"| `{peft_type}` | {settings or 'defaults'} | {' | '.join(cells)} |")
    notes = [
        "- " + "; ".join(f"`{name}` ({', '.join(families)})" for name, families in whose.items()) + f": {reason}"
        for reason, whose in reasons.items()
    ]
    counts = ", ".join(f"{count} on {family}" for family, count in kept.items())
    return "\n".join([f"Of {len(types)} types keep the contract: {counts}.", "", *rows, "", *notes])


def peft_outcome(peft_type: str, family: str) -> tuple[str, list[str]]:
    """The table cell for a type of peft and a model family, and the reasons for it."""
    method_class = load_method(targets("method")[BRIDGE])
    try:
        config = method_class.Config(**peft_settings(peft_type, family))
    except ValidationError as error:
        return "refused", [_plain(error.errors()[0]["msg"].removeprefix("Value error, "))]
    dtype = torch.float32 if peft_type in FLOAT32_ONLY else torch.float64
    found = list(verdicts(method_class, config, [family], dtype, processes=0))
    failed = [verdict for verdict in found if verdict.outcome == "fail"]
    if found[0].outcome == "refused":
        return "refused", [_plain(found[0].reason)]
    return ("**fails**" if failed else KEEPS), list(map(_failure, failed))


def peft_settings(peft_type: str, family: str) -> dict[str, Any]:
    """The settings of ``hf_peft`` for a type on a tiny model."""
    from methods.hf_peft import BREAKS_CONTRACT, peft_config_classes

    settings = {"peft_type": peft_type, **PEFT_SETTINGS.get(peft_type, {})}
    known = {field.name for field in fields(peft_config_classes()[peft_type])}
    if "target_modules" in known and peft_type not in OWN_TARGETS:
        settings["target_modules"] = TARGETS[family]
    if "fan_in_fan_out" in known and family == "gpt2":
        settings["fan_in_fan_out"] = True
    if peft_type in BREAKS_CONTRACT:
        settings["despite_contract"] = True
    return settings


def _failure(verdict: Verdict) -> str:
    return f"{verdict.check}: {_plain(verdict.reason)}"


def _plain(reason: str) -> str:
    """A reason on one line, without measured numbers and names of tensors and classes, which differ from run to run."""
    line = " ".join(reason.split())
    line = re.sub(r"peft cannot apply \w+ to \w+: ", "", line)
    line = re.sub(r": largest difference.*|(?<=did not lower the loss).*", "", line)
    if "Conv1D" in line:
        return "it does not support Conv1D, which GPT-2's linear layers are"
    line = re.sub(r"base_model\.\S+", "a tensor", line)
    return line if len(line) <= 200 else line[:200].rsplit(" ", 1)[0] + " …"


def renew(page: str, tables: dict[str, str]) -> str:
    """The page with these tables in place of what is between its markers."""
    return MARKER.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)


def main() -> None:
    """Renew the page that is named on the command line."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    page = Path(sys.argv[1])
    page.write_text(renew(page.read_text(), {"native": native_table(), "peft": peft_table(peft_types())}))


if __name__ == "__main__":
    main()
