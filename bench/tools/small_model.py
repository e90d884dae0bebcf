"""Makes a small language model from scratch, for demonstrations on CPUs: ``python -m bench.tools.small_model --help``.

A model of about a million parameters learns two things in a few minutes: to say the facts that are shipped with
Tuneoff, and to write about a restaurant, from the training texts of E2E with two slots of their sources. It is made by
a sweep of one trial, full fine-tuning of random weights, in the same loop as everything else.

Results on this model show how a sweep works. They say little about models that people use.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.models.adapter_files import read_tensors, tensors_files
from bench.schema.record import Probed
from bench.schema.validation import ConfigError
from bench.store.records import Store
from bench.task import linearise
from bench.tasks.e2e import E2E
from bench.tasks.facts.task import Facts

VOCABULARY = 2048
HIDDEN, LAYERS, HEADS, POSITIONS = 128, 4, 4, 256
STEPS = 500
DEV_ROWS = 40

SWEEP = """
name: store
model: {model}
task: {{name: jsonl, path: {task}, loss_references: 3}}
train: {{steps: {steps}, batch_size: 48, schedule: cosine, warmup_steps: 40, adam_beta2: 0.98}}
methods:
  - name: full
    search: {{train.learning_rate: [4.0e-3]}}
stages:
  tune: {{trials: 1}}
"""


def make(folder: Path, e2e: Path, steps: int = STEPS) -> float:
    """Make the model in ``folder``, which must not exist; it appears when it is complete.

    Args:
        folder: For configuration, weights and tokenizer.
        e2e: Folder with the files of E2E.
        steps: Of training.

    Returns:
        Its dev loss per target token.

    Raises:
        ConfigError: There is something at ``folder``, or the training failed.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already; remove it to make the model anew")
    workshop = folder.with_name(f".{folder.name}.partial").absolute()
    shutil.rmtree(workshop, ignore_errors=True)
    task, model = workshop / "task", workshop / "model"
    task.mkdir(parents=True)
    rows = list(_rows(e2e))
    random.Random(0).shuffle(rows)
    # The test split is not read by what runs here, but a task has one.
    for split, part in {"train": rows[DEV_ROWS:], "dev": rows[:DEV_ROWS], "test": rows[:1]}.items():
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    _save_random_model(model, [text for row in rows for text in (row["source"], *row["references"])])
    sweep = workshop / "sweep.yaml"
    sweep.write_text(SWEEP.format(model=json.dumps(str(model)), task=json.dumps(str(task)), steps=steps))
    command = ["run", str(sweep), "--results", str(workshop), "--launcher", "local"]
    subprocess.run([sys.executable, "-m", "bench.cli", *command], check=False)
    loss = _take_weights(workshop / "store", model)
    model.replace(folder)
    shutil.rmtree(workshop)
    return loss


def _rows(e2e: Path) -> Iterator[dict[str, Any]]:
    """Sources with all their texts: the facts unchanged; of E2E, for each text the name and one more slot."""
    for example in Facts(Facts.Config()).load("train"):
        yield {"source": example.source, "references": list(example.references)}
    restaurants: dict[str, list[str]] = {}
    generator = random.Random(0)
    for example in E2E(E2E.Config(path=str(e2e))).load("train"):
        name = next(fact for fact in example.facts if fact[0] == "name")
        others = [fact for fact in example.facts if fact is not name]
        for text in example.references:
            shown = linearise([name, generator.choice(others)] if others else [name])
            restaurants.setdefault(shown, []).append(text)
    for source, texts in restaurants.items():
        yield {"source": source, "references": texts}


def _save_random_model(folder: Path, texts: Sequence[str]) -> None:
    """A Llama with random weights, and a byte-level tokenizer made for these texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=5 * HIDDEN // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def _take_weights(store: Path, model: Path) -> float:
    """Copy the weights that the only trial has trained into the model's folder. Returns the dev loss."""
    from safetensors.torch import load_file, save_file

    records = Store(store).read_all()
    if len(records) != 1 or not isinstance(records[0].outcome, Probed) or records[0].outcome.dev_loss is None:
        raise ConfigError(f"the model could not be trained; see what is above, and {store}")
    trained = read_tensors(tensors_files(Store(store).trials / records[0].trial_id))
    weights = load_file(model / "model.safetensors")
    save_file({name: trained[name] for name in weights}, model / "model.safetensors", metadata={"format": "pt"})
    return records[0].outcome.dev_loss


def main() -> None:
    """Entry of ``python -m bench.tools.small_model``."""
    parser = argparse.ArgumentParser(prog="python -m bench.tools.small_model", description=__doc__)
    parser.add_argument("folder", type=Path, help="for the model; must not exist")
    parser.add_argument("--e2e", type=Path, required=True, help="folder with the files of E2E")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    arguments = parser.parse_args()
    try:
        loss = make(arguments.folder, arguments.e2e, arguments.steps)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{arguments.folder}: dev loss {loss:.3f}")  # noqa: T201 - the answer of a command


if __name__ == "__main__":
    main()
