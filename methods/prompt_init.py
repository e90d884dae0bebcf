"""Where soft prompts start: token ids whose embeddings or activations become the initial prompt.

P prompt tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch

from bench.method import MethodConfig, MethodError

PromptInit = Literal["text", "vocabulary", "normal"]

DEFAULT_TEXT = "Write the facts as one short and fluent English text that mentions every one of them :"

# Lester et al. 2021, section 3.2, draw from the 5,000 commonest tokens. A byte-pair vocabulary is ordered by merges,
# so that its first entries stand for the commonest.
COMMON_TOKENS = 5000

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


def require_effective_init(config: ConfigT) -> ConfigT:
    """Refuse ``init_text`` and ``init_std`` where the chosen ``init`` would ignore them."""
    init = config.init  # type: ignore[attr-defined]
    for setting, owner in (("init_text", "text"), ("init_std", "normal")):
        if getattr(config, setting) is not None and init != owner:
            raise ValueError(f"{setting} has no effect with init: {init}; leave it out, or set init: {owner}")
    return config


def initial_token_ids(
    init: PromptInit, text: str | None, num_prompt_tokens: int, embedding: torch.Tensor, tokenizer: Any
) -> torch.Tensor:
    """Token ids to start a prompt from: those of a text, repeated or cut to length, or sampled common ones.

    Args:
        init: ``text`` or ``vocabulary``.
        text: For ``text``; None is a default sentence.
        num_prompt_tokens: P.
        embedding: Input embedding matrix ``(V, D)``; on the meta device only shapes matter and zeros are returned.
        tokenizer: Of the base model.

    Returns:
        ``(P,)`` int64 on the device of ``embedding``.

    Raises:
        MethodError: The text has no tokens, there is no tokenizer, or the vocabulary is smaller than the prompt.
    """
    if embedding.is_meta:
        return torch.zeros(num_prompt_tokens, dtype=torch.long, device="meta")
    if init == "vocabulary":
        candidates = min(COMMON_TOKENS, embedding.shape[0])
        if num_prompt_tokens > candidates:
            raise MethodError(f"num_prompt_tokens: {num_prompt_tokens} is more than the {candidates} common tokens")
        return torch.randperm(candidates)[:num_prompt_tokens].to(embedding.device)
    if tokenizer is None:
        raise MethodError("init: text needs the tokenizer of the base model, and there is none")
    ids: list[int] = tokenizer(text or DEFAULT_TEXT, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodError(f"init_text: {text!r} has no tokens; give at least one word, or choose init: vocabulary")
    repeats = -(-num_prompt_tokens // len(ids))
    return torch.tensor((ids * repeats)[:num_prompt_tokens], device=embedding.device)
