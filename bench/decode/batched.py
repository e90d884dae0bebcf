"""The batched decoder: greedy, random and beam search for decoder-only models with a cache that beams share.

It saves work against ``generate`` of transformers, with which its tests compare it: a source runs through the model
once and not once for each beam; no keys are copied when beams part; a finished source makes room for the next one.

R rows, which are sources that are decoded at once, n of them that are read in one call, K beams, S tokens of the
longest source in a call, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bench.decode.beam_search import Decoding, DecodingSettings, Hypothesis, make_decoding
from bench.decode.cache import Appending, BeamCache, Reading
from bench.models.architecture import takes_source_lengths
from bench.models.shared_heads import FLASH_ATTENTION, masked_instead_of_flash, sharing_heads
from methods.parts.cache_names import CACHE

# Sources are read once this share of the rows is idle: a few together are read faster than each by itself.
REFILL_FRACTION = 0.125
# Sources are read together up to so many tokens, padding included, which bounds the memory of it.
READ_TOKENS = 2048
# When no source waits, finished rows leave the batch once they are more than this share of it, because removing rows
# copies the cache.
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
    if config._attn_implementation not in ("sdpa", "eager", *FLASH_ATTENTION):
        return f"attention {config._attn_implementation!r} takes no mask of its own"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "not all of its layers attend to all tokens"
    return None


@torch.inference_mode()
def decode(
    model: Any,
    sources: Sequence[list[int]],
    settings: DecodingSettings,
    rows: int | None = None,
    in_step: bool = False,
    progress: Callable[[int], None] = lambda finished: None,
) -> list[list[Hypothesis]]:
    """Continue sources, the longest first, so that those that are decoded together have about the same length.

    Args:
        model: A patched decoder in evaluation mode that :func:`unsupported` has nothing against.
        sources: Token ids of each source. There may be none with ``in_step``.
        settings: How to decode.
        rows: How many sources are decoded at once; None: all of them.
        in_step: Whether all ranks call the model equally often, which a model in shards needs. Every rank then calls
            this function, and goes on until the last rank has finished.
        progress: Called with the number of finished sources, whenever others are read and at the end.

    Returns:
        The hypotheses of each source, best first: one of greedy decoding, at most K of a beam search.
    """
    results: list[list[Hypothesis]] = [[] for _ in sources]
    reported_sources = 0
    with masked_instead_of_flash(model), sharing_heads(model):
        batch = _Batch(model, sources, settings, rows or len(sources))
        while _anywhere(batch.unfinished, model.device) if in_step else batch.unfinished:
            if batch.has_room:
                if (finished := len(sources) - batch.unfinished_sources) > reported_sources:
                    progress(reported_sources := finished)
                found = batch.read()
            elif batch.unfinished:
                found = batch.go_on()
            else:
                batch.wait()
                continue
            for source, hypotheses in found:
                results[source] = hypotheses
    progress(len(sources))
    return results


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether ``here`` is true on any rank."""
    answer = torch.tensor([here], dtype=torch.int32, device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


Found = list[tuple[int, list[Hypothesis]]]


class _Batch:
    """The sources that are being decoded, one in each row, and those that wait.

    Args:
        model: The decoder.
        sources: All sources.
        settings: How to decode.
        rows: How many are decoded at once.
    """

    def __init__(self, model: Any, sources: Sequence[list[int]], settings: DecodingSettings, rows: int) -> None:
        self.model, self.sources, self.settings = model, sources, settings
        self.waiting = deque(sorted(range(len(sources)), key=lambda source: -len(sources[source])))
        rows = min(rows, len(sources))
        # The source in each row; None: it is idle. The model computes idle rows too, and nobody reads what comes of it.
        self.occupants: list[int | None] = [None] * rows
        self.cache = BeamCache(Reading(self._numbers([]), rows))
        self.decoding: Decoding = make_decoding(settings, [[]] * rows, model.device)
        self.lengths = self._numbers([0] * rows)  # (R,) of the sources
        self.used = self._numbers([0] * rows)  # (R,) columns that hold tokens
        self.seen = torch.zeros(rows, settings.beams, 0, dtype=torch.bool, device=model.device)  # (R, K, L)
        self.tokens = self._numbers([[0] * settings.beams] * rows)  # (R, K) the last token of each beam
        self.steps = 0

    @property
    def unfinished_sources(self) -> int:
        """How many sources wait or are being decoded."""
        return len(self.waiting) + len(self.occupants) - self.occupants.count(None)

    @property
    def unfinished(self) -> bool:
        """Whether there are such sources."""
        return self.unfinished_sources > 0

    @property
    def has_room(self) -> bool:
        """Whether sources wait, and enough rows are idle."""
        return bool(self.waiting) and self.occupants.count(None) >= max(1, REFILL_FRACTION * len(self.occupants))

    def read(self) -> Found:
        """Read sources into idle rows and choose their first tokens. Returns those that are finished by that."""
        idle = [row for row, source in enumerate(self.occupants) if source is None]
        group = self._next_sources(len(idle))
        rows, lengths = self._numbers(idle[: len(group)]), self._numbers([len(self.sources[each]) for each in group])
        sources = [self.sources[source] for source in group]
        logits = self._read(sources, rows, lengths)
        begun = make_decoding(self.settings, sources, logits.device)
        step = begun.advance(logits.float())
        self.decoding.put(rows, begun)
        self.lengths[rows], self.used[rows], self.tokens[rows] = lengths, lengths, step.tokens
        self._make_room(int(lengths.max()))
        self.seen[rows] = (torch.arange(self.seen.shape[-1], device=lengths.device) < lengths[:, None])[:, None]
        for row, source in zip(idle, group, strict=False):
            self.occupants[row] = source
        return self._finished(step.done.nonzero()[:, 0].tolist(), rows.tolist())

    def _next_sources(self, most: int) -> list[int]:
        """The sources that are read now: they begin with the longest one that waits."""
        longest = max(1, len(self.sources[self.waiting[0]]))
        count = min(most, len(self.waiting), max(1, READ_TOKENS // longest))
        return [self.waiting.popleft() for _ in range(count)]

    def _read(self, sources: Sequence[list[int]], rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, 1, V)`` of the tokens after the sources, which are padded behind."""
        count, longest = len(sources), int(lengths.max())
        ids = self._numbers([[*source, *[0] * (longest - len(source))] for source in sources])
        self.cache.place = Reading(rows, len(self.occupants))
        past = torch.ones(longest, longest, dtype=torch.bool, device=ids.device).tril()
        with _positions_only(self.model, lengths - 1 - longest):
            logits: torch.Tensor = self.model(
                input_ids=ids,
                attention_mask=self._model_mask(past.expand(count, 1, -1, -1)),
                position_ids=torch.arange(longest, device=ids.device).expand(count, -1),
                **{CACHE: self.cache},
                use_cache=True,
            ).logits
        return logits

    def go_on(self) -> Found:
        """Run the last tokens through the model and choose the next. Returns the sources that are finished by that."""
        beams = self.settings.beams
        columns = self.used[:, None] + torch.arange(beams, device=self.used.device)  # (R, K)
        end = int(self.used.max()) + beams
        self._make_room(end)
        self.seen.scatter_(-1, columns[..., None], True)
        self.cache.place = Appending(columns, end)
        # Learned positions have no row for what an idle row counts: before the first one or behind the last one.
        positions = torch.where(self.used > 0, self.lengths + self.decoding.lengths - 1, 0)
        logits = self.model(
            input_ids=self.tokens,
            attention_mask=self._model_mask(self.seen[:, None, :, :end]),
            position_ids=positions[:, None].expand(-1, beams),
            **{CACHE: self.cache},
            use_cache=True,
        ).logits
        step = self.decoding.advance(logits.float())
        self.used += beams
        self.tokens = step.tokens
        self.steps += 1
        found = self._finished(step.done.nonzero()[:, 0].tolist(), range(len(self.occupants)))
        if beams > 1:
            self._descend(step.parents)
        if not self.waiting:
            self._drop_idle_rows()
        return found

    def wait(self) -> None:
        """Call the model as often as other ranks do, with a token that does not count."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        mask = self._model_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=token.device))
        cache = BeamCache(Reading(self._numbers([0]), 1))
        self.model(input_ids=token, attention_mask=mask, position_ids=token, **{CACHE: cache}, use_cache=True)

    def _finished(self, done: Sequence[int], rows: Sequence[int]) -> Found:
        """The sources that are done, of those in these rows, with their hypotheses. Their rows are idle from now on."""
        found: Found = []
        for row in (rows[place] for place in done):
            source = self.occupants[row]
            if source is not None:
                found.append((source, self.decoding.hypotheses(row)))
                self.occupants[row] = None
        if idle := [row for row, source in enumerate(self.occupants) if source is None]:
            self.used[self._numbers(idle)] = 0  # so that an idle row makes no others attend to more columns
        return found

    def _descend(self, parents: torch.Tensor) -> None:
        """Each open beam sees the tokens that its parent saw."""
        self.seen = self.seen.gather(1, parents[..., None].expand(-1, -1, self.seen.shape[-1]))
        if self.steps % PRUNE_EVERY_STEPS == 0 and any(source is not None for source in self.occupants):
            self._drop_dead_columns()

    def _drop_dead_columns(self) -> None:
        lengths = [len(self.sources[source]) for source in self.occupants if source is not None]
        first = min(lengths)  # All beams see the whole source.
        alive = self.seen.any(1)  # (R, L)
        counts = alive.sum(-1)
        self.used = torch.where(self.used > 0, counts, 0)
        columns = (~alive).int().argsort(dim=-1, stable=True)[:, : int(self.used.max())]  # seen first, in their order
        self.cache.keep_columns(first, columns[:, first:])
        self.seen = self.seen.gather(-1, columns[:, None].expand(-1, self.seen.shape[1], -1))

    def _drop_idle_rows(self) -> None:
        idle = self.occupants.count(None)
        if idle < len(self.occupants) and idle <= IDLE_FRACTION * len(self.occupants):
            return
        kept = [row for row, source in enumerate(self.occupants) if source is not None]
        self.occupants = [self.occupants[row] for row in kept]
        if kept:
            rows = self._numbers(kept)
            self.decoding.keep(rows)
            self.cache.keep_rows(rows)
            self.lengths, self.used, self.seen, self.tokens = (
                part[rows] for part in (self.lengths, self.used, self.seen, self.tokens)
            )

    def _make_room(self, columns: int) -> None:
        missing = columns - self.seen.shape[-1]
        if missing > 0:
            self.seen = nn.functional.pad(self.seen, (0, missing))

    def _numbers(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)

    def _model_mask(self, visible: torch.Tensor) -> torch.Tensor:
        """The mask ``(B, 1, T, L)`` in the form that the model's attention takes: boolean, or added to the scores."""
        if self.model.config._attn_implementation != "eager":
            return visible
        dtype = self.model.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


@contextmanager
def _positions_only(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Inside the block the output projection sees one position of each row; ``(n,)``, -1 is the last."""

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        rows = torch.arange(len(positions), device=args[0].device)
        return (args[0][rows, positions][:, None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
