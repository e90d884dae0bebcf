"""The end of a generated text: finds the tokens that end it, and cuts the decoded text there.

A text ends at an end token of the model or at the first of the stop strings (``decode.stop``), for all methods. The
stop string of data-to-text is a line break.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bench.models.architecture import vocabulary_size

# What tokenizers decode bytes to that are no whole character, and the most bytes of a character.
NO_CHARACTER, MOST_BYTES = "\ufffd", 4
# How SentencePiece writes a byte of what it has no piece for. Its decoder reads a run of them whole or not at all.
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


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


@functools.lru_cache(maxsize=4)
def token_bytes(tokenizer: Any, vocabulary: int | None = None) -> dict[int, bytes]:
    """The bytes that each token adds to a text. Those of a part of a character are no text of their own."""
    return {
        token: _bytes_of(tokenizer.convert_ids_to_tokens(token), text) if NO_CHARACTER in text else text.encode()
        for token, text in token_texts(tokenizer, vocabulary)
    }


def _bytes_of(token: str, text: str) -> bytes:
    """Of a byte token of SentencePiece or of a token of byte-level BPE; of others those of their text."""
    if byte := BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in token) if all(map(letters.__contains__, token)) else text.encode()


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


@functools.lru_cache(maxsize=16)
def stop_token_ids(tokenizer: Any, stops: tuple[str, ...], vocabulary: int | None = None) -> frozenset[int]:
    """The tokens whose text contains a whole stop string, and special tokens, which have no text, that are named so."""
    texts = token_texts(tokenizer, vocabulary) if stops else ()
    named = {stop.strip() for stop in stops}
    special = {
        token: str(added) for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special
    }
    return frozenset(
        token for token, text in texts if any(stop in text for stop in stops) or special.get(token) in named
    )


@functools.lru_cache(maxsize=256)
def tokens_beginning_with(tokenizer: Any, rest: bytes, vocabulary: int | None = None) -> frozenset[int]:
    """The tokens whose bytes begin with the rest of a stop string."""
    return frozenset(token for token, own in token_bytes(tokenizer, vocabulary).items() if own.startswith(rest))


@functools.lru_cache(maxsize=4)
def _byte_tokens(tokenizer: Any) -> frozenset[int]:
    return frozenset(token for name, token in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(name))


def last_bytes(tokenizer: Any, tokens: Sequence[int], count: int, vocabulary: int | None = None) -> bytes:
    """The end of the text of tokens in UTF-8, with the bytes of a character that its last tokens have only begun.

    Args:
        tokenizer: Of the model.
        tokens: Of the text.
        count: So many tokens are read at least, if there are so many.
        vocabulary: The number of tokens that the model can generate; None: all of its tokenizer.
    """
    start = max(0, len(tokens) - count)
    while start and tokens[start] in _byte_tokens(tokenizer):
        start -= 1
    tokens = tokens[start:]
    begun, text = 0, text_of(tokenizer, tokens)
    while text.endswith(NO_CHARACTER) and begun < min(len(tokens), MOST_BYTES - 1):
        begun += 1
        text = text_of(tokenizer, tokens[:-begun])
    known = token_bytes(tokenizer, vocabulary) if begun else {}
    return text.encode() + b"".join(known.get(token, b"") for token in tokens[len(tokens) - begun :])


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
