"""Parts of prefix tuning by themselves: what layers get that few families have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from soft_prompts import patched_with, prefix_layers
from torch import nn

from bench.schema.search_space import Range
from methods.parts import attention_prefix
from methods.parts.attention_prefix import NotHandedDown, keys_values_of, prefix_mask, widen_mask
from methods.parts.prefix_layers import SharedPrefixAttentionLayer
from methods.parts.prefix_literal import joined_by_token
from methods.prefix_tuning import PrefixTuning


class Recorder(nn.Module):
    """Stands for an attention layer: hands its input to the cache as keys and values, and remembers its calls."""

    layer_idx = 3

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def forward(self, hidden_states: torch.Tensor, past_key_values: Any, **arguments: Any) -> torch.Tensor:
        assert past_key_values.get_seq_length(self.layer_idx) == 0, "nothing is cached before"
        self.calls.append((hidden_states, arguments))
        past_key_values.update(hidden_states[:, None], -hidden_states[:, None], self.layer_idx)
        return hidden_states


def site_of(layer: nn.Module, *order: str, **config: Any) -> Any:
    names = SimpleNamespace(
        mask="attention_mask", cache="past_key_values", order=("hidden_states", *order), has_position_bias=False
    )
    return SimpleNamespace(layer=layer, names=names, role="self", config=SimpleNamespace(**config))


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_layer_gets_its_rotation_as_its_family_has_it(parts: int) -> None:
    layer, states = Recorder(), torch.randn(2, 4, 6)
    rotary: Any = tuple(torch.randn(1, 4, 2) for _ in range(parts)) or None
    keys, values = keys_values_of(site_of(layer, "position_embeddings"), states, rotary)
    assert torch.equal(keys, states[:, None])
    assert torch.equal(values, -states[:, None])
    ((given, arguments),) = layer.calls
    assert given is states, "all rows at once"
    expected = {0: None, 1: rotary and rotary[0], 2: rotary}[parts]
    assert arguments == {"attention_mask": None, "position_embeddings": expected}
    keys_values_of(site_of(layer), states, rotary)
    assert layer.calls[1][1] == {"attention_mask": None}, "this layer takes none"


def test_further_arguments_are_for_one_row_so_that_rows_come_one_by_one() -> None:
    layer, states, further = Recorder(), torch.randn(3, 4, 6), torch.randn(1, 4)
    keys, _ = keys_values_of(site_of(layer), states, None, {"further": further})
    assert torch.equal(keys, states[:, None])
    assert [len(given) for given, _ in layer.calls] == [1, 1, 1]
    assert all(arguments["further"] is further for _, arguments in layer.calls)
    keys_values_of(site_of(layer), states, None, {})
    assert len(layer.calls[3][0]) == 3


def test_an_encoder_without_a_mask_needs_none_for_a_prefix_that_all_see() -> None:
    states = torch.zeros(2, 3, 4)
    layer: Any = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"), is_causal=False, layer_idx=0)
    assert prefix_mask(None, 2, states, None, layer) is None
    layer.is_causal = True
    mask = prefix_mask(None, 2, states, None, layer)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True] * (3 + token) + [False] * (2 - token) for token in range(3)]


def test_where_distances_count_columns_the_prefix_stands_behind_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_prefix, "counts_columns", lambda site: True)
    hidden = torch.zeros(2, 1, 3, 3, dtype=torch.bool)  # true hides
    hidden[1, ..., 0] = True  # padding in front
    hidden |= torch.ones(3, 3, dtype=torch.bool).triu(1)
    call: dict[str, Any] = {"hidden_states": torch.zeros(2, 3, 4), "attention_mask": hidden}
    columns = widen_mask(site_of(Recorder()), call, 2)
    assert columns is not None
    assert columns.tolist() == [0, 1]
    wide = call["attention_mask"]
    assert wide.shape == (2, 1, 3, 5)
    assert torch.equal(wide[0, ..., 2:], hidden[0])
    assert torch.equal(torch.cat([wide[1, ..., :1], wide[1, ..., 3:]], dim=-1), hidden[1])
    assert not wide[0, ..., :2].any()
    assert not wide[1, ..., 1:3].any()


@pytest.mark.parametrize("parametrization", ["embedding", "key_value"])
def test_a_layer_with_an_infix_is_told_who_sees_it(parametrization: str) -> None:
    _, model = patched_with(PrefixTuning, "gpt2", infix=True, parametrization=parametrization)
    layer = prefix_layers(model)[0]
    with pytest.raises(NotHandedDown, match="was not told which tokens see the prompt"):
        layer(torch.zeros(1, 3, 32, dtype=torch.float64))


def test_shared_keys_have_a_mask_of_their_own() -> None:
    class Shared(Recorder):
        kv_shared_layer_index = 0

    site = site_of(Shared(), _attn_implementation="sdpa")
    site.config._attn_implementation = "sdpa"
    layer = SharedPrefixAttentionLayer(site.layer, site, num_prompt_tokens=2)
    assert not layer.infix
    call = {"hidden_states": torch.zeros(1, 2, 4), "shared_kv_states": {0: (torch.zeros(1, 1, 6, 4), None)}}
    mask = layer._causal_mask(call)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    site.config._attn_implementation = "flash_attention_2"
    assert layer._causal_mask(call) is None
    with pytest.raises(NotHandedDown, match="Shared 3 was not told"):
        SharedPrefixAttentionLayer(site.layer, site, 2, infix=True)(torch.zeros(1, 2, 4))


def test_an_mlp_gives_a_layer_its_keys_also_where_the_decoder_hands_nothing_down() -> None:
    _, model = patched_with(PrefixTuning, "gpt2", parametrization="mlp", mlp_hidden_size=16)
    layers = prefix_layers(model)
    assert len(layers) > 1
    for layer in layers:
        (reparametrization,) = layer.made_by
        for given, made in zip(layer._keys_values(None), reparametrization()[layer.index], strict=True):
            assert torch.equal(given, made)
        handed: Any = [(torch.zeros(1), torch.ones(1))] * len(layers)
        assert layer._keys_values({layer.site.role: handed}) is handed[layer.index]


def test_an_argument_of_the_prompt_is_joined_along_the_axis_of_tokens() -> None:
    prompt, tokens = torch.ones(1, 2, 3, dtype=torch.float64), torch.zeros(4, 5, 3)
    together = joined_by_token(prompt, tokens, 2, 5)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([torch.ones(4, 2, 3), tokens], dim=1))
    second = joined_by_token(torch.ones(1, 7, 2), torch.zeros(4, 7, 5), 2, 5)
    assert torch.equal(second, torch.cat([torch.ones(4, 7, 2), torch.zeros(4, 7, 5)], dim=2))
    assert joined_by_token(torch.ones(1, 3), tokens, 2, 5) is tokens, "it has no such axis"


def test_learning_rates_are_searched_from_a_thousandth_to_a_tenth() -> None:
    rates = PrefixTuning.search_space["train.learning_rate"]
    assert isinstance(rates, Range)
    assert (rates.low, rates.high) == (1e-3, 1e-1)
    assert PrefixTuning.Config().num_prompt_tokens == 10


@pytest.mark.parametrize(("path", "fusable"), [("fused", True), ("literal", False)])
def test_trials_share_a_pass_on_the_fused_path_alone(path: Any, fusable: bool) -> None:
    method = PrefixTuning(PrefixTuning.Config(path=path), None)  # type: ignore[arg-type]
    assert method.fusable is fusable
