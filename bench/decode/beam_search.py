"""Choosing tokens: greedily, by beam search or at random, by the logits of a batch, as transformers' ``generate`` does.

Nothing here runs a model. A :class:`Decoding` is given the logits of its open beams and chooses the next tokens. Rows
are independent of each other and may have begun at different times, so that a finished row can leave the batch, and
another source can take its place.

B sources, K beams, G new tokens, V vocabulary, N candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from bench.decode.generate_hooks import NoRepeatsInText, NoStopYet, StopsInText
from bench.decode.sampling import drawn, draws_of
from bench.decode.stop_strings import StopStrings

IMPOSSIBLE = -1.0e9  # the score of a candidate that must not win, as in transformers; above -inf, so that it sorts


@dataclass(frozen=True)
class DecodingSettings:
    """How to decode. Meanings and defaults are those of transformers' ``GenerationConfig``, except for one.

    An n-gram counts as repeated only if the generated text has it. With decoder-only models transformers counts the
    n-grams of the source too, so that a text could not repeat a name of n tokens from its source.
    """

    ends: tuple[int, ...]  # token ids that end a text
    beams: int = 1
    max_new_tokens: int = 96
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()  # token ids that are never generated
    stops: StopStrings | None = None  # strings that end a text and that several tokens may spell
    temperature: float = 0.0  # above 0: tokens are drawn, with one beam
    top_p: float = 1.0
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if self.temperature and self.beams > 1:
            raise ValueError("beams search for likely texts, and a temperature draws one: set either")
        if both := set(self.ends) & set(self.banned):
            raise ValueError(f"token ids {sorted(both)} end a text and are banned as well")

    def until_end(self, tokens: list[int]) -> list[int]:
        """Tokens up to and including the first that ends a text."""
        length = next((place + 1 for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: length if self.stops is None else self.stops.length_until_end(tokens[:length])]

    def for_transformers(self) -> dict[str, Any]:
        """The same settings as arguments of ``generate``, but for those of drawing, which depend on the sources."""
        processors: list[Any] = []
        if self.no_repeat_ngram_size:
            processors.append(NoRepeatsInText(self.no_repeat_ngram_size))
        if self.stops is not None and self.min_new_tokens:
            processors.append(NoStopYet(self.stops, self.min_new_tokens))
        beam_settings = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return {
            "do_sample": False,
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens or None,
            "logits_processor": processors or None,
            "stopping_criteria": None if self.stops is None else [StopsInText(self.stops)],
            "bad_words_ids": [[token] for token in self.banned] or None,
            "eos_token_id": list(self.ends) or None,
            **(beam_settings if self.beams > 1 else {}),
        }


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: its tokens up to and including the end, and the score that ranks it."""

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Step:
    """The choice of one step: each new beam continues the beam at ``parents`` with the token at ``tokens``."""

    parents: torch.Tensor  # (B, K) int64, beams of the previous step
    tokens: torch.Tensor  # (B, K) int64
    done: torch.Tensor  # (B,) bool; the hypotheses of these rows are final


class Decoding(ABC):
    """State of greedy or random decoding, or of a beam search, in ``rows`` sources.

    Args:
        settings: How to decode.
        rows: B, sources.
        device: Of the logits.
    """

    of_rows: ClassVar[tuple[str, ...]] = ("tokens", "lengths")
    """The attributes that hold something for each row."""

    def __init__(self, settings: DecodingSettings, rows: int, device: torch.device) -> None:
        self.settings = settings
        shape = (rows, settings.beams, settings.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)  # (B, K, G) of the open beams
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # (B,) new tokens so far
        self._ends = torch.tensor(settings.ends, dtype=torch.long, device=device)
        self._banned = torch.tensor(settings.banned, dtype=torch.long, device=device)

    @abstractmethod
    def advance(self, logits: torch.Tensor) -> Step:
        """Choose the next tokens.

        Args:
            logits: ``(B, K, V)`` float32, overwritten. In the first step ``(B, 1, V)``, for one beam of each source.
        """

    @abstractmethod
    def hypotheses(self, row: int) -> list[Hypothesis]:
        """The hypotheses of a finished row, best first."""

    def keep(self, rows: torch.Tensor) -> None:
        """Remove all rows except these; ``(B,)`` int64."""
        for name in self.of_rows:
            setattr(self, name, getattr(self, name)[rows])

    def put(self, rows: torch.Tensor, begun: Decoding) -> None:
        """Replace what is in these rows by the rows of another decoding with the same settings."""
        for name in self.of_rows:
            getattr(self, name)[rows] = getattr(begun, name)

    def _place(self) -> torch.Tensor:
        """Where each row's next token belongs, ``(B,)``. A row at the limit is finished, whatever happens to it."""
        return self.lengths.clamp(max=self.settings.max_new_tokens - 1)

    def _grow(self) -> None:
        self.lengths = self._place() + 1

    def _at_limit(self) -> torch.Tensor:
        """The rows ``(B,)`` that are as long as texts may become."""
        return self.lengths >= self.settings.max_new_tokens

    def _forbid(self, logits: torch.Tensor) -> None:
        """Make tokens impossible that the settings forbid at this point, in place."""
        settings, never = self.settings, float("-inf")
        if settings.no_repeat_ngram_size:
            histories = self.tokens[:, : logits.shape[1], : int(self.lengths.max())]
            forbid_repeats(logits, histories, self.lengths, settings.no_repeat_ngram_size)
        if settings.banned:
            logits[..., self._banned] = never
        if settings.min_new_tokens and bool((short := self.lengths < settings.min_new_tokens).any()):
            forbidden = short[:, None, None]
            logits[..., self._ends] = logits[..., self._ends].masked_fill(forbidden, never)
            if (completing := self._completing(logits)) is not None:
                logits.masked_fill_(completing & forbidden, never)

    def _is_end(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.isin(tokens, self._ends)

    def _completing(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The tokens that would complete a stop string of each open beam, ``(B, K, V)`` bool; None: none of them."""
        stops = self.settings.stops
        if stops is None or not bool(self.lengths.any()):
            return None
        lengths, histories = self.lengths.tolist(), self.tokens.tolist()
        of_beams = [
            [sorted(stops.completing(tokens[:length])) for tokens in beams]
            for length, beams in zip(lengths, histories, strict=True)
        ]
        if not any(tokens for beams in of_beams for tokens in beams):
            return None
        completing = torch.zeros_like(logits, dtype=torch.bool)
        for row, beams in enumerate(of_beams):
            for beam, tokens in enumerate(beams):
                completing[row, beam, tokens] = True
        return completing


class OneText(Decoding):
    """Chooses one token at each step. The score of a hypothesis is 0, because nothing is ranked."""

    @abstractmethod
    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next tokens ``(B, 1)``."""

    def advance(self, logits: torch.Tensor) -> Step:
        self._forbid(logits)
        completing = self._completing(logits)
        tokens = self._choose(logits)
        self.tokens.scatter_(-1, self._place()[:, None, None], tokens[..., None])
        self._grow()
        done = self._is_end(tokens)[:, 0] | self._at_limit()
        if completing is not None:
            done |= completing.gather(-1, tokens[..., None])[:, 0, 0]
        return Step(torch.zeros_like(tokens), tokens, done)

    def hypotheses(self, row: int) -> list[Hypothesis]:
        return [Hypothesis(self.tokens[row, 0, : int(self.lengths[row])].tolist(), 0.0)]


class GreedyDecoding(OneText):
    """Chooses the likeliest token at each step."""

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)


class RandomDecoding(OneText):
    """Draws a token at each step, see :mod:`bench.decode.sampling`.

    Args:
        settings: How to decode.
        sources: Token ids of each source, by which its draws are known.
        device: Of the logits.
    """

    of_rows: ClassVar[tuple[str, ...]] = (*OneText.of_rows, "draws")

    def __init__(self, settings: DecodingSettings, sources: Sequence[list[int]], device: torch.device) -> None:
        super().__init__(settings, len(sources), device)
        self.draws = draws_of(sources, settings.seed, settings.max_new_tokens).to(device)  # (B, G)

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        draws = self.draws.gather(1, self._place()[:, None])
        return drawn(logits, draws, self.settings.temperature, self.settings.top_p)


class BeamSearch(Decoding):
    """The K best texts by ``log p / length ** length_penalty``.

    In each step, those of the best K continuations of a source that end, or reach the limit of length, compete for the
    K finished texts; the best K continuations that do not end are the open beams. A row is finished

    - with ``early_stopping=True`` as soon as it has K finished texts;
    - with ``False`` when the best open beam, at its present length, would not be among the K finished texts;
    - with ``"never"`` when it would not be among them at the length that favours it most.
    """

    of_rows: ClassVar[tuple[str, ...]] = (
        *Decoding.of_rows,
        "open_scores",
        "finished_tokens",
        "finished_lengths",
        "finished_scores",
        "is_finished",
    )

    def __init__(self, settings: DecodingSettings, rows: int, device: torch.device) -> None:
        super().__init__(settings, rows, device)
        beams = settings.beams
        self.open_scores = torch.zeros(rows, beams, device=device)  # sums of log p
        # By length. A power of fp32 numbers would be rounded differently from transformers' power of Python's numbers.
        norms = [length**settings.length_penalty for length in range(1, settings.max_new_tokens + 1)]
        self._norms = torch.tensor([1.0, *norms], device=device)
        self.finished_tokens = torch.zeros_like(self.tokens)
        self.finished_lengths = torch.zeros(rows, beams, dtype=torch.long, device=device)
        self.finished_scores = torch.full((rows, beams), IMPOSSIBLE, device=device)
        self.is_finished = torch.zeros(rows, beams, dtype=torch.bool, device=device)

    def advance(self, logits: torch.Tensor) -> Step:
        settings = self.settings
        normaliser = logits.logsumexp(-1, keepdim=True)  # before anything is forbidden, as in transformers
        self._forbid(logits)
        ending_scores, ending_parents, ending = self._best(logits[..., self._ends], normaliser)
        endings = [(ending_scores, ending_parents, self._ends[ending])]
        logits[..., self._ends] = float("-inf")
        if (completing := self._completing(logits)) is not None:
            endings.append(self._best(logits.masked_fill(~completing, float("-inf")), normaliser))
            logits[completing] = float("-inf")
        scores, parents, tokens = self._best(logits, normaliser)  # (B, K) each, of those that go on
        all_scores, all_parents, all_tokens = (
            torch.cat(parts, dim=1) for parts in zip((scores, parents, tokens), *endings, strict=True)
        )
        last = self.lengths + 1 >= settings.max_new_tokens
        ends = last[:, None] | (torch.arange(all_scores.shape[1], device=scores.device) >= scores.shape[1])
        best_scores, best = all_scores.topk(settings.beams)  # (B, K)
        best_parents, best_tokens = all_parents.gather(1, best), all_tokens.gather(1, best)
        finishing = self._histories(best_parents, best_tokens)
        self.open_scores, self.tokens = scores, self._histories(parents, tokens)
        self._grow()
        self._finish(best_scores, finishing, ends.gather(1, best))
        return Step(parents, tokens, self._done())

    def _best(self, logits: torch.Tensor, normaliser: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, beams and columns ``(B, K)`` of the best continuations of each source, best first.

        Args:
            logits: ``(B, K, W)`` of W of the tokens; there are fewer than K continuations if K W is smaller.
            normaliser: ``(B, K, 1)``.
        """
        beams = self.settings.beams
        # The best of all beams are among the best of each: two small selections in place of one over K * W.
        best, columns = logits.topk(min(beams, logits.shape[-1]))
        scores = (best - normaliser + self.open_scores[:, : logits.shape[1], None]).flatten(1)
        scores, chosen = scores.topk(min(beams, scores.shape[1]))
        parents = chosen // max(1, best.shape[-1])
        return scores, parents, columns.flatten(1).gather(1, chosen)

    def _histories(self, parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens ``(B, K, G)`` of these beams, with the new tokens appended."""
        place = self._place()[:, None, None].expand(*tokens.shape, 1)
        return _of_beams(self.tokens, parents).scatter_(-1, place, tokens[..., None])

    def _finish(self, scores: torch.Tensor, histories: torch.Tensor, ends: torch.Tensor) -> None:
        """Keep the best K of the finished texts and the continuations that end."""
        beams = self.settings.beams
        scores = scores / self._norms[self.lengths][:, None] + ~ends * IMPOSSIBLE
        self.finished_scores, best = torch.cat([self.finished_scores, scores], dim=1).topk(beams)
        self.finished_tokens = _of_beams(torch.cat([self.finished_tokens, histories], dim=1), best)
        lengths = torch.cat([self.finished_lengths, self.lengths[:, None].expand(-1, beams)], dim=1)
        self.finished_lengths = lengths.gather(1, best)
        self.is_finished = torch.cat([self.is_finished, ends], dim=1).gather(1, best)

    def _done(self) -> torch.Tensor:
        settings = self.settings
        hopeful = settings.early_stopping == "never" and settings.length_penalty > 0
        norms = self._norms[-1] if hopeful else self._norms[self.lengths]
        worst_finished = torch.where(self.is_finished.all(-1), self.finished_scores.min(-1).values, IMPOSSIBLE)
        done: torch.Tensor = ~(self.open_scores[:, 0] / norms > worst_finished) | self._at_limit()
        return done | self.is_finished.all(-1) if settings.early_stopping is True else done

    def hypotheses(self, row: int) -> list[Hypothesis]:
        lengths, scores = self.finished_lengths[row].tolist(), self.finished_scores[row].tolist()
        texts = self.finished_tokens[row].tolist()
        return [
            Hypothesis(tokens[:length], score)
            for tokens, length, score, finished in zip(
                texts, lengths, scores, self.is_finished[row].tolist(), strict=True
            )
            if finished
        ]


def make_decoding(settings: DecodingSettings, sources: Sequence[list[int]], device: torch.device) -> Decoding:
    """Beam search with several beams; with one at random if there is a temperature, else greedy."""
    if settings.temperature:
        return RandomDecoding(settings, sources, device)
    return (GreedyDecoding if settings.beams == 1 else BeamSearch)(settings, len(sources), device)


def forbid_repeats(logits: torch.Tensor, history: torch.Tensor, lengths: torch.Tensor, size: int) -> None:
    """Make every token impossible that would repeat an n-gram of the history, in place.

    Args:
        logits: ``(B, K, V)``.
        history: ``(B, K, H)`` int64.
        lengths: ``(B,)`` int64; what is behind the first so many tokens of a row is no history.
        size: n.
    """
    if history.shape[-1] < size:
        return
    grams = history.unfold(-1, size, 1)  # (B, K, windows, n)
    before = torch.arange(1 - size, 0, device=history.device)
    places = (lengths[:, None] + before).clamp(min=0)[:, None].expand(-1, history.shape[1], -1)
    start = history.gather(-1, places)  # (B, K, n - 1): the next token completes this n-gram
    whole = torch.arange(size, history.shape[-1] + 1, device=history.device) <= lengths[:, None]  # (B, windows)
    repeats = (grams[..., :-1] == start[..., None, :]).all(-1) & whole[:, None]
    vocabulary = logits.shape[-1]
    # n-grams that do not match point at a spare column, where they forbid nothing.
    last = torch.where(repeats, grams[..., -1], vocabulary)
    forbidden = torch.zeros(*logits.shape[:-1], vocabulary + 1, dtype=torch.bool, device=logits.device)
    forbidden.scatter_(-1, last, True)
    logits.masked_fill_(forbidden[..., :-1], float("-inf"))


def _of_beams(tokens: torch.Tensor, beams: torch.Tensor) -> torch.Tensor:
    """The tokens ``(B, N, G)`` of the beams ``(B, N)``, from the tokens ``(B, K, G)`` of all beams."""
    return tokens.gather(1, beams[..., None].expand(-1, -1, tokens.shape[-1]))
