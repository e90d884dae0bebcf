"""LoReFT against a transcription of the paper's equation, and the places where it edits hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bench.conformance.subject import PAIRS, batch_of, logits_of, pairs_of, target_logits
from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError, trained_parameters
from bench.models.architecture import Pair
from methods.loreft import IntervenedBlock, Intervention, LoReFT, reflected

WIDTH = 32


def patched(dtype: torch.dtype = torch.float64, family: str = "llama", **config: Any) -> Any:
    torch.manual_seed(0)
    return LoReFT(LoReFT.Config(**{"rank": 3, "first": 2, "last": 3, **config})).patch(tiny_model(family, dtype=dtype))


def interventions(model: Any) -> dict[str, Intervention]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Intervention)}


class Equation2(nn.Module):
    """``h + R^T (W h + b - R h)`` for one text, R by torch's orthogonal parametrisation, as in pyreft."""

    def __init__(self, ours: Intervention) -> None:
        super().__init__()
        rank = ours.turn.shape[1]
        holder = nn.Module()
        holder.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(WIDTH, rank, dtype=torch.float64)))
        self.rotate = nn.utils.parametrizations.orthogonal(holder)
        # The same start: torch keeps a whole orthogonal matrix, whose first columns are R^T.
        signs = nn.functional.pad(ours.start.diagonal(), (0, WIDTH - rank), value=1.0)
        frame = reflected(ours.start, torch.diag(signs))
        self.rotate.parametrizations.weight[0].base.copy_(frame)
        self.source = nn.Linear(WIDTH, rank, dtype=torch.float64)
        self.source.load_state_dict({"weight": ours.weight.detach(), "bias": ours.bias.detach()})

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        rotation = self.rotate.weight.T
        return h + (self.source(h) - h @ rotation.T) @ rotation


def places_of(length: int, first: int, last: int) -> tuple[list[int], list[int]]:
    """As pyreft's ``get_intervention_locations``."""
    first, last = min(length // 2, first), min(length // 2, last)
    return list(range(first)), list(range(length - last, length))


def reference(model: Any, pair: Pair, edits: list[dict[str, Equation2]]) -> torch.Tensor:
    """Logits of a pair at its targets; each block's output is edited by hand at the places of the source."""
    first, last = places_of(len(pair.source_ids), 2, 3)

    def edit(of_block: dict[str, Equation2]) -> Any:
        def hook(_: Any, __: Any, states: torch.Tensor) -> torch.Tensor:
            rows = list(states[0])
            for name, places in (("first", first), ("last", last)):
                edit_one = of_block.get(name, of_block.get("tied"))
                for place in places if edit_one is not None else ():
                    rows[place] = edit_one(states[0, place])  # type: ignore[misc]
            return torch.stack(rows)[None]

        return hook

    hooks = [
        block.register_forward_hook(edit(of_block)) for block, of_block in zip(model.model.layers, edits, strict=True)
    ]
    try:
        return target_logits(model, [pair])
    finally:
        for hook in hooks:
            hook.remove()


def three_steps(parameters: Any, loss_of: Any) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_equal_to_the_equation_at_the_start_and_after_three_steps(tied: bool) -> None:
    model, base = patched(tied=tied), tiny_model("llama")
    edits = [
        {name: Equation2(intervention) for name, intervention in block.interventions.items()}
        for block in model.modules()
        if isinstance(block, IntervenedBlock)
    ]
    targets = torch.tensor([token for pair in PAIRS for token in pair.target_ids])
    theirs = nn.ModuleList([each for of_block in edits for each in of_block.values()])
    assert [set(of_block) for of_block in edits] == ([{"tied"}] * 2 if tied else [{"first", "last"}, {"last"}])

    def of_theirs() -> torch.Tensor:
        return torch.cat([reference(base, pair, edits) for pair in PAIRS])

    torch.testing.assert_close(target_logits(model), of_theirs(), atol=1e-9, rtol=0)
    start = target_logits(model).detach()
    three_steps(
        [parameter for _, parameter in trained_parameters(model)],
        lambda: nn.functional.cross_entropy(target_logits(model), targets),
    )
    three_steps(theirs.parameters(), lambda: nn.functional.cross_entropy(of_theirs(), targets))
    assert float((target_logits(model) - start).detach().abs().max()) > 1e-2
    torch.testing.assert_close(target_logits(model), of_theirs(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("family", "side"), [("llama", "left"), ("llama", "right"), ("t5", "right")])
def test_only_the_first_and_last_tokens_of_the_prompt_are_edited(family: str, side: Any) -> None:
    lengths = [(1, 3), (2, 2), (5, 4), (20, 1)]
    model = patched(family=family, layers=[0])
    pairs = pairs_of(lengths, seed=4)
    (block,) = [module for module in model.modules() if isinstance(module, IntervenedBlock)]
    seen: list[torch.Tensor] = []
    hooks = [
        block.base_block.register_forward_hook(lambda _, __, output: seen.append(states_of(output))),
        block.register_forward_hook(lambda _, __, output: seen.append(states_of(output))),
    ]
    batch = batch_of(model, pairs, side)
    with torch.no_grad():
        logits_of(model, batch)
    for hook in hooks:
        hook.remove()
    edited = (seen[0] != seen[1]).any(-1)
    for row, (length, _) in enumerate(lengths):
        offset = int((batch.inputs["attention_mask"][row].cumsum(0) == 0).sum())
        first, last = places_of(length, 2, 3)
        assert edited[row].nonzero().flatten().tolist() == [offset + place for place in first + last]


def states_of(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_r_stay_orthonormal_in_every_precision(dtype: torch.dtype) -> None:
    model = patched(dtype, rank=5)
    for intervention in interventions(model).values():
        with torch.no_grad():
            intervention.turn.add_(torch.randn_like(intervention.turn))
        rotation = intervention.rotation()
        torch.testing.assert_close(rotation.T @ rotation, torch.eye(5), atol=1e-5, rtol=0)


def test_settings_choose_blocks_and_tensors() -> None:
    model = patched(layers=[-2], tied=False, last=0)
    (name,) = interventions(model)
    assert name == "model.layers.0.interventions.first"
    assert sum(parameter.numel() for _, parameter in trained_parameters(model)) == 2 * 3 * WIDTH + 3
    with pytest.raises(ValueError, match="first: 0 and last: 0 edit nothing"):
        LoReFT.Config(first=0, last=0)
    assert list(interventions(patched(last=0))) == ["model.layers.0.interventions.first"]
    with pytest.raises(MethodError, match="for the first tokens of a prompt reaches no target"):
        patched(layers=[-1], last=0)
    with pytest.raises(MethodError, match="layers: 2 is not among the 2 blocks of LlamaModel"):
        patched(layers=[2])
    with pytest.raises(MethodError, match="rank: 33 is more than the 32 dimensions"):
        patched(rank=33)
