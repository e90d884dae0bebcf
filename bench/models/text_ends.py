"""Where a generated text ends: which tokens end it, and what of the decoded text counts.

A text ends at an end token of the model or at the first line break, whichever method generates it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from bench.models.architecture import vocabulary_size


def end_token_ids(tokenizer: Any, config: Any, generation_config: Any) -> frozenset[int]:
    """The end tokens that a checkpoint names, wherever it does, as far as the model can say them.

    Chat models end a turn by another token than a text, and say so in ``generation_config`` alone.

    Args:
        tokenizer: Of the model.
        config: Of the model.
        generation_config: Of the model; None where it has none.
    """
    named = (tokenizer, config.get_text_config(decoder=True), config, generation_config)
    found = {end for where in named for end in _ids(getattr(where, "eos_token_id", None))}
    size = vocabulary_size(config)
    return frozenset(end for end in found if end >= 0 and (size is None or end < size))


@functools.lru_cache(maxsize=4)
def line_break_ids(tokenizer: Any, vocabulary: int | None = None) -> frozenset[int]:
    r"""The tokens that bring a line break into a text, e.g. ``\n``, ``.\n`` and the byte token ``<0x0A>``.

    What counts is what a token decodes to between other tokens. Many tokenizers turn the line break of an input into a
    space, so that the token which they make of it says nothing.

    Args:
        tokenizer: Of the model.
        vocabulary: Tokens from this id on are left out: the model cannot say them.
    """
    ids = [token for token in set(tokenizer.get_vocab().values()) if vocabulary is None or token < vocabulary]
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    between = [[*anchor, token, *anchor] for token in ids]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    texts = (
        (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in between)
        if backend is None
        else backend.decode_batch(between, skip_special_tokens=True)  # all at once: vocabularies are large
    )
    return frozenset(token for token, text in zip(ids, texts, strict=True) if "\n" in text)


def first_line(text: str) -> str:
    r"""The text up to its first line break (``\n``, ``\r\n``), without white space around it.

    Other separators that Unicode knows (U+2028, U+0085, form feeds, ...) are part of a text.
    """
    return text.partition("\n")[0].strip()


def _ids(named: Any) -> Iterator[int]:
    """One token id, a list of them, or none."""
    if named is not None:
        yield from named if isinstance(named, list | tuple | set | frozenset) else [named]
