"""Checks on what logits may depend on, in every mode and at many lengths.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.conformance.subject import (
    LONG_PAIRS,
    MODES,
    PAIRS,
    TRAINING_MODES,
    Mode,
    Subject,
    batch_of,
    broken,
    disturb,
    is_random,
    logits_in,
    logits_of,
    pairs_of,
    read_ids,
    require_close,
    seeded,
    target_logits,
)
from bench.conformance.tiny_models import EOS, VOCABULARY
from bench.models.architecture import Batch, Pair, accepted_inputs, architecture_of

# Checkpointing recomputes layers one by one, so that fewer cases suffice for it.
CALLED_IN_FULL: tuple[Mode, ...] = ("evaluation", "training")


def check_logits_are_aligned(subject: Subject) -> None:
    """Logits have the input's length and the base model's dtype, do not depend on labels, and are not overwritten."""
    base = subject.base_model()
    _, model = subject.patched(base=base)
    batch = batch_of(model)
    ids = read_ids(batch)
    labels = torch.full(ids.shape, -100)
    labels.view(-1)[batch.predicting] = batch.target_ids
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        with torch.no_grad(), seeded(5):
            plain = logits_of(model, batch)
        for name, module in base.named_modules():
            if module.training != (mode == "training"):
                raise broken(
                    f"after a call in {mode} mode {name or 'the base model'} is in the other mode",
                    "all of the base model in one mode: dropout depends on it",
                    "forward or a train() of its own switches modules",
                )
        if plain.shape != (*ids.shape, VOCABULARY):
            raise broken(
                f"logits have shape {tuple(plain.shape)} for input of shape {tuple(ids.shape)} in {mode} mode",
                f"{(*ids.shape, VOCABULARY)}: one row for each token that went in",
                "tokens of the method's own are among the outputs, or some were dropped",
            )
        if plain.dtype != subject.dtype:
            raise broken(
                f"logits are {plain.dtype} in {mode} mode",
                f"{subject.dtype}, which the base model's are",
                "a cast such as .float() or a parameter of a fixed dtype; take the dtype of what comes in",
            )
        for filled in (labels, labels.roll(1, 0).masked_fill(labels == -100, 9)):
            with torch.no_grad(), seeded(5):
                outputs = model(**accepted_inputs(model, batch.inputs), labels=filled)
            if not torch.isfinite(outputs.loss):
                raise broken(f"the loss is {float(outputs.loss)}", "a finite one", "labels meet other positions")
            require_close(
                outputs.logits,
                plain,
                f"logits depend on labels (in {mode} mode)",
                "the same with any labels and without",
                "forward looks at labels; the loop gives none",
            )
    model.eval()
    _require_logits_are_kept(model, batch)


def _require_logits_are_kept(model: Any, batch: Batch) -> None:
    with torch.no_grad():
        first = logits_of(model, batch)
        kept = first.clone()
        logits_of(model, _other_tokens(batch))
    if not torch.equal(first, kept):
        raise broken(
            "a later call changed the logits of an earlier one",
            "a new tensor from each call",
            "forward writes into a buffer that it gives away",
        )


def _other_tokens(batch: Batch) -> Batch:
    """A batch of the same shape with other tokens; special tokens stay."""
    inputs = {
        name: torch.where(tensor > EOS, 2 + (tensor + 11) % (VOCABULARY - 2), tensor) if "ids" in name else tensor
        for name, tensor in batch.inputs.items()
        if name != "position_ids"
    }
    return Batch({**batch.inputs, **inputs}, batch.predicting, batch.target_ids)


def check_is_causal(subject: Subject) -> None:
    """No token sees a later one, in evaluation and in training, at any length."""
    pair = Pair(PAIRS[0].source_ids, [50, 51, 52, 53])
    (long,) = pairs_of([(2, 98)], seed=3)
    for mode in MODES:
        _, model = subject.patched(checkpointing=mode == MODES[-1])
        short_rows = [pair, Pair(pair.source_ids, [50, 61, 62, 63])]
        _require_causal(mode, model, short_rows, together=False)
        _require_causal(mode, model, [long, _changed_from(long, 60)], together=False)
        if mode in CALLED_IN_FULL and not is_random(mode, model):
            # One batch works only without dropout, which would differ between rows.
            cuts = (2, 14, 30, 47, 62, 90)
            _require_causal(mode, model, [long, *(_changed_from(long, cut) for cut in cuts)], together=True)


def _changed_from(pair: Pair, cut: int) -> Pair:
    changed = [2 + (token + 17) % (VOCABULARY - 2) for token in pair.target_ids[cut:]]
    return Pair(pair.source_ids, [*pair.target_ids[:cut], *changed])


def _require_causal(mode: Mode, model: Any, rows: Sequence[Pair], together: bool) -> None:
    """Each row has the logits of the first row, up to the first token that differs."""
    ids = read_ids(batch_of(model, rows))
    batches = [rows] if together else [[row] for row in rows]
    logits = [row for batch in batches for row in logits_in(mode, model, batch_of(model, batch))]
    for row in range(1, len(rows)):
        first = int((ids[row] != ids[0]).nonzero()[0, 0])
        require_close(
            logits[row][:first],
            logits[0][:first],
            f"later tokens changed the logits of earlier ones (in {mode} mode), in a text of {ids.shape[1]} tokens",
            "logits that depend on the tokens up to their own",
            "something is computed over all tokens of the text, such as a mean, or a mask is lost",
        )
        if not together and torch.equal(logits[row][first:], logits[0][first:]):
            raise broken(
                f"other tokens gave the same logits (in {mode} mode)",
                "other logits",
                "the result of an earlier call is given again, or the input is ignored",
            )


def check_padding_changes_nothing(subject: Subject) -> None:
    """A pair has the same logits alone and in a padded batch, with padding on every side that the model allows."""
    _, model = subject.patched()
    few, many = LONG_PAIRS[:2], [*PAIRS, *LONG_PAIRS[:3], *PAIRS[:2]]
    with torch.no_grad():
        alone = {id(pair): target_logits(model, [pair]) for pair in (*PAIRS, *LONG_PAIRS)}
        for side in architecture_of(model.config).padding_sides:
            for pairs in (PAIRS, few, LONG_PAIRS, many):
                require_close(
                    target_logits(model, pairs, side=side),
                    torch.cat([alone[id(pair)] for pair in pairs]),
                    f"padding on the {side} changed the logits of a row in a batch of {len(pairs)}",
                    "the logits of the row alone",
                    "positions or means count padding, or rows of the batch meet",
                )


def check_rows_do_not_meet(subject: Subject) -> None:
    """The logits of a row do not depend on the other rows of the batch, in evaluation and in training."""
    cases = [pairs_of([(3, 4)] * rows, seed=rows) for rows in (2, 3, 4, 5, 8)]
    cases += [pairs_of([(20, 25)] * 2, seed=9), LONG_PAIRS]
    others = {id(case): pairs_of([(len(p.source_ids), len(p.target_ids)) for p in case], seed=77) for case in cases}
    for mode in MODES:
        _, model = subject.patched(checkpointing=mode == MODES[-1])
        for case in cases if mode in CALLED_IN_FULL else (cases[1], cases[-1]):
            kept = 0 if len(case) % 2 else len(case) - 1
            replaced = [pair if row == kept else others[id(case)][row] for row, pair in enumerate(case)]
            logits, expected = (logits_in(mode, model, batch_of(model, pairs))[kept] for pairs in (replaced, case))
            require_close(
                logits,
                expected,
                f"the other rows of a batch of {len(case)} changed the logits of a row (in {mode} mode)",
                "each row by itself",
                "something is computed over the rows of the batch, such as a mean or a common choice",
            )


def check_training_computes_what_evaluation_does(subject: Subject) -> None:
    """Without random numbers, logits in training, and with gradients enabled, are those of evaluation."""
    _, model = subject.patched()
    batches = [batch_of(model, PAIRS), batch_of(model, LONG_PAIRS), batch_of(model, LONG_PAIRS[2:3])]
    expected = [logits_in("evaluation", model, batch) for batch in batches]
    for batch, wanted in zip(batches, expected, strict=True):
        require_close(
            _where_real(logits_of(model, batch, use_cache=True).detach(), batch),
            _where_real(wanted, batch),
            "logits in evaluation depend on whether gradients are enabled or a cache is filled",
            "the same logits",
            "a branch on torch.is_grad_enabled() or use_cache",
        )
    for mode in TRAINING_MODES:
        _, model = subject.patched(checkpointing=mode == MODES[-1])
        if is_random(mode, model):
            continue
        for batch, wanted in zip(batches, expected, strict=True):
            require_close(
                _where_real(logits_in(mode, model, batch), batch),
                _where_real(wanted, batch),
                f"logits in {mode} are others than in evaluation",
                "the same function, since nothing is drawn at random",
                "a branch on training, on gradients or on checkpointing: another model is scored than was trained",
            )
        logits_in("evaluation", model, batches[0])
        with seeded(9):
            disturb(model)
        require_close(
            logits_in("evaluation", model, batches[0]),
            logits_in(mode, model, batches[0]),
            f"after the trained tensors have moved, logits in evaluation are others than in {mode}",
            "the same function, since nothing is drawn at random",
            "evaluation uses a value that was computed before the last step",
        )


def _where_real(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits ``(N, V)`` at the targets. Those at padding have no meaning."""
    return logits.flatten(0, 1)[batch.predicting]


def check_evaluation_draws_nothing(subject: Subject) -> None:
    """In evaluation logits do not depend on the random state."""
    _, model = subject.patched()
    if is_random("evaluation", model):
        raise broken(
            "logits in evaluation depend on the random state",
            "the same logits from the same call",
            "dropout or noise that ignores whether the model trains",
        )


def check_calls_do_not_meet(subject: Subject) -> None:
    """A call gives the same logits as in a model that was not called before: nothing is kept from earlier calls."""
    _, model = subject.patched()
    first = batch_of(model)
    second = _other_tokens(first)
    with torch.no_grad():
        expected_first, expected_second = (logits_of(subject.patched()[1], batch) for batch in (first, second))
        for batch, expected in ((first, expected_first), (second, expected_second), (first, expected_first)):
            _require_no_memory(logits_of(model, batch), expected)
        reused = Batch(
            {name: tensor.clone() for name, tensor in first.inputs.items()}, first.predicting, first.target_ids
        )
        _require_no_memory(logits_of(model, reused), expected_first)
        for name, tensor in second.inputs.items():
            reused.inputs[name].copy_(tensor)  # the same tensors in memory, with other tokens
        _require_no_memory(logits_of(model, reused), expected_second)
        logits_of(model, batch_of(model, LONG_PAIRS))
        _require_no_memory(logits_of(model, first), expected_first)


def _require_no_memory(logits: torch.Tensor, expected: torch.Tensor) -> None:
    require_close(
        logits,
        expected,
        "a call's logits depend on the calls before it",
        "those of a model that was not called before",
        "a value kept between calls, by shape, by id or for good, that the next call should compute anew",
    )


def check_models_do_not_meet(subject: Subject) -> None:
    """Patching, calling or changing a model does not change another patched model of the same process."""
    _, model = subject.patched(seed=1)
    batch = batch_of(model)
    with torch.no_grad():
        expected = logits_of(model, batch)
        _, other = subject.patched(seed=2)
        with seeded(8):
            disturb(other)
        logits_of(other, batch)
        require_close(
            logits_of(model, batch),
            expected,
            "patching and calling a second model changed the logits of the first",
            "models that do not know of each other",
            "something of a model is kept in the class or the module, such as a list of layers",
        )
        _, alone = subject.patched(seed=1)
        require_close(
            logits_of(alone, batch),
            expected,
            "the same patch under the same seed gives another model the next time",
            "the same model",
            "a counter, a clock or a value kept in the class or the module takes part, or numbers from numpy, which "
            "trials do not seed",
        )


def check_padding_token_does_not_matter(subject: Subject) -> None:
    """The id of the padding token changes no logits, and in a text it is a token like others."""
    _, model = subject.patched()
    pairs = [*PAIRS, Pair([0, 9, 0], [5, 0, 8]), Pair([4, 6, EOS], [7, EOS])]
    for mode in ("evaluation", "training"):
        if mode == "training" and is_random(mode, model):
            continue
        with torch.no_grad():
            single = [batch_of(model, [pair]) for pair in pairs]
            alone = torch.cat([_where_real(logits_in(mode, model, each), each) for each in single])
            for side in architecture_of(model.config).padding_sides:
                for token in (0, EOS, 37):
                    batch = batch_of(model, pairs, side, pad_token_id=token)
                    require_close(
                        _where_real(logits_in(mode, model, batch), batch),
                        alone,
                        f"logits depend on which token is padding: id {token}, on the {side}, in {mode} mode",
                        "the same whatever stands where attention_mask is 0",
                        "padding is recognised by a token id instead of attention_mask",
                    )


def check_mask_and_positions(subject: Subject) -> None:
    """Without a mask all tokens are real; without positions they are 0, 1, 2, ...; given positions have an effect."""
    _, model = subject.patched()
    base = subject.base_model()
    (pair,) = pairs_of([(5, 20)], seed=4)
    batch = batch_of(model, [pair])
    for mode in ("evaluation", "training"):
        expected = logits_in(mode, model, batch)
        for absent in (("attention_mask",), ("position_ids",), ("attention_mask", "position_ids")):
            require_close(
                logits_in(mode, model, _without(batch, absent)),
                expected,
                f"without {' and '.join(absent)} an unpadded text has other logits (in {mode} mode)",
                "the same as with a mask of ones and positions from 0",
                "a default is missing for an argument that may be None",
            )
        if "position_ids" not in batch.inputs:
            continue
        gaps = batch.inputs["position_ids"] * 3
        spread = Batch({**batch.inputs, "position_ids": gaps}, batch.predicting, batch.target_ids)
        of_base = [logits_of(base, each) for each in (batch, spread)]
        if not torch.equal(*of_base) and torch.equal(logits_in(mode, model, spread), expected):
            raise broken(
                f"other position_ids give the same logits (in {mode} mode)",
                "positions to count, as they do in the base model",
                "forward drops position_ids or computes its own",
            )


def _without(batch: Batch, names: Sequence[str]) -> Batch:
    kept = {name: tensor for name, tensor in batch.inputs.items() if name not in names}
    return Batch(kept, batch.predicting, batch.target_ids)


def check_precisions(subject: Subject) -> None:
    """In fp32 and bf16 the model trains, and its logits have the base model's dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        lower = replace(subject, dtype=dtype)
        method, model = lower.patched()
        batch = batch_of(model)
        try:
            logits = logits_of(model.train(), batch, use_cache=False)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1)[batch.predicting].float(), batch.target_ids)
            if method.trains:
                loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise broken(
                f"a model in {dtype} does not train: {error}",
                f"a method that works in whatever dtype the model has ({dtype} is one that sweeps use)",
                "a tensor of a fixed dtype; give it that of the weights beside it, or cast it to that of its input",
            ) from error
        if logits.dtype != dtype:
            raise broken(
                f"logits are {logits.dtype} in a model of {dtype}",
                f"{dtype}",
                "a cast or a parameter of a fixed dtype lifts what it meets",
            )
        if not torch.isfinite(loss):
            raise broken(f"the loss is {float(loss)} in {dtype}", "a finite one", "a number too large for this dtype")
