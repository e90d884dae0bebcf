"""The end of a generated text: finds the tokens that end it, and cuts the decoded text there.

A text ends at an end token of the model or at the first of the stop strings (``decode.stop``), for all methods. The
stop string of data-to-text is a line break.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from bench.models.architecture import vocabulary_size


def end_token_ids(tokenizer: Any, config: Any, generation_config: Any) -> frozenset[int]:
    """All end tokens that the files of a checkpoint name and that the model can generate.

    Chat models end a turn by another token than a text, and name it only in ``generation_config``.

    Args:
        tokenizer: Of the model.
        config: Of the model.
        generation_config: Of the model; None if it has none.
    """
    named = (tokenizer, config.get_text_config(decoder=True), config, generation_config)
    ends = {end for where in named for end in _ids(getattr(where, "eos_token_id", None))}
    size = vocabulary_size(config)
    return frozenset(end for end in ends if end >= 0 and (size is None or end < size))


@functools.lru_cache(maxsize=4)
def token_texts(tokenizer: Any, vocabulary: int | None = None) -> tuple[tuple[int, str], ...]:
    r"""Each token with the text that it adds, e.g. ``\n``, ``.\n``, and ``\n`` again for the byte token ``<0x0A>``.

    A token's text is its decoded text between other tokens. Encoding a text would not find it, because many tokenizers
    turn the line break of an input into a space.

    Args:
        tokenizer: Of the model.
        vocabulary: Tokens from this id on are left out, because the model cannot generate them.
    """
    ids = [token for token in set(tokenizer.get_vocab().values()) if vocabulary is None or token < vocabulary]
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = len(text_of(tokenizer, anchor))
    after = len(text_of(tokenizer, [*anchor, *anchor])) - before
    between = [[*anchor, token, *anchor] for token in ids]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    texts = (
        (text_of(tokenizer, tokens) for tokens in between)
        if backend is None
        else backend.decode_batch(between, skip_special_tokens=True)  # all at once: vocabularies are large
    )
    return tuple((token, text[before : len(text) - after]) for token, text in zip(ids, texts, strict=True))


@functools.lru_cache(maxsize=16)
def stop_token_ids(tokenizer: Any, stops: tuple[str, ...], vocabulary: int | None = None) -> frozenset[int]:
    """The tokens whose text contains a whole stop string."""
    texts = token_texts(tokenizer, vocabulary) if stops else ()
    return frozenset(token for token, text in texts if any(stop in text for stop in stops))


@functools.lru_cache(maxsize=256)
def tokens_beginning_with(tokenizer: Any, rest: str, vocabulary: int | None = None) -> frozenset[int]:
    """The tokens whose text begins with the rest of a stop string."""
    return frozenset(token for token, text in token_texts(tokenizer, vocabulary) if text.startswith(rest))


def first_stop(text: str, stops: Sequence[str]) -> str | None:
    """The stop string that comes first in a text; None if there is none."""
    places = [(text.index(stop), stop) for stop in stops if stop in text]
    return min(places)[1] if places else None


def until_stop(text: str, stops: Sequence[str]) -> str:
    r"""The text up to its first stop string, without white space around it.

    Nothing else ends it: with ``\n``, for example, other separators of Unicode (U+2028, U+0085, form feeds, ...) are
    part of a text.
    """
    stop = first_stop(text, stops)
    return (text if stop is None else text.partition(stop)[0]).strip()


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without special tokens."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ids(named: Any) -> Iterator[int]:
    """One token id, a list of them, or none."""
    if named is not None:
        yield from named if isinstance(named, list | tuple | set | frozenset) else [named]
