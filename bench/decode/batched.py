"""The batched decoder: greedy, random and beam search for decoder-only models with a cache that beams share.

It saves work against ``generate`` of transformers, with which its tests compare it: a source runs through the model
once and not once for each beam; no keys are copied when beams part; a finished source leaves the batch.

B sources, K beams, S tokens of the longest source, G positions of generated tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bench.decode.beam_search import Decoding, DecodingSettings, Hypothesis, make_decoding
from bench.decode.cache import BeamCache
from bench.method import positions_of
from bench.models.architecture import takes_source_lengths
from bench.models.shared_heads import sharing_heads
from methods.parts.cache_names import CACHE

# Finished rows stay in the batch until they are more than this share of it, because removing rows copies the cache.
IDLE_FRACTION = 0.2
# Tokens that no open beam descends from leave the cache every so many steps, because removing them copies it, too.
PRUNE_EVERY_STEPS = 8


def unsupported(model: Any) -> str | None:
    """Why this decoder cannot run a model; None if it can."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config
    if config.is_encoder_decoder:
        return "it has an encoder"
    if takes_source_lengths(model):
        return "its prompt stands between source and target"
    if getattr(model, "prompt_in_rows", False):
        return "its prompt is part of every row"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take masks and positions as transformers' newer decoders do"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation!r} takes no mask of its own"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "not all of its layers attend to all tokens"
    return None


@torch.inference_mode()
def decode(
    model: Any, sources: Sequence[list[int]], settings: DecodingSettings, in_step: bool = False
) -> list[list[Hypothesis]]:
    """Continue a batch of sources.

    Args:
        model: A patched decoder in evaluation mode that :func:`unsupported` has nothing against.
        sources: Token ids of each source, at least one.
        settings: How to decode.
        in_step: Whether all ranks call the model equally often, which a model in shards needs. Every rank then calls
            this function, and goes on until the rank with the longest texts has finished.

    Returns:
        The hypotheses of each source, best first: one of greedy decoding, at most K of a beam search.
    """
    results: list[list[Hypothesis]] = [[] for _ in sources]
    with sharing_heads(model):
        batch = _Batch(model, sources, settings)
        unfinished = True
        while unfinished:
            for source, hypotheses in batch.advance():
                results[source] = hypotheses
            unfinished = _anywhere(bool(batch.rows), model.device) if in_step else bool(batch.rows)
            if unfinished:
                batch.read_on()
    return results


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether ``here`` is true on any rank."""
    answer = torch.tensor([here], dtype=torch.int32, device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


class _Batch:
    """The unfinished sources of a batch: choice of tokens, cache, and the tokens that each beam descends from."""

    def __init__(self, model: Any, sources: Sequence[list[int]], settings: DecodingSettings) -> None:
        self.model = model
        self.rows = list(range(len(sources)))  # the number of the source in each row
        self.cache = BeamCache()
        ids, mask = _left_padded(sources, model.device)
        self.source_mask = mask.bool()  # (B, S)
        self.lengths = mask.sum(-1)  # (B,)
        self.decoding: Decoding = make_decoding(settings, sources, model.device)
        self.seen = mask.new_zeros(len(sources), settings.beams, 0, dtype=torch.bool)  # (B, K, G)
        self.finished = mask.new_zeros(len(sources), dtype=torch.bool)  # (B,) rows that are still in the batch
        self.logits = self._read(ids, mask)

    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, 1, V)`` of the tokens after the sources."""
        with _last_position_only(self.model):
            logits: torch.Tensor = self.model(
                input_ids=ids.masked_fill(mask == 0, 0),
                attention_mask=self._model_mask(_causal(self.source_mask)),
                position_ids=positions_of(mask),
                **{CACHE: self.cache},
                use_cache=True,
            ).logits
        return logits

    def advance(self) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Choose the next token of every row. Yields the sources that are finished now, with their hypotheses."""
        if not self.rows:
            return
        step = self.decoding.advance(self.logits.float())
        newly_finished = (step.done & ~self.finished).nonzero()[:, 0].tolist()
        for row in newly_finished:
            yield self.rows[row], self.decoding.hypotheses(row)
        self.finished |= step.done
        parents, self.tokens = self._without_idle_rows(step.parents, step.tokens)
        if self.rows:
            self._descend(parents)

    def read_on(self) -> None:
        """Run the chosen tokens through the model. Without rows a dummy token runs, as other ranks call the model."""
        if self.rows:
            self.logits = self._continue(self.tokens)
            return
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        mask = self._model_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=token.device))
        self.model(
            input_ids=token, attention_mask=mask, position_ids=token, past_key_values=BeamCache(), use_cache=True
        )

    def _without_idle_rows(self, parents: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        idle = int(self.finished.sum())
        if idle < len(self.rows) and idle <= IDLE_FRACTION * len(self.rows):
            return parents, tokens
        rows = (~self.finished).nonzero()[:, 0]
        self.rows = [self.rows[row] for row in rows.tolist()]
        if self.rows:
            self.decoding.keep(rows)
            self.cache.keep_rows(rows)
            self.source_mask, self.lengths, self.seen, self.finished = (
                part[rows] for part in (self.source_mask, self.lengths, self.seen, self.finished)
            )
        return parents[rows], tokens[rows]

    def _descend(self, parents: torch.Tensor) -> None:
        """Each open beam sees the tokens that its parent saw, and its own new token."""
        beams = parents.shape[1]
        seen = self.seen.gather(1, parents[..., None].expand(-1, -1, self.seen.shape[-1]))
        if beams > 1 and self.decoding.length % PRUNE_EVERY_STEPS == 0:
            seen = self._without_dead_positions(seen)
        own = torch.eye(beams, dtype=torch.bool, device=seen.device).expand(len(seen), -1, -1)
        self.seen = torch.cat([seen, own], dim=-1)

    def _without_dead_positions(self, seen: torch.Tensor) -> torch.Tensor:
        alive = seen.any(1)  # (B, G)
        most = int(alive.sum(-1).max())
        positions = (~alive).int().argsort(dim=-1, stable=True)[:, :most]  # those that are seen first, in their order
        self.cache.keep_positions(self.source_mask.shape[1], positions)
        return seen.gather(-1, positions[:, None].expand(-1, seen.shape[1], -1))

    def _continue(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, K, V)`` after ``tokens`` ``(B, K)``. All beams of a source are queries in one row."""
        beams = tokens.shape[1]
        mask = torch.cat([self.source_mask[:, None].expand(-1, beams, -1), self.seen], dim=-1)  # (B, K, S + G)
        logits: torch.Tensor = self.model(
            input_ids=tokens,
            attention_mask=self._model_mask(mask[:, None]),
            position_ids=(self.lengths + self.decoding.length - 1)[:, None].expand(-1, beams),
            **{CACHE: self.cache},
            use_cache=True,
        ).logits
        return logits

    def _model_mask(self, visible: torch.Tensor) -> torch.Tensor:
        """The mask ``(B, 1, T, L)`` in the form that the model's attention takes: boolean, or added to the scores."""
        if self.model.config._attn_implementation != "eager":
            return visible
        dtype = self.model.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _left_padded(sources: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask ``(B, S)`` with padding in front, so that every source ends at the same position."""
    length = max(map(len, sources))
    padding = [[0] * (length - len(source)) for source in sources]
    ids = torch.tensor([pad + list(source) for pad, source in zip(padding, sources, strict=True)])
    mask = torch.tensor([pad + [1] * len(source) for pad, source in zip(padding, sources, strict=True)])
    return ids.to(device), mask.to(device)


def _causal(real: torch.Tensor) -> torch.Tensor:
    """The causal mask ``(B, 1, S, S)`` of tokens ``(B, S)``. Padding sees itself: attention to nothing is undefined."""
    length = real.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=real.device)
    return (past & real[:, None, None, :]) | itself


@contextmanager
def _last_position_only(model: Any) -> Iterator[None]:
    """Inside the block the output projection sees the last position only."""

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][:, -1:], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
