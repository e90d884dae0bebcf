"""Draws tokens at random, the same ones for a source whatever other sources are decoded beside it.

B sources, G positions of new tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def draws_of(sources: Sequence[Sequence[int]], seed: int, steps: int) -> torch.Tensor:
    """A number from 0 to 1 for each token that may be drawn, ``(B, G)`` float64 on the CPU.

    Those of a source follow from its tokens and the seed alone, not from its place in a batch or on a rank.

    Args:
        sources: Token ids of each source.
        seed: Any integer.
        steps: G.
    """
    generator = torch.Generator()
    rows = []
    for source in sources:
        digest = hashlib.sha256(f"{seed}:{','.join(map(str, source))}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        rows.append(torch.rand(steps, dtype=torch.float64, generator=generator))
    return torch.stack(rows) if rows else torch.empty(0, steps, dtype=torch.float64)


def drawn(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Tokens ``(B, ...)`` drawn from ``softmax(logits / temperature)``, of which the likeliest ``top_p`` are kept.

    Those kept are the fewest that are together at least as likely as ``top_p``, as in transformers (Holtzman et al.
    2020, arXiv:1904.09751, section 3.1). The token is the one at which the sum of the probabilities, in the order of
    the vocabulary, exceeds the draw: rounding of logits then hardly ever changes it.

    Args:
        logits: ``(B, ..., V)``; minus infinity where a token is forbidden.
        draws: ``(B, ...)`` from 0 to 1.
        temperature: Above 0.
        top_p: Above 0; 1 keeps all.
    """
    likely = (logits.double() / temperature).softmax(-1)
    if top_p < 1.0:
        ordered, places = likely.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # those before it are enough
        likely = likely.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), 0.0)
    summed = likely.cumsum(-1)
    total = summed[..., -1]
    # Rounded up to the whole sum, a draw would be beyond the last token.
    at = torch.minimum(draws.to(summed.device) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(summed, at[..., None], right=True)[..., 0]
