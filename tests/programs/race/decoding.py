"""The decoding part: our batched decoder against ``generate`` of transformers, as users of peft call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.decode import batched as decode_engine
from bench.decode.beam_search import DecodingSettings
from bench.decode.generate import decoding_settings, rows_of
from bench.models.architecture import padded
from bench.models.base import load_tokenizer
from bench.schema.trial import DecodeSpec, ModelSpec
from race import ours, peers
from race.machine import median
from race.training import GateError

SAME_TEXTS = 0.99
Tokens = list[int]


class Decoders:
    """One trained adapter in two models: patched by us, and wrapped by peft.

    Args:
        model: Folder of the base model.
        method: Name of a method, its settings and the folder with its state (race.workload.write_start).
        decode: Beams and the length limit.
    """

    def __init__(self, model: str, method: tuple[str, dict[str, Any], Any], decode: DecodeSpec) -> None:
        name, config, adapter = method
        harness, self.ours = ours.start_of(name, config, model)
        harness.load_adapter_state(self.ours, ours.load_file(adapter / "tuneoff.safetensors"))
        self.ours.eval()
        self.peers = peers.load(model, adapter).eval()
        self.tokenizer = load_tokenizer(ModelSpec(path=model))
        self.decode = decode
        self.settings: DecodingSettings = decoding_settings(self.tokenizer, decode, self.ours)

    def batched(self, sources: Sequence[Tokens]) -> list[Tokens]:
        """Ours, with as many sources at once as a trial on this machine decodes."""
        rows = rows_of(self.ours, sources, self.decode, torch.device("cpu"))
        return [best.tokens for best, *_ in decode_engine.decode(self.ours, sources, self.settings, rows)]

    def generate(self, sources: Sequence[Tokens], batch_size: int) -> list[Tokens]:
        """Theirs, in the order of the sources."""
        texts: list[Tokens] = []
        settings = self.settings.for_transformers()
        for at in range(0, len(sources), batch_size):
            ids, mask = padded(sources[at : at + batch_size], self.tokenizer.pad_token_id, "left")
            with torch.inference_mode():
                output = self.peers.generate(
                    input_ids=ids, attention_mask=mask, pad_token_id=self.tokenizer.pad_token_id, **settings
                )
            texts += [self.settings.until_end(row) for row in output[:, ids.shape[1] :].tolist()]
        return texts


def race(
    decoders: Decoders,
    turns: Sequence[Sequence[dict[str, Any]]],
    batch_sizes: Sequence[int],
    one_by_one: int,
    line_turns: int,
) -> dict[str, Any]:
    """Decode the sources turn by turn, all contenders one after the other in each.

    Args:
        decoders: The models.
        turns: Sources of each turn, with their numbers of references.
        batch_sizes: Of ``generate``; every one of them decodes all sources of a turn.
        one_by_one: How many sources of a turn are also decoded by calls of a single source.
        line_turns: In how many turns one source, of about as many references as the mean (7.45 in the whole test
            split), is also decoded once for each of them, as published scripts do that loop over the lines of a file.

    Raises:
        GateError: Under 99 % of the texts are the same, so that their times cannot be compared.
    """
    sizes = (*batch_sizes, 1)
    seconds: dict[str, list[float]] = {"tuneoff": [], **{f"generate, batch {size}": [] for size in sizes}}
    same, compared = 0, 0
    for number, turn in enumerate(turns):
        sources = [source["ids"] for source in turn]
        texts, took = _timed(lambda: decoders.batched(sources))  # noqa: B023 - called at once
        seconds["tuneoff"].append(took / len(sources))
        for size in sizes:
            name, some = f"generate, batch {size}", sources if size > 1 else sources[:one_by_one]
            theirs, took = _timed(lambda: decoders.generate(some, size))  # noqa: B023 - called at once
            seconds[name].append(took / len(some))
            same += sum(a == b for a, b in zip(texts, theirs, strict=False))
            compared += len(some)
        if number < line_turns:
            usual = min(turn, key=lambda source: abs(source["references"] - 7.45))
            theirs, took = _timed(lambda: decoders.generate([usual["ids"]] * usual["references"], 1))  # noqa: B023
            seconds.setdefault("generate, a call per reference line", []).append(took)
            same += all(text == texts[turn.index(usual)] for text in theirs)
            compared += 1
    if same / compared < SAME_TEXTS:
        raise GateError(
            f"with {decoders.settings.beams} beams {same} of {compared} texts are the same; {SAME_TEXTS:.0%} have to be"
        )
    ours = seconds["tuneoff"]
    return {
        "beams": decoders.settings.beams,
        "max_new_tokens": decoders.settings.max_new_tokens,
        "sources": sum(len(turn) for turn in turns),
        "seconds_per_source": seconds,
        "median_seconds_per_source": {name: median(values) for name, values in seconds.items()},
        "same_texts": same / compared,
        "ratios": {
            name: median([b / a for a, b in zip(ours, values, strict=False)])
            for name, values in seconds.items()
            if name != "tuneoff"
        },
    }


def _timed(work: Callable[[], list[Tokens]]) -> tuple[list[Tokens], float]:
    started = time.perf_counter()
    texts = work()
    return texts, time.perf_counter() - started
