"""Commands on trained adapters: try one, and hand one on to other libraries."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, console
from bench.config.load import set_key, setting_value
from bench.schema.trial import DecodeSpec
from bench.schema.validation import ConfigError, validated

Result = Annotated[
    Path,
    typer.Argument(
        help="folder of a trial, results/<sweep>/trials/<id>, or any with its adapter.json and adapter.safetensors",
        metavar="RESULT",
    ),
]
BaseModelPath = Annotated[
    str | None, typer.Option("--model", help="the base model, if it lies elsewhere than where the trial ran")
]

# A setting of decoding, its value that makes others idle, and these.
IDLE = (("temperature", 0, ("seed", "top_p")), ("beams", 1, ("length_penalty", "early_stopping")))


class ExportFormat(StrEnum):
    """What an adapter can be handed on to."""

    PEFT = "peft"
    MERGED = "merged"


def generate(
    result: Result,
    sources: Annotated[list[str], typer.Option("--source", help="what to put into words; may be repeated")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="decode.key=value, e.g. decode.beams=5")] = None,
    model: BaseModelPath = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Try a trained adapter: its text for each source, decoded as its trial did unless --set says otherwise."""
    import torch

    _quieten()
    from bench.decode.generate import generate as generate_texts
    from bench.models.adapter import read_card, restore
    from bench.plugins.source import use_folder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if plugins_dir is not None:
            use_folder(plugins_dir)
        decode = _decode_with(read_card(result).decode, settings or ())
        restored = restore(result, device, model)
        ids = [restored.source_ids(source) for source in sources]
        arguments = (restored.model, restored.tokenizer, restored.architecture)
        texts = generate_texts(*arguments, ids, decode, device, rank=0, ranks=1).texts
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        rows = [{"source": source, "text": texts[index]} for index, source in enumerate(sources)]
        console.print_json(json.dumps(rows))
        return
    for index in range(len(sources)):
        console.print(Text(texts[index]), soft_wrap=True)


def export(
    result: Result,
    to: Annotated[
        ExportFormat,
        typer.Option(
            "--to",
            help="peft: a folder for peft.PeftModel.from_pretrained; merged: a whole model for from_pretrained of "
            "transformers",
        ),
    ],
    into: Annotated[
        Path | None, typer.Option("--into", help="folder to write; default: <name of RESULT>-<--to>")
    ] = None,
    model: BaseModelPath = None,
    push: Annotated[
        str | None,
        typer.Option(help="also upload the folder to this repository of the Hugging Face hub; a new one is private"),
    ] = None,
    plugins_dir: PluginsDir = None,
) -> None:
    """Hand a trained adapter on to other libraries; the result is checked to give the same logits."""
    _quieten()
    from bench.models.export_to_peft import export_merged, export_to_peft
    from bench.models.hub_push import HubRepository
    from bench.plugins.source import use_folder

    destination = into or Path(f"{result.resolve().name}-{to.value}")
    write = export_to_peft if to is ExportFormat.PEFT else export_merged
    try:
        if plugins_dir is not None:
            use_folder(plugins_dir)
        repository = None if push is None else HubRepository(push)
        difference = write(result, destination, model)
        reader = "peft" if to is ExportFormat.PEFT else "transformers"
        console.print(
            f"{destination}: loads in {reader} and gives the same logits (difference: {difference:.1e} of the largest)"
            "; its tensors are in fp32",
            highlight=False,
            soft_wrap=True,
        )
        if repository is not None:
            console.print(f"uploaded to {repository.upload(destination)}", highlight=False, soft_wrap=True)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _decode_with(stored: DecodeSpec, settings: Sequence[str]) -> DecodeSpec:
    """How an adapter generates, by its card and then by the command line.

    What a setting of the command line makes idle is left out, unless it is set there too: a temperature of 0 leaves
    nothing to draw by the seed of a trial.

    Raises:
        ConfigError: A setting is invalid.
    """
    raw: dict[str, Any] = {"decode": stored.model_dump()}
    by_hand = set()
    for setting in settings:
        key, value = setting_value(setting)
        if key.partition(".")[0] != "decode":
            raise ConfigError(f"--set {setting}: only decode.… can be set here")
        set_key(raw, key, value, f"--set {setting}")
        by_hand.add(key)
    decode = raw["decode"]
    for name, off, names in IDLE:
        if f"decode.{name}" in by_hand and isinstance(decode, dict) and decode.get(name) == off:
            for idle in (one for one in names if f"decode.{one}" not in by_hand):
                decode.pop(idle, None)
    return validated(DecodeSpec, decode, "--set decode")


def _quieten() -> None:
    """Progress of loading weights, and what libraries have to tell each other, would stand among the texts."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that transformers warns of
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed tells that it found no other
