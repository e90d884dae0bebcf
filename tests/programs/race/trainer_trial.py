"""One trial as a script around Trainer: train, decode, score, write a file. What people run in a shell loop.

``python -m race.trainer_trial TRIAL.json``; the function of Ray Tune, and of a loop in one process, is the same. What a
process reads for its first trial it keeps for the next ones. Nothing of ours in here.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

# The kinds of peft that the sweep compares, as race.sweep names them.
KINDS: dict[str, dict[str, Any]] = {
    "prefix_tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10},
    "prompt_tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20},
    "lora": {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
}


def run_trial(trial: dict[str, Any]) -> dict[str, Any]:
    """Train and score one trial.

    Args:
        trial: ``model`` and ``data`` (folders), ``method``, ``learning_rate``, ``seed``, ``steps``, ``batch_size``,
            ``max_new_tokens``, ``threads``.

    Returns:
        BLEU, and the seconds of training and of decoding.
    """
    import sacrebleu
    from peft import PeftConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    torch.set_num_threads(trial["threads"])
    set_seed(trial["seed"])
    tokenizer, base = _tokenizer(trial["model"]), copy.deepcopy(_base(trial["model"]))
    model = get_peft_model(base, PeftConfig.from_peft_type(**KINDS[trial["method"]], task_type="CAUSAL_LM"))
    rows, test = _rows(trial["model"], trial["data"]), _read(Path(trial["data"]) / "test.jsonl")
    arguments = TrainingArguments(
        output_dir=str(Path(trial["out"]).with_suffix(".trainer")),
        max_steps=trial["steps"],
        per_device_train_batch_size=trial["batch_size"],
        learning_rate=trial["learning_rate"],
        seed=trial["seed"],
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    started = time.perf_counter()
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
    trained = time.perf_counter()
    texts = _decode(model.eval(), tokenizer, [record["source"] for record in test], trial["max_new_tokens"])
    decoded = time.perf_counter()
    most = max(len(record["references"]) for record in test)
    references = [
        [record["references"][number] if number < len(record["references"]) else None for record in test]
        for number in range(most)
    ]
    result = {
        "bleu": sacrebleu.corpus_bleu(texts, references).score,
        "train_seconds": trained - started,
        "decode_seconds": decoded - trained,
    }
    Path(trial["out"]).write_text(json.dumps(result))
    return result


@functools.cache
def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@functools.cache
def _base(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@functools.cache
def _rows(model: str, data: str) -> list[dict[str, list[int]]]:
    records = _read(Path(data) / "train.jsonl")
    return [_row(_tokenizer(model), record["source"], record["references"][0]) for record in records]


@functools.cache
def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _row(tokenizer: Any, source: str, reference: str) -> dict[str, list[int]]:
    prompt = tokenizer(f"Data: {source}\nText:", add_special_tokens=False)["input_ids"]
    target = [*tokenizer(" " + reference, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt + target,
        "attention_mask": [1] * len(prompt + target),
        "labels": [-100] * len(prompt) + target,
    }


def _decode(model: Any, tokenizer: Any, sources: list[str], max_new_tokens: int) -> list[str]:
    prompts = [f"Data: {source}\nText:" for source in sources]
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [(text.strip().splitlines() or [""])[0] for text in texts]


if __name__ == "__main__":
    run_trial(json.loads(Path(sys.argv[1]).read_text()))
