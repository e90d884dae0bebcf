"""Where soft prompts start: token ids whose embeddings or activations become the initial prompt.

P prompt tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator

from bench.method import MethodConfig, MethodError

PromptInit = Literal["text", "vocabulary", "normal"]

DEFAULT_TEXT = "Write the facts as one short and fluent English text that mentions every one of them :"

# Lester et al. 2021, section 3.2, draw from the 5,000 commonest tokens. A byte-pair vocabulary is ordered by merges,
# so that its first entries stand for the commonest.
COMMON_TOKENS = 5000

DEFAULT_STD = 0.02


class PromptInitConfig(MethodConfig):
    """Settings of where a soft prompt starts."""

    init: PromptInit = Field(
        "text",
        description="text: the frozen model's own view of init_text; vocabulary: of sampled common tokens; normal: "
        "random with standard deviation init_std",
    )
    init_text: str | None = Field(None, description="with init: text; None is a default sentence about the task")
    init_std: PositiveFloat | None = Field(None, description="with init: normal; None is 0.02")

    @model_validator(mode="after")
    def _effective(self) -> Self:
        for setting, value, owner in (("init_text", self.init_text, "text"), ("init_std", self.init_std, "normal")):
            if value is not None and self.init != owner:
                raise ValueError(f"{setting} has no effect with init: {self.init}; leave it out, or set init: {owner}")
        return self


def random_prompt(num_prompt_tokens: int, width: int, std: float | None, like: torch.Tensor) -> torch.Tensor:
    """``(P, D)`` normal with this standard deviation (None: 0.02), on the device and in the dtype of ``like``."""
    return torch.randn(num_prompt_tokens, width, dtype=like.dtype, device=like.device) * (std or DEFAULT_STD)


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
