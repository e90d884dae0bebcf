"""Chat templates as models have them, cut down to what differs between them, and a tokenizer that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import save_tokenizer

# SmolLM2, Qwen 2.5: a system turn of its own where there is none.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3: the beginning token is in the template, and contents are trimmed.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
# Mistral: turns alternate, no system, a space before what the assistant says, no generation prompt.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<end>{% endif %}{% endfor %}"
)
# Qwen 3: reasoning of earlier turns is dropped, and an empty one is put ahead of the last.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{{ text }}{% else %}{{ text }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Qwen 3 Thinking: as Qwen 3, but asked to go on behind <think>.
QWEN3_THINKING = QWEN3.partition("{% if add_generation_prompt %}")[0] + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# DeepSeek R1: the model is asked to go on behind <think>, which turns in a history lack.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{{ m.content.split('</think>')[-1] }}<end>{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
# Gemma: no system turns, another name for the assistant, a turn ends by another token than a text.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# Some fine-tunes: whatever a system says is left out without a word.
SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}\n{% elif m.role == 'assistant' %}"
    "ASSISTANT: {{ m.content }}<end>\n{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
# Mistral 0.3, Nemo: what a system says stands in the turn of the user that is last, and nowhere once it is answered.
MISTRAL_LATER = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<end>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral_later": MISTRAL_LATER,
    "qwen3": QWEN3,
    "qwen3_thinking": QWEN3_THINKING,
    "deepseek": DEEPSEEK,
    "gemma": GEMMA,
    "silent": SILENT,
}
MARKS = ["<s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "<turn>", "</turn>", "<|assistant|>"]
# Of each template, where that is not <end>.
ENDS = dict.fromkeys(("chatml", "qwen3", "qwen3_thinking"), "<|im_end|>") | {"llama": "<|eot|>"}


def chat_tokenizer(folder: Path, name: str) -> Any:
    """A byte-level tokenizer with one of the templates, which puts ``<s>`` in front of a text; saved in the folder."""
    from tokenizers import processors

    tokenizer = save_tokenizer(folder, ends_texts=False)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS, "bos_token": "<s>"})
    tokenizer.eos_token = ENDS.get(name, "<end>")
    beginning = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=beginning
    )
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_chat_model(folder: Path, name: str, family: str = "llama") -> Path:
    """A tiny model with such a tokenizer."""
    import torch

    from bench.conformance.tiny_models import FAMILIES

    tokenizer = chat_tokenizer(folder, name)
    torch.manual_seed(0)
    model = FAMILIES[family](len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder
