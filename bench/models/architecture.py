"""Kinds of base models: source and target are one sequence, or the inputs of an encoder and a decoder.

The kind of a model decides how pairs become a batch, and what the inputs and the new tokens of generation are. The rest
of the harness is the same for all kinds.

B batch, T tokens, S source tokens, N target tokens of the batch.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from bench.method import positions_of

Side = Literal["left", "right"]
SpecialTokens = tuple[list[int], list[int]]  # the special tokens before a text, and those after it


# Kinds of models whose tokens never see later ones, and whose configuration has a setting for that nevertheless.
CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese", "reformer", "trocr"})


class ArchitectureError(ValueError):
    """The configuration of a base model lacks a setting that its kind needs."""


@dataclass(frozen=True)
class Pair:
    """One source with one reference, in tokens. The target ends with the end token."""

    source_ids: list[int]
    target_ids: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.source_ids) + len(self.target_ids)


@dataclass(frozen=True)
class Batch:
    """Padded pairs, and the positions at which a target token is predicted, where alone logits are needed."""

    inputs: dict[str, torch.Tensor]  # keyword arguments of the model, see accepted_inputs
    predicting: torch.Tensor  # (N,) int64 into the flattened (B, T) of the logits: where each target token is predicted
    target_ids: torch.Tensor  # (N,) int64

    def to(self, device: torch.device) -> Batch:
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        predicting, target_ids = (part.to(device, non_blocking=True) for part in (self.predicting, self.target_ids))
        return Batch(inputs, predicting, target_ids)


class Architecture(ABC):
    """A kind of base model."""

    auto_class: ClassVar[str]
    """The class of transformers that loads such a model."""

    padding_sides: ClassVar[tuple[Side, ...]]
    """The side of padding that does not change the base model's answer."""

    before_target: ClassVar[str]
    """The text between a source and a target."""

    target_continues_source: ClassVar[bool]
    """Whether a target's tokens are the tokens of the joined text after those of the source."""

    @abstractmethod
    def source_of(self, own: list[int], around: SpecialTokens, beginning_token: bool) -> list[int]:
        """The tokens that the model reads for a text.

        Args:
            own: The tokens of the text by the tokenizer's own call.
            around: The special tokens among them.
            beginning_token: Whether the model reads the special tokens before the text.
        """

    @abstractmethod
    def whole_target(self, ids: list[int], around: SpecialTokens, end: int) -> list[int]:
        """A target with the special tokens around it that the model knows. It ends with the end token."""

    @abstractmethod
    def open_target(self, ids: list[int], around: SpecialTokens) -> list[int]:
        """A target of which nothing says where it ends, e.g. a label."""

    @abstractmethod
    def batch(self, pairs: Sequence[Pair], pad_token_id: int, side: Side = "right") -> Batch:
        """A batch of pairs, padded on this side to the longest."""

    @abstractmethod
    def padded_tokens(self, pairs: Sequence[Pair]) -> int:
        """The number of tokens in the batch of these pairs, padding included."""

    @abstractmethod
    def generation_inputs(self, sources: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
        """The inputs of ``generate`` for these sources."""

    @property
    def generation_settings(self) -> dict[str, int]:
        """The settings of ``generate`` that this kind of model needs."""
        return {}

    @abstractmethod
    def new_tokens(self, output: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The generated part ``(B, G)`` of the output of ``generate`` for ``inputs``."""


@dataclass(frozen=True)
class DecoderOnly(Architecture):
    """Source and target are one sequence, e.g. GPT-2, Llama."""

    auto_class = "AutoModelForCausalLM"
    padding_sides = ("right", "left")
    before_target = " "
    target_continues_source = True

    def source_of(self, own: list[int], around: SpecialTokens, beginning_token: bool) -> list[int]:
        """See the base class. Tokens after the text are left out, because the target follows; none occurs twice."""
        before, after = around
        text = own[len(before) : len(own) - len(after)]
        return text if not beginning_token or text[: len(before)] == before else [*before, *text]

    def whole_target(self, ids: list[int], around: SpecialTokens, end: int) -> list[int]:
        return [*ids, end]

    def open_target(self, ids: list[int], around: SpecialTokens) -> list[int]:
        return ids

    def batch(self, pairs: Sequence[Pair], pad_token_id: int, side: Side = "right") -> Batch:
        input_ids, attention_mask = padded([pair.source_ids + pair.target_ids for pair in pairs], pad_token_id, side)
        length = input_ids.shape[1]
        predicting: list[int] = []
        for row, pair in enumerate(pairs):
            padding = length - pair.num_tokens if side == "left" else 0
            first = row * length + padding + len(pair.source_ids) - 1
            predicting.extend(range(first, first + len(pair.target_ids)))
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions_of(attention_mask),
            "source_lengths": _lengths([pair.source_ids for pair in pairs]),
        }
        return Batch(inputs, torch.tensor(predicting), _joined_targets(pairs))

    def padded_tokens(self, pairs: Sequence[Pair]) -> int:
        return len(pairs) * max(pair.num_tokens for pair in pairs)

    def generation_inputs(self, sources: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = padded(sources, pad_token_id, "left")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "source_lengths": _lengths(sources)}

    def new_tokens(self, output: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return output[:, inputs["input_ids"].shape[1] :]


@dataclass(frozen=True)
class EncoderDecoder(Architecture):
    """The encoder reads the source, the decoder writes the target, e.g. T5, BART.

    Sources and targets have the special tokens that the tokenizer puts around a text. Padding is on the right, because
    learned absolute positions count it.
    """

    decoder_start_token_id: int

    auto_class = "AutoModelForSeq2SeqLM"
    padding_sides = ("right",)
    before_target = ""
    target_continues_source = False

    def source_of(self, own: list[int], around: SpecialTokens, beginning_token: bool) -> list[int]:
        return own if beginning_token else own[len(around[0]) :]

    def whole_target(self, ids: list[int], around: SpecialTokens, end: int) -> list[int]:
        before, after = around
        whole = [*before, *ids, *after]
        return whole if whole[-1:] == [end] else [*whole, end]

    def open_target(self, ids: list[int], around: SpecialTokens) -> list[int]:
        return [*around[0], *ids]

    def batch(self, pairs: Sequence[Pair], pad_token_id: int, side: Side = "right") -> Batch:
        if side not in self.padding_sides:
            raise ValueError(f"an encoder-decoder batch is padded on the right, not on the {side}")
        input_ids, attention_mask = padded([pair.source_ids for pair in pairs], pad_token_id, side)
        shifted = [[self.decoder_start_token_id, *pair.target_ids[:-1]] for pair in pairs]
        decoder_input_ids, decoder_mask = padded(shifted, pad_token_id, side)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        return Batch(inputs, decoder_mask.flatten().nonzero().flatten(), _joined_targets(pairs))

    def padded_tokens(self, pairs: Sequence[Pair]) -> int:
        longest = (max(len(pair.source_ids) for pair in pairs), max(len(pair.target_ids) for pair in pairs))
        return len(pairs) * sum(longest)

    def generation_inputs(self, sources: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = padded(sources, pad_token_id, "right")
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @property
    def generation_settings(self) -> dict[str, int]:
        return {"decoder_start_token_id": self.decoder_start_token_id}

    def new_tokens(self, output: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return output[:, 1:]


def architecture_of(config: Any) -> Architecture:
    """The kind of model that a configuration of transformers describes.

    Raises:
        ArchitectureError: An encoder-decoder does not say which token its decoder starts with, or the model is an
            encoder.
    """
    if not getattr(config, "is_encoder_decoder", False):
        if getattr(config, "is_decoder", None) is False and config.model_type not in CAUSAL_ANYWAY:
            raise ArchitectureError(
                f"in {config.model_type} tokens see later ones, so that it is no language model; one that was trained "
                "as a decoder has is_decoder: true in its config.json"
            )
        return DecoderOnly()
    if config.decoder_start_token_id is None:
        raise ArchitectureError(
            f"{config.model_type} is an encoder-decoder whose config.json has no decoder_start_token_id"
        )
    return EncoderDecoder(config.decoder_start_token_id)


def takes_source_lengths(model: Any) -> bool:
    """Whether the model's forward takes ``source_lengths`` ``(B,)``.

    A decoder does not know where the source ends. A method that needs this patches the model so that its forward, and
    thereby ``generate``, accepts these lengths.
    """
    return "source_lengths" in inspect.signature(model.forward).parameters


def accepted_inputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs without ``source_lengths``, unless the model's forward takes them."""
    if takes_source_lengths(model):
        return inputs
    return {name: tensor for name, tensor in inputs.items() if name != "source_lengths"}


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, each ``(B, T)`` int64, padded on this side to the longest row."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    return ids, mask


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def special_tokens_around(tokenizer: Any) -> SpecialTokens:
    """The special tokens before and after a text, e.g. none and ``</s>`` (T5), ``<s>`` and ``</s>`` (BART).

    Raises:
        ArchitectureError: The tokens of a text with special tokens around it differ from those without.
    """
    plain, full = plain_ids(tokenizer, "text"), tokenizer("text", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise ArchitectureError(f"the tokenizer reads 'text' as {plain}, and as {full} with special tokens around it")


def vocabulary_size(config: Any) -> int | None:
    """Rows of the embedding, of the decoder if there are two; None if the configuration does not say."""
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return size if isinstance(size, int) else None


def context_length(config: Any) -> int | None:
    """The number of positions of a model, or of its decoder; None if the configuration sets no limit."""
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return most if isinstance(most, int) else None


def _lengths(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows])


def _joined_targets(pairs: Sequence[Pair]) -> torch.Tensor:
    return torch.tensor([token for pair in pairs for token in pair.target_ids])
