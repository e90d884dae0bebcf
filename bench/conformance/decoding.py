"""Checks on decoding: with a cache, with beams, and in the batched decoder.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.conformance.subject import (
    PAIRS,
    Subject,
    batch_of,
    broken,
    pairs_of,
    require_close,
    target_logits,
    until_end,
)
from bench.conformance.tiny_models import EOS
from bench.decode import batched
from bench.decode.beam_search import DecodingSettings
from bench.models.architecture import Pair, accepted_inputs, architecture_of
from methods.parts.cache_names import cache_of

# generate returns raw logits in fp32.
ROUNDING_OF_GENERATE = 1e-4


def check_cache_changes_nothing(subject: Subject) -> None:
    """Greedy and beam search give the same tokens with and without cache, alone and in a padded batch."""
    _, model = subject.patched()
    for beams in (1, 3):
        cached, plain = (_generated(model, PAIRS, beams, use_cache) for use_cache in (True, False))
        if not torch.equal(cached.sequences, plain.sequences):
            raise broken(
                f"generation with {beams} beams depends on the cache",
                "the same tokens with and without it",
                "what is computed for a token depends on how many came in the same call",
            )
        if beams > 1:
            require_close(
                cached.sequences_scores,
                plain.sequences_scores,
                f"the scores of {beams} beams depend on the cache",
                "the same with and without it",
                "something kept beside the cache does not follow when beams change their rows",
                ROUNDING_OF_GENERATE,
            )
        new = architecture_of(model.config).new_tokens(cached.sequences, _sources(model, PAIRS))
        for row, pair in enumerate(PAIRS if beams > 1 else ()):
            alone = _generated(model, [pair], beams, use_cache=True)
            (tokens,) = architecture_of(model.config).new_tokens(alone.sequences, _sources(model, [pair]))
            if until_end(tokens) != until_end(new[row]):
                raise broken(
                    f"generation with {beams} beams differs between a row alone and in a batch",
                    "the same text",
                    "padding in front of a source counts, or rows meet",
                )


def check_cached_logits(subject: Subject) -> None:
    """Logits of tokens read one by one with a cache are those of the whole text in one call, also in padded batches."""
    _, model = subject.patched()
    long_target = [(3, 20)] if model.config.is_encoder_decoder else [(12, 6)]
    cases = [[(3, 4)], [*long_target, (4, 5)], [(28, 6), (2, 3), (15, 4)], [(62, 4), (5, 2), (33, 3), (1, 3), (9, 2)]]
    for number, lengths in enumerate(cases):
        pairs = pairs_of(lengths, seed=20 + number)
        with torch.no_grad():
            expected = target_logits(model, pairs)
        require_close(
            _forced_logits(model, pairs).double(),
            expected.double(),
            f"with a cache the logits of {len(pairs)} texts are others than without",
            "those of the whole text in one call",
            "generation computes another function than training: its tokens come one by one, padded on the left, with "
            "positions and a cache",
            ROUNDING_OF_GENERATE,
        )


def check_cache_holds_the_tokens(subject: Subject) -> None:
    """After a call the cache is as long as the base model's, which is the length of the text."""
    _, model = subject.patched()
    batch = batch_of(model, pairs_of([(5, 6)] * 2, seed=1))
    lengths = []
    for each in (model, subject.base_model()):
        with torch.no_grad():
            outputs = each(**accepted_inputs(each, batch.inputs), use_cache=True)
        cache = cache_of(outputs)
        lengths.append(None if cache is None else cache.get_seq_length())
    if lengths[0] != lengths[1]:
        raise broken(
            f"after a call the cache holds {lengths[0]} positions",
            f"{lengths[1]}, as in the base model",
            "tokens of the method's own are put into the cache, where decoders count them as text",
        )


def check_beams_share_a_row(subject: Subject) -> None:
    """The batched decoder finds the texts of ``generate``.

    In it all beams of a source are queries of one row, and a source that ends makes room for another one.
    """
    _, model = subject.patched()
    if batched.unsupported(model) is not None:
        return
    for beams in (1, 3):
        settings = DecodingSettings(ends=(EOS,), beams=beams, max_new_tokens=8)
        hypotheses = batched.decode(model, [pair.source_ids for pair in PAIRS], settings, rows=2)
        generated = _generated(model, PAIRS, beams, use_cache=True).sequences
        expected = architecture_of(model.config).new_tokens(generated, _sources(model, PAIRS))
        for (best, *_), tokens in zip(hypotheses, expected.tolist(), strict=True):
            if best.tokens != settings.until_end(tokens):
                raise broken(
                    f"the batched decoder finds another text than generate with {beams} beams",
                    "the same text",
                    "the method cannot take several tokens of one position, or ignores the mask (B, 1, T, L) and the "
                    "position_ids that say what each may see",
                )


def _sources(model: Any, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    return architecture_of(model.config).generation_inputs([pair.source_ids for pair in pairs], pad_token_id=0)


def _generated(model: Any, pairs: Sequence[Pair], beams: int, use_cache: bool) -> Any:
    settings = {"num_beams": beams, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": EOS}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        return model.generate(**accepted_inputs(model, _sources(model, pairs)), use_cache=use_cache, **settings)


class _Forced:
    """Makes one call of ``generate`` choose the tokens of these texts."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts  # (B, T)
        self.steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf).scatter(1, self.texts[:, self.steps, None], 0.0)
        self.steps += 1
        return forced


def _forced_logits(model: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """The logits ``(N, V)`` of ``generate`` before each target token, one pair after the other."""
    longest = max(len(pair.target_ids) for pair in pairs)
    texts = torch.tensor([[*pair.target_ids, *[2] * (longest - len(pair.target_ids))] for pair in pairs])
    with torch.no_grad():
        output = model.generate(
            **accepted_inputs(model, _sources(model, pairs)),
            use_cache=True,
            do_sample=False,
            max_new_tokens=longest,
            pad_token_id=0,
            eos_token_id=EOS,
            logits_processor=[_Forced(texts)],
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.stack(output.logits, dim=1)  # (B, T, V)
    return torch.cat([row[: len(pair.target_ids)] for row, pair in zip(logits, pairs, strict=True)])
