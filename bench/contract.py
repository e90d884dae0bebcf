"""What every method must keep, as checks that run on tiny models. Tests and plugin authors use the same code.

Each check takes a :class:`Subject` and raises :class:`ContractError` with the reason. Models are in float64, so that
what must be equal is equal to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from bench import decode_engine
from bench.architecture import Batch, Pair, Side, accepted_inputs, architecture_of
from bench.decode_search import SearchSettings
from bench.method import Method, trained_parameters
from bench.tiny_models import EOS, FAMILIES, VOCABULARY, WordTokenizer, tiny_model

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
# Sources and targets of different length, so that batching them needs padding. Ids 0 and 1 are padding and end.
PAIRS = (Pair([7, 21, 5, 40], [13, 2, 33]), Pair([11, 3], [60]), Pair([25, 8, 14], [90, 6]))


class ContractError(AssertionError):
    """A method breaks the contract."""


@dataclass(frozen=True)
class Subject:
    """A method with settings, and the family of tiny models to check it on."""

    method_class: type[Method]
    config: Any
    family: str
    dtype: torch.dtype = torch.float64

    def base_model(self) -> Any:
        return tiny_model(self.family, dtype=self.dtype)

    def method(self) -> Method:
        return self.method_class(self.config, WordTokenizer())

    def patched(self, disturbed: bool = True, base: Any = None) -> tuple[Method, Any]:
        """A freshly patched model. ``disturbed`` moves what is trained off its start, which may well be a no-op."""
        method = self.method()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = method.patch(self.base_model() if base is None else base)
            if disturbed:
                for _, parameter in trained_parameters(model):
                    parameter.data += 0.1 * torch.randn_like(parameter)
        return method, model.eval()


def batch_of(model: Any, pairs: Sequence[Pair] = PAIRS, side: Side = "right") -> Batch:
    """Pairs as training feeds them to this kind of model."""
    return architecture_of(model.config).batch(pairs, pad_token_id=0, side=side)


def logits_of(model: Any, batch: Batch, **kwargs: Any) -> torch.Tensor:
    """Logits ``(B, T, V)``, for explicit positions, as training and scoring ask for them."""
    logits: torch.Tensor = model(**accepted_inputs(model, batch.inputs), **kwargs).logits
    return logits


def target_logits(model: Any, pairs: Sequence[Pair] = PAIRS, side: Side = "right", **kwargs: Any) -> torch.Tensor:
    """Logits ``(N, V)`` where the target tokens of all pairs are predicted, one pair after the other."""
    batch = batch_of(model, pairs, side)
    return logits_of(model, batch, **kwargs).flatten(0, 1)[batch.predicting]


def _require_close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    difference, tolerance = float((found - expected).abs().max()), TOLERANCES[found.dtype]
    if not difference <= tolerance:
        raise ContractError(f"{what}: largest difference {difference:.3g}, allowed {tolerance:g}")


def check_logits_are_aligned(subject: Subject) -> None:
    """Logits for exactly the tokens that went in, and a finite loss for labels."""
    _, model = subject.patched()
    batch = batch_of(model)
    ids = read_ids(batch)
    labels = torch.full(ids.shape, -100)
    labels.view(-1)[batch.predicting] = batch.target_ids
    with torch.no_grad():
        outputs = model(**accepted_inputs(model, batch.inputs), labels=labels)
    if outputs.logits.shape != (*ids.shape, VOCABULARY):
        raise ContractError(f"logits have shape {tuple(outputs.logits.shape)} for input of shape {tuple(ids.shape)}")
    if not torch.isfinite(outputs.loss):
        raise ContractError(f"the loss is {float(outputs.loss)}")


def read_ids(batch: Batch) -> torch.Tensor:
    """Ids ``(B, T)`` of the tokens that logits are for: the decoder's, where there is an encoder."""
    return batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"])


def check_is_causal(subject: Subject) -> None:
    """No token sees a later one, in training neither."""
    _, model = subject.patched()
    pair = Pair(PAIRS[0].source_ids, [50, 51, 52, 53])
    batch, changed = batch_of(model, [pair]), batch_of(model, [Pair(pair.source_ids, [50, 61, 62, 63])])
    first = int((read_ids(batch) != read_ids(changed)).nonzero()[0, 1])
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        with torch.no_grad():
            before, after = (_same_dropout(model, each) for each in (batch, changed))
        what = f"later tokens changed the logits of earlier ones (in {mode} mode)"
        _require_close(after[:, :first], before[:, :first], what)
        if torch.equal(after[:, first:], before[:, first:]):
            raise ContractError("other tokens gave the same logits")


def _same_dropout(model: Any, batch: Batch) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return logits_of(model, batch, use_cache=False)


def check_padding_changes_nothing(subject: Subject) -> None:
    """A pair alone and in a padded batch has the same logits, on every side where this kind of model may be padded."""
    _, model = subject.patched()
    with torch.no_grad():
        alone = torch.cat([target_logits(model, [pair]) for pair in PAIRS])
        for side in architecture_of(model.config).padding_sides:
            found = target_logits(model, side=side)
            _require_close(found, alone, f"padding on the {side} changed the logits of a row")


def check_cache_changes_nothing(subject: Subject) -> None:
    """Greedy and beam search give the same tokens with and without cache, alone and in a padded batch."""
    _, model = subject.patched()
    for beams in (1, 3):
        cached, plain = (_generated(model, PAIRS, beams, use_cache) for use_cache in (True, False))
        if not torch.equal(cached, plain):
            raise ContractError(f"generation with {beams} beams depends on the cache")
        for row, pair in enumerate(PAIRS):
            (alone,) = _generated(model, [pair], beams, use_cache=True)
            if _until_end(alone) != _until_end(cached[row]):
                raise ContractError(f"generation with {beams} beams differs between a row alone and in a batch")


def check_beams_share_a_row(subject: Subject) -> None:
    """The batched decoder, in which all beams of a source are queries of one row, finds the texts of ``generate``."""
    _, model = subject.patched()
    if decode_engine.unsupported(model) is not None:
        return
    for beams in (1, 3):
        settings = SearchSettings(ends=(EOS,), beams=beams, max_new_tokens=8)
        found = decode_engine.search(model, [pair.source_ids for pair in PAIRS], settings)
        expected = _generated(model, PAIRS, beams, use_cache=True)
        for texts, tokens in zip(found, expected.tolist(), strict=True):
            if texts[0].tokens != settings.until_end(tokens):
                raise ContractError(
                    f"the batched decoder finds another text than generate with {beams} beams: it gives a model "
                    "several tokens of one position, and says by mask (B, 1, T, L) and position_ids what each may see"
                )


def _generated(model: Any, pairs: Sequence[Pair], beams: int, use_cache: bool) -> torch.Tensor:
    architecture = architecture_of(model.config)
    inputs = architecture.generation_inputs([pair.source_ids for pair in pairs], pad_token_id=0)
    settings = {"num_beams": beams, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": EOS}
    with torch.no_grad():
        output = model.generate(**accepted_inputs(model, inputs), use_cache=use_cache, **settings)
    return architecture.new_tokens(output, inputs)


def _until_end(tokens: torch.Tensor) -> list[int]:
    ids: list[int] = tokens.tolist()
    return ids[: ids.index(EOS)] if EOS in ids else [token for token in ids if token != 0]


def train_a_little(model: Any, steps: int = 3) -> list[float]:
    """A few AdamW steps on one padded batch, for checks and their tests. Returns the losses."""
    optimizer = torch.optim.AdamW([p for _, p in trained_parameters(model)], lr=1e-2, weight_decay=0.0)
    targets = batch_of(model).target_ids
    losses = []
    model.train()
    for _ in range(steps):
        with torch.random.fork_rng():
            torch.manual_seed(4)  # the same dropout at every step, so that losses compare
            loss = nn.functional.cross_entropy(target_logits(model, use_cache=False), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def check_only_declared_is_trained(subject: Subject) -> None:
    """Training lowers the loss, moves every trained tensor and leaves the base weights bit-identical."""
    base = subject.base_model()
    weights = {name: (tensor, tensor.detach().clone()) for name, tensor in _tensors(base)}
    method, model = subject.patched(disturbed=False, base=base)
    trained = dict(trained_parameters(model))
    _require_untouched(weights, model, "patch")
    if not method.trains:
        if trained:
            raise ContractError(f"it says that it trains nothing, and {len(trained)} tensors require grad")
        return
    if not trained:
        raise ContractError("nothing requires grad: it trains nothing")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train_a_little(model, steps=5)
    if not losses[-1] < losses[0]:
        raise ContractError(f"five steps did not lower the loss: {losses[0]:.4f} to {losses[-1]:.4f}")
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter.detach(), before[name])
        if moved and name not in trained:
            raise ContractError(f"{name} moved, and it is not among what the method trains")
        if not moved and name in trained:
            raise ContractError(f"{name} requires grad and did not move: it has no part in the output")
    _require_untouched(weights, model, "training")


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _require_untouched(weights: dict[str, tuple[torch.Tensor, torch.Tensor]], model: nn.Module, when: str) -> None:
    """The base model's own tensors are all still there, and have their values unless they are trained."""
    present = {id(tensor) for _, tensor in _tensors(model)}
    for name, (tensor, value) in weights.items():
        if id(tensor) not in present:
            raise ContractError(f"{when} took {name} out of the model, or put another tensor in its place")
        if not tensor.requires_grad and not torch.equal(tensor.detach(), value):
            raise ContractError(f"{when} changed {name}, which belongs to the base model and is not trained")


def check_state_reloads(subject: Subject) -> None:
    """What is stored makes a freshly patched model give the same logits."""
    method, model = subject.patched(disturbed=False)
    if method.trains:
        train_a_little(model)
    state = {name: tensor.detach().clone() for name, tensor in method.adapter_state(model).items()}
    with torch.random.fork_rng():
        torch.manual_seed(2)  # another start, which loading has to replace
        fresh_method = subject.method()
        fresh = fresh_method.patch(subject.base_model()).eval()
    fresh_method.load_adapter_state(fresh, state)
    with torch.no_grad():
        found, expected = target_logits(fresh), target_logits(model)
    _require_close(found, expected, "a reloaded state gives other logits")


def check_merging_changes_nothing(subject: Subject) -> None:
    """Merged, a model that can be has the same logits; unmerged again, every bit is back."""
    method, model = subject.patched()
    if not method.mergeable:
        return
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = target_logits(model)
        method.merge(model)
        _require_close(target_logits(model), expected, "merging changed the logits")
        method.unmerge(model)
    after = model.state_dict()
    for name, tensor in before.items():
        if name not in after or not torch.equal(after[name], tensor):
            raise ContractError(f"unmerging does not put {name} back as it was")


def check_gradient_checkpointing(subject: Subject) -> None:
    """Recomputing activations changes neither loss nor gradients."""
    gradients: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        method, model = subject.patched()
        if not method.trains:
            return
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(3)  # the same dropout both times
            target_logits(model, use_cache=False).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(
            {name: parameter.grad for name, parameter in trained_parameters(model) if parameter.grad is not None}
        )
    if gradients[0].keys() != gradients[1].keys():
        raise ContractError("gradient checkpointing changed which tensors get a gradient")
    for name, expected in gradients[0].items():
        _require_close(gradients[1][name], expected, f"gradient checkpointing changed the gradient of {name}")


def check_minds_its_own_business(subject: Subject) -> None:
    """Sets no seed of torch or Python, makes no distributed call, leaves the model on its device."""
    states = []
    outside = random.getstate()
    for seed in (3, 4):
        with torch.random.fork_rng(), _no_distributed_calls():
            torch.manual_seed(seed)
            random.seed(seed)
            model = subject.method().patch(subject.base_model())
            states.append((torch.random.get_rng_state(), random.getstate()))
    random.setstate(outside)
    if torch.equal(states[0][0], states[1][0]) or states[0][1] == states[1][1]:
        raise ContractError("it sets a seed: after patching, the random state does not depend on the trial's seed")
    if devices := {parameter.device.type for parameter in model.parameters()} - {"cpu"}:
        raise ContractError(f"it moved parameters to {', '.join(sorted(devices))}")


@contextmanager
def _no_distributed_calls() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise ContractError("it makes a distributed call")

    with ExitStack() as patches:
        for name in ("all_reduce", "broadcast", "all_gather", "all_gather_object", "barrier", "init_process_group"):
            patches.enter_context(mock.patch.object(torch.distributed, name, refuse))
        yield


def check_counts(subject: Subject) -> None:
    """Trained and stored tensors can be counted, also on a model without weights."""
    method, model = subject.patched()
    with torch.device("meta"):
        empty = FAMILIES[subject.family]().requires_grad_(False).eval()
    empty_method = subject.method_class(subject.config)
    patched: nn.Module = empty_method.patch(empty)
    for what, real, counted in (
        ("trained", _sizes(dict(trained_parameters(model))), _sizes(dict(trained_parameters(patched)))),
        ("stored", _sizes(method.adapter_state(model)), _sizes(empty_method.adapter_state(patched))),
    ):
        if real != counted:
            raise ContractError(f"on a model without weights it counts other {what} tensors")


def _sizes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


CHECKS: dict[str, Callable[[Subject], None]] = {
    "logits are aligned": check_logits_are_aligned,
    "causal": check_is_causal,
    "padding changes nothing": check_padding_changes_nothing,
    "cache changes nothing": check_cache_changes_nothing,
    "beams share a row": check_beams_share_a_row,
    "only what is declared is trained": check_only_declared_is_trained,
    "state reloads": check_state_reloads,
    "merging changes nothing": check_merging_changes_nothing,
    "gradient checkpointing": check_gradient_checkpointing,
    "minds its own business": check_minds_its_own_business,
    "counts": check_counts,
}
