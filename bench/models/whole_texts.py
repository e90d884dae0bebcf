"""Turns whole texts into tokens, with the tokenizer's own call.

A tokenizer makes other tokens of the pieces of a text than of the whole: SentencePiece puts a lone ``▁`` in front of
each piece, and no token crosses the seam of two pieces. Therefore a text is never cut before it is tokenised.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.models.architecture import Architecture, SpecialTokens, plain_ids, special_tokens_around

# Texts to put in front of a target if the tokenizer joins the beginning of the target with the end of its source. The
# first one that it does not join is used.
ANCHORS = ("\n", "a", ".", ":")


@dataclass(frozen=True)
class WholeTexts:
    """Tokens of sources, and of targets after them.

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
        """The special tokens around a text."""
        return special_tokens_around(self.tokenizer)

    @cached_property
    def around_targets(self) -> SpecialTokens:
        """The special tokens around a target, which some tokenizers mark with another language."""
        return special_tokens_around(self._of_targets)

    def source(self, text: str, rendered: bool = False) -> list[int]:
        """What the model reads.

        Args:
            text: The whole of it.
            rendered: A chat template has written its special tokens, so that none is put in front of it.
        """
        if rendered:
            return self._rendered(text)
        own: list[int] = self.tokenizer(text, add_special_tokens=True)["input_ids"]
        return self.architecture.source_of(own, self.around, self.beginning_token)

    def _rendered(self, text: str) -> list[int]:
        ids = plain_ids(self.tokenizer, text)
        before, after = self.around
        if before and ids[: len(before)] == before and not self.beginning_token:
            ids = ids[len(before) :]
        if self.architecture.target_continues_source or (after and ids[-len(after) :] == after):
            return ids
        return [*ids, *after]

    def target(
        self,
        source: str,
        source_ids: Sequence[int],
        reference: str,
        between: str | None = None,
        rendered: bool = False,
    ) -> list[int]:
        """What the model is to write, without special tokens.

        After a source they are the tokens of the joined text after those of the source. If the tokenizer joins source
        and target at the seam, so that this is impossible, the target is tokenised after another text
        (:data:`ANCHORS`). The tokens of the source stay as they are, because generation reads them as well.

        Args:
            source: The text that the model reads.
            source_ids: The tokens of the source.
            reference: The text that the model has to write.
            between: The text between both; None: as this kind of model has it.
            rendered: See :meth:`source`.
        """
        if not self.architecture.target_continues_source:
            return plain_ids(self._of_targets, reference)
        continuation = (self.architecture.before_target if between is None else between) + reference
        whole = self.source(source + continuation, rendered)
        if whole[: len(source_ids)] == source_ids and len(whole) > len(source_ids):
            return whole[len(source_ids) :]
        for anchor in ANCHORS:
            before, whole = plain_ids(self.tokenizer, anchor), plain_ids(self.tokenizer, anchor + continuation)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return plain_ids(self.tokenizer, continuation)

    def cut(self, text: str, kept: int, limit: int) -> str:
        """The longest beginning of a text that has at most ``limit`` tokens, not counting special ones.

        Args:
            text: A text, usually with more tokens.
            kept: So many characters at the beginning are never cut off.
            limit: The number of tokens.
        """
        lengths = range(kept, len(text) + 1)
        if getattr(self.tokenizer, "is_fast", False):
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            end = max(kept, offsets[min(limit, len(offsets)) - 1][1]) if offsets else kept
        else:
            fits = bisect.bisect_right(lengths, limit, key=lambda end: len(plain_ids(self.tokenizer, text[:end])))
            end = lengths[max(0, fits - 1)]
        # A word that is cut may have more tokens than it had as a part of the longer one.
        while end > kept and len(plain_ids(self.tokenizer, text[:end])) > limit:
            end -= 1
        return text[:kept] + text[kept:end].rstrip()

    @cached_property
    def _of_targets(self) -> Any:
        """The tokenizer of targets. That of Marian has other pieces than for sources, that of mBART other marks."""
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "_switch_to_target_mode") or getattr(tokenizer, "tgt_lang", "") is None:
            return tokenizer
        return lambda text, **settings: tokenizer(text_target=text, **settings)
