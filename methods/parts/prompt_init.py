"""The start of soft prompts: token ids whose embeddings or activations become the initial prompt.

P prompt tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import nn

from bench.method import MethodConfig, MethodError

DEFAULT_TEXT = "Write the facts as one short and fluent English text that mentions every one of them :"

# Lester et al. 2021, section 3.2, draw from the 5,000 commonest tokens. A byte-pair vocabulary is ordered by merges, so
# that its first entries are taken for the commonest.
COMMON_TOKENS = 5000

DEFAULT_STD = 0.02


# The value of ``init`` with which each setting has an effect.
INIT_OF_SETTING = {"init_text": "text", "init_std": "normal", "init_range": "uniform", "init_labels": "labels"}


class PromptInitConfig(MethodConfig):
    """Settings of the start of a soft prompt."""

    init: Literal["text", "vocabulary", "normal"] = Field(
        "text",
        description="text: the frozen model's own view of init_text; vocabulary: of sampled common tokens; normal: "
        "random with standard deviation init_std",
    )
    init_text: str | None = Field(None, description="with init: text; null: a default sentence about the task")
    init_std: PositiveFloat | None = Field(
        None, description="with init: normal; null: 0.02, or 1 for the MLP of a prefix"
    )

    @model_validator(mode="after")
    def _effective(self) -> Self:
        for setting, owner in INIT_OF_SETTING.items():
            if getattr(self, setting, None) is not None and self.init != owner:
                raise ValueError(f"{setting} has no effect with init: {self.init}; leave it out, or set init: {owner}")
        return self


def normal_like(like: torch.Tensor, std: float | None) -> torch.Tensor:
    """Normal numbers with this standard deviation (None: 0.02), with shape, dtype and device of ``like``."""
    return torch.randn_like(like) * (std or DEFAULT_STD)


def text_token_ids(text: str | None, num_prompt_tokens: int, tokenizer: Any) -> torch.Tensor:
    """Token ids ``(P,)`` of a text (None: a default sentence), repeated or cut to length.

    Raises:
        MethodError: The text has no tokens, or there is no tokenizer.
    """
    ids = _token_ids(text or DEFAULT_TEXT, tokenizer, "text")
    if not ids:
        raise MethodError(f"init_text: {text!r} has no tokens; give at least one word, or choose init: vocabulary")
    repeats = -(-num_prompt_tokens // len(ids))
    return torch.tensor((ids * repeats)[:num_prompt_tokens])


def common_token_ids(count: int, vocabulary_size: int, tokenizer: Any) -> torch.Tensor:
    """``count`` different ids ``(count,)``, drawn from the commonest; special tokens are left out.

    Raises:
        MethodError: The vocabulary is smaller.
    """
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    common = [token for token in range(vocabulary_size) if token not in special][:COMMON_TOKENS]
    if count > len(common):
        raise MethodError(f"num_prompt_tokens: {count} is more than the {len(common)} common tokens")
    return torch.tensor(common)[torch.randperm(len(common))[:count]]


def initial_token_ids(config: PromptInitConfig, count: int, embedding: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Token ids ``(count,)`` to start a prompt from, on the device of ``embedding`` ``(V, D)``.

    They are zeros on the meta device, where only shapes matter, and if the start is random.

    Raises:
        MethodError: The text has no tokens, the vocabulary is too small, or there is no tokenizer.
    """
    if embedding.is_meta or config.init not in ("text", "vocabulary"):
        return torch.zeros(count, dtype=torch.long, device=embedding.device)
    ids = (
        text_token_ids(config.init_text, count, tokenizer)
        if config.init == "text"
        else common_token_ids(count, len(embedding), tokenizer)
    )
    return ids.to(embedding.device)


def label_embeddings(labels: Sequence[str], count: int, embed: nn.Module, size: int, tokenizer: Any) -> torch.Tensor:
    """``(count, D)``: each label's embedding, averaged over its tokens; the rest are sampled common tokens.

    Source: Lester et al. 2021, section 3.2.

    Args:
        labels: Texts.
        count: P.
        embed: The model's input embedding.
        size: Of the vocabulary.
        tokenizer: Of the base model.

    Raises:
        MethodError: There are more labels than prompt tokens, or a label has no tokens.
    """
    if len(labels) > count:
        raise MethodError(f"init_labels: {len(labels)} labels do not fit into num_prompt_tokens: {count}")
    rows = []
    for label in labels:
        ids = _token_ids(label, tokenizer, "labels")
        if not ids:
            raise MethodError(f"init_labels: {label!r} has no tokens")
        rows.append(embed(torch.tensor(ids)).mean(dim=0, keepdim=True))
    rows.append(embed(common_token_ids(count - len(labels), size, tokenizer)))
    return torch.cat(rows)


def _token_ids(text: str, tokenizer: Any, init: str) -> list[int]:
    if tokenizer is None:
        raise MethodError(f"init: {init} needs the tokenizer of the base model, and there is none")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
