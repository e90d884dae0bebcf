"""Whole texts into tokens, as the tokenizer's own call makes them.

A tokenizer that is shown the pieces of a text one by one gives other tokens than for the whole: SentencePiece puts a
lone ``▁`` in front of each piece, and no token reaches over a seam. So a text is never cut before it is tokenised.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.models.architecture import Architecture, SpecialTokens, plain_ids, special_tokens_around

# In front of a target whose beginning the tokenizer would join with the end of its source; the first that it leaves
# alone is taken.
ANCHORS = ("\n", "a", ".", ":")


@dataclass(frozen=True)
class WholeTexts:
    """Tokens of sources, and of targets behind them.

    Args:
        tokenizer: Of the model.
        architecture: Of the model.
        beginning_token: Whether a source begins with the special tokens that the tokenizer puts there.
    """

    tokenizer: Any
    architecture: Architecture
    beginning_token: bool

    @cached_property
    def around(self) -> SpecialTokens:
        """What the tokenizer puts around a text."""
        return special_tokens_around(self.tokenizer)

    @cached_property
    def around_targets(self) -> SpecialTokens:
        """What it puts around a target; some tokenizers mark it with another language."""
        return special_tokens_around(self._of_targets)

    def source(self, text: str) -> list[int]:
        """What the model reads."""
        own: list[int] = self.tokenizer(text, add_special_tokens=True)["input_ids"]
        return self.architecture.source_of(own, self.around, self.beginning_token)

    def target(self, source: str, source_ids: Sequence[int], reference: str) -> list[int]:
        """What the model is to write, without special tokens.

        Behind a source these are the tokens by which the whole text is longer than its source. Where they cannot be
        told apart, because the tokenizer joins both at the seam, the target is tokenised behind another text
        (:data:`ANCHORS`): what is trained must begin with what is read when texts are generated.

        Args:
            source: The text that the model reads.
            source_ids: Its tokens.
            reference: The text that it is to write.
        """
        if not self.architecture.target_continues_source:
            return plain_ids(self._of_targets, reference)
        continuation = self.architecture.before_target + reference
        whole = self.source(source + continuation)
        if whole[: len(source_ids)] == source_ids and len(whole) > len(source_ids):
            return whole[len(source_ids) :]
        for anchor in ANCHORS:
            before, whole = plain_ids(self.tokenizer, anchor), plain_ids(self.tokenizer, anchor + continuation)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return plain_ids(self.tokenizer, continuation)

    def cut(self, text: str, kept: int, limit: int) -> str:
        """The longest beginning of a text that has at most ``limit`` tokens, special ones apart.

        Args:
            text: Of more tokens.
            kept: Of so many characters nothing is cut off.
            limit: In tokens.
        """
        lengths = range(kept, len(text) + 1)
        if getattr(self.tokenizer, "is_fast", False):
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            end = max(kept, offsets[limit - 1][1])
        else:
            fits = bisect.bisect_right(lengths, limit, key=lambda end: len(plain_ids(self.tokenizer, text[:end])))
            end = lengths[max(0, fits - 1)]
        # A word that is cut may have more tokens than it had as a part of the longer one.
        while end > kept and len(plain_ids(self.tokenizer, text[:end])) > limit:
            end -= 1
        return text[:kept] + text[kept:end].rstrip()

    @cached_property
    def _of_targets(self) -> Any:
        """A tokenizer of targets: with Marian of other pieces than of sources, with mBART between other marks."""
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "_switch_to_target_mode") or getattr(tokenizer, "tgt_lang", "") is None:
            return tokenizer
        return lambda text, **settings: tokenizer(text_target=text, **settings)
