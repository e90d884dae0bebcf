"""Prefix and prompt tuning of encoder-decoder models against independent statements, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from disturbed import disturb
from soft_prompts import TOLERANCE, patched, prefix_layers, prompt_of

from bench.conformance.method_checks import batch_of, logits_of, target_logits
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import trained_parameters
from bench.models.architecture import Side, padded
from methods.parts.attention_sites import attention_sites
from methods.prefix_tuning import PrefixTuning
from methods.prompt_tuning import PromptTuning

FAMILIES = ["t5", "bart"]


def test_every_kind_of_attention_gets_a_prefix_of_its_own() -> None:
    model = patched(PrefixTuning, "bart")
    roles = [layer.site.role for layer in prefix_layers(model)]
    assert roles == ["encoder", "encoder", "decoder", "cross", "decoder", "cross"]
    assert len(list(trained_parameters(model))) == 6
    assert [site.role for site in attention_sites(tiny_model("t5"))] == roles


@pytest.mark.parametrize("layers", [None, [0], [-1]], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_path_equals_literal_path(family: str, attention: str, layers: list[int] | None) -> None:
    outputs, gradients = [], []
    for path in ("fused", "literal"):
        model = patched(PrefixTuning, family, attention, path=path, layers=layers)
        logits = target_logits(model)
        logits.logsumexp(-1).sum().backward()
        outputs.append(logits.detach())
        gradients.append([parameter.grad for _, parameter in trained_parameters(model)])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-7, rtol=0)  # T5's norms are taken in float32
    for fused, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, literal, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_does_what_its_base_layer_does_with_the_prompt_in_front(family: str) -> None:
    """The base layer itself, T5's with its bias by position, sees prompt and tokens as one text."""
    model = patched(PrefixTuning, family, num_prompt_tokens=3)
    x, source = torch.randn(2, 5, 24).double(), torch.randn(2, 4, 24).double()
    for layer in prefix_layers(model)[:1] + prefix_layers(model)[2:4]:  # of the first encoder and decoder layer
        base, names = layer.base_attention_layer, layer.site.names
        prompt = layer.prompt_embeddings.weight.expand(2, -1, -1)
        if layer.site.role == "cross":
            layer_output = layer(x, key_value_states=source, **{names.mask: None})[0]
            expected = base(x, key_value_states=torch.cat([prompt, source], dim=1), **{names.mask: None})[0]
        else:
            layer_output = layer(x, **{names.mask: None})[0]
            causal = torch.ones(8, 8).tril().bool()[None, None] if layer.site.role == "decoder" else None
            expected = base(torch.cat([prompt, x], dim=1), **{names.mask: causal})[0][:, 3:]
        torch.testing.assert_close(layer_output, expected, atol=TOLERANCE, rtol=0)


def test_the_decoder_of_t5_starts_as_if_the_initial_text_stood_in_front() -> None:
    """With the bias by position, which its first layer makes and the others share."""
    text = "write the facts"
    words = torch.tensor([WordTokenizer()(text)["input_ids"]])
    base, model = tiny_model("t5"), tiny_model("t5")
    PrefixTuning(PrefixTuning.Config(num_prompt_tokens=3, init_text=text), WordTokenizer()).patch(model).eval()
    for layer in prefix_layers(model):
        if layer.site.role == "cross":
            layer.site.replace(layer.base_attention_layer)
    tokens = torch.tensor([[0, 21, 5, 40, 13]])
    with torch.no_grad():
        encoded = base.encoder(words).last_hidden_state
        together = torch.cat([words, tokens], dim=1)
        expected = base.decoder(together, encoder_hidden_states=encoded).last_hidden_state[:, 3:]
        found = model.decoder(tokens, encoder_hidden_states=encoded).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "side"), [("t5", "right"), ("t5", "left"), ("bart", "right")])
def test_a_prompt_equals_concatenation_at_the_input_of_the_encoder(family: str, side: Side) -> None:
    model, base = patched(PromptTuning, family, num_prompt_tokens=3), tiny_model(family)
    prompt = prompt_of(model)
    rows = ([7, 21, 5, 40], [11, 3], [25, 8, 14])
    ids, mask = padded(rows, 0, side)
    decoder_ids = torch.tensor([[0, 13, 2], [0, 60, 9], [0, 90, 6]])
    with torch.no_grad():
        computed_logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
        for row, tokens in enumerate(rows):
            embeddings = base.get_encoder().get_input_embeddings()(torch.tensor([tokens]))
            together = torch.cat([prompt[None], embeddings], dim=1)
            expected = base(inputs_embeds=together, decoder_input_ids=decoder_ids[row : row + 1]).logits[0]
            torch.testing.assert_close(computed_logits[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method_class", [PrefixTuning, PromptTuning])
@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "llama", "gemma3"])
def test_generation_with_a_static_cache(family: str, method_class: Any) -> None:
    model = patched(method_class, family)
    ids, mask = padded([[7, 21, 5, 40], [11, 3]], 0, "left" if family in ("gpt2", "llama", "gemma3") else "right")
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "disable_compile": True}
    for beams in (1, 2):
        expected = model.generate(ids, attention_mask=mask, num_beams=beams, **settings)
        generated = model.generate(ids, attention_mask=mask, num_beams=beams, cache_implementation="static", **settings)
        assert torch.equal(generated, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_the_source_are_computed_once(family: str) -> None:
    model = patched(PrefixTuning, family)
    calls: list[int] = []
    layers = [layer.base_attention_layer for layer in prefix_layers(model) if layer.site.role == "cross"]
    for layer in layers:
        keys = layer.k if family == "t5" else layer.k_proj
        keys.register_forward_hook(lambda _, args, output: calls.append(args[0].shape[1]))
    model.generate(torch.tensor([[7, 21, 5, 40]]), do_sample=False, min_new_tokens=5, max_new_tokens=5)
    assert sorted(calls) == [4, 4, 10, 10], "once for the source and once for the prompt, in both layers"


def test_the_mlp_has_a_part_for_every_kind_of_attention() -> None:
    model = patched(PrefixTuning, "bart", parametrization="mlp", mlp_hidden_size=16)
    tops = {name.partition(".embedding")[0] for name, _ in trained_parameters(model) if ".embedding" in name}
    assert tops == {"model.encoder.prefix_encoder", "model.decoder.prefix_decoder", "model.decoder.prefix_cross"}
    before = logits_of(model, batch_of(model)).detach()
    disturb(model)
    assert not torch.equal(logits_of(model, batch_of(model)), before)
