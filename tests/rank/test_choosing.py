"""Labels by likelihood: what a model finds likeliest is chosen, with any method; five of them are compared exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import chat_tokenizer
from fakes import trial, varied
from in_process import run_here
from one_rank import CPU
from scipy.stats import binomtest

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.measure.phases import PhaseMeter
from bench.models.architecture import DecoderOnly, Pair, accepted_inputs
from bench.models.base import load_model, load_tokenizer
from bench.models.tokens import Tokenization, tokenization
from bench.plugins.registry import load_method, resolve
from bench.rank.choosing import Chooser, shares_of
from bench.rank.context import RankContext
from bench.rank.data import read_data
from bench.rank.trial import _Trial, run_trials
from bench.report.budget import budget
from bench.report.columns import metric_columns
from bench.report.configurations import comparisons
from bench.report.significance_table import pair_note
from bench.schema.record import Completed, TrialResult
from bench.schema.trial import ModelSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.statistics.significance import significance
from bench.store.outbox import member_prefix
from bench.store.predictions import read_predictions
from bench.store.records import Store
from bench.task import ChoicesConfig, Example, TaskConfig

LABELS = ("Rome", "Oslo", "Romeo")
EXAMPLES = [
    Example(f"{n}", (), text, (LABELS[0],), choices=LABELS) for n, text in enumerate(("Ann is", "Bob", "Ann is"))
]


def by_hand(model: Any, tokens: Tokenization, pair: Pair) -> float:
    """The log-likelihood of a target behind its source."""
    batch = tokens.architecture.batch([pair], 0)
    logits = model(**accepted_inputs(model, batch.inputs), use_cache=False).logits.flatten(0, 1)
    of_targets = logits.float().log_softmax(-1)[batch.predicting]
    return float(of_targets.gather(1, batch.target_ids[:, None]).sum())


def chooser(model: Any, spec: ModelSpec, **choices: Any) -> Chooser:
    config = TaskConfig(choices=ChoicesConfig(labels=LABELS, **choices))
    context = RankContext(0, 1, 0, torch.distributed.HashStore(), Path(), "", 1)
    return Chooser(model, tokenization(spec, config), context, CPU, batch_size=2)


@pytest.mark.parametrize("method", ["none", "prompt_tuning", "prefix_tuning", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_likelihoods_are_those_of_the_model(family: str, method: str, tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models[family]))
    method_class = load_method(resolve("method", method))
    made = method_class(method_class.Config(), load_tokenizer(spec))
    model = made.patch(load_model(spec, torch.float32)).eval()
    whole = chooser(model, spec)
    with torch.no_grad():
        expected = [by_hand(model, whole.tokens, pair) for pair in whole.tokens.candidates(EXAMPLES[0])]
        priors = [by_hand(model, whole.tokens, pair) for pair in whole.tokens.without_source(LABELS)]
    lengths = [len(pair.target_ids) for pair in whole.tokens.candidates(EXAMPLES[0])]
    chosen = whole.choose(EXAMPLES, None)
    assert list(chosen.likelihoods[0].values()) == pytest.approx(expected, abs=1e-4)
    assert chosen.labels[0] == LABELS[max(range(3), key=lambda place: expected[place])]
    assert chosen.labels[2] == chosen.labels[0]
    per_token = chooser(model, spec, likelihood="token").choose(EXAMPLES, None)
    means = [value / length for value, length in zip(expected, lengths, strict=True)]
    assert list(per_token.likelihoods[0].values()) == pytest.approx(means, abs=1e-4)
    shares = dict(zip(LABELS, (0.5, 0.3, 0.2), strict=True))
    with_prior = whole.choose(EXAMPLES, shares)
    moved = [value - own + math.log(shares[label]) for value, own, label in zip(expected, priors, LABELS, strict=True)]
    assert list(with_prior.likelihoods[0].values()) == pytest.approx(moved, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_label_has_its_end_only_where_another_one_begins_with_it(family: str, tiny_models: dict[str, Path]) -> None:
    tokens = tokenization(ModelSpec(path=str(tiny_models[family])), TaskConfig())
    end = tokens.tokenizer.eos_token_id

    def targets(*labels: str) -> list[list[int]]:
        return [pair.target_ids for pair in tokens.candidates(Example("a", (), "Ann", (), choices=labels))]

    alone = targets("Rome", "Oslo")
    assert [tokens.tokenizer.decode(ids).strip() for ids in alone] == ["Rome", "Oslo"]
    assert [ids[-1] for ids in targets("ab", "abc")] == [end, end]
    (pair,) = tokens.pairs([Example("a", (), "Ann", ("Oslo",), choices=("Rome", "Oslo"))])
    assert pair.target_ids == alone[1], "the loss is that of the label alone"
    assert tokens.same_choices(("Rome", "Oslo")) is None


def test_whether_a_label_begins_another_is_judged_as_they_are_scored(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "chatml")
    tokens = Tokenization(tokenizer, TaskConfig(template="chat"), DecoderOnly())
    pairs = tokens.candidates(Example("a", (), "Ann", (), choices=(" yes", "yes please")))
    assert [tokenizer.decode(pair.target_ids) for pair in pairs] == ["yes<|im_end|>", "yes please<|im_end|>"]
    assert tokens.truncated_sources == 0


def test_white_space_around_labels_does_not_count(tiny_models: dict[str, Path]) -> None:
    tokens = tokenization(ModelSpec(path=str(tiny_models["gpt2"])), TaskConfig())
    plain, padded = ("yes", "no"), (" yes", "no ")
    targets = [
        [pair.target_ids for pair in tokens.candidates(Example("a", (), "Ann", (), choices=labels))]
        for labels in (plain, padded)
    ]
    assert targets[0] == targets[1]
    assert tokens.pairs([Example("a", (), "Ann", (" yes",), choices=padded)])[0].target_ids == targets[0][0]
    assert tokens.behind_source(Example("a", (), "Ann", (), choices=padded), " yes")[1] == targets[0][0]
    assert [pair.target_ids for pair in tokens.without_source(padded)] == targets[0]
    ids = {
        varied(trial(), task={"config": {"choices": {"labels": list(labels)}}}).identity["task"].get("labels")
        for labels in (plain, padded)
    }
    assert ids == {None, "without white space around them"}


SWEEP = """
name: tiny
model: {model}
task: {{name: requests, train_examples: 24, dev_examples: 6, test_examples: 10,
  max_source_tokens: 60, choices: {choices}}}
train: {{steps: 4, batch_size: 4, learning_rate: 1e-2}}
methods: [none, layer_norm, lora, prompt_tuning, {{name: prefix_tuning, config: {{num_prompt_tokens: 3}}}}]
"""


def trials(folder: Path, model: Path, choices: str, *settings: str) -> list[TrialSpec]:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(model=model, choices=choices))
    return expand(load_sweep(path, settings), RegistryResolver())


def run(store: Store, specs: list[TrialSpec]) -> dict[str, list[TrialResult]]:
    """Records by method."""
    return {result.spec.method.name: [result] for result in run_here(store, specs)}


def test_five_methods_are_compared_by_exact_tests(
    store: Store, tiny_models: dict[str, Path], tmp_path: Path, one_rank: None
) -> None:
    labels = "{labels: [delivery, payment, returns, account, advice], prior: training}"
    specs = trials(tmp_path, tiny_models["gpt2"], labels)
    results = run(store, specs)
    right: dict[str, list[bool]] = {}
    for name, (result,) in results.items():
        assert isinstance(result.outcome, Completed)
        scores = result.outcome.scores
        assert list(scores.values)[:3] == ["accuracy", "macro_f1", "matthews"]
        assert "bleu" not in scores.values
        assert "exact_match" not in scores.values
        assert result.outcome.decode is not None
        assert result.outcome.decode.engine == "likelihood"
        rows = read_predictions(store.root, result.trial_id)
        assert rows is not None
        for row in rows:
            assert row["prediction"] == max(row["log_likelihoods"], key=row["log_likelihoods"].get)
        right[name] = [row["prediction"] in row["references"] for row in rows]
        assert scores.values["accuracy"] == pytest.approx(10 * sum(right[name])), name
    for metric in ("accuracy", "macro_f1", "matthews"):
        tested = significance(store.root, results, metric, True)
        assert tested is not None
        assert len(tested.differences) == 10
        for one in tested.differences if metric == "accuracy" else ():
            pairs = list(zip(right[one.first], right[one.second], strict=True))
            gained, lost = pairs.count((True, False)), pairs.count((False, True))
            exactly = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            assert one.p_randomisation == pytest.approx(exactly), "McNemar's test"
        assert {one.exactly for one in tested.differences} == {metric == "accuracy"}
        (column,) = (one for one in metric_columns([one for (one,) in results.values()]) if one.name == metric)
        test = "McNemar's test in its exact form" if metric == "accuracy" else "approximate randomisation"
        assert f"over sources alone ({test})" in pair_note(tested, column)
    (comparison,) = comparisons([one for (one,) in results.values()])
    assert "beams" not in budget(comparison).sentence, "nothing is written"
    data = read_data(specs[0])
    shares = shares_of(data)
    assert shares is not None
    given = [one.references[0] for one in data.splits["train"].examples]
    assert shares["delivery"] == given.count("delivery") / 24


def test_settings_of_decoding_have_no_effect(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decode.max_new_tokens: 5 has no effect with choices"):
        trials(tmp_path, tiny_models["gpt2"], "[a, b]", "decode.max_new_tokens=5")


def test_fused_members_choose_what_they_choose_alone(
    store: Store, tiny_models: dict[str, Path], tmp_path: Path, one_rank: None
) -> None:
    specs = [
        spec.model_copy(update={"seed": seed})
        for spec in trials(tmp_path, tiny_models["gpt2"], "[delivery, payment, returns, account, advice]")
        if spec.method.name == "lora"
        for seed in (0, 1)
    ]
    (alone,) = run(store, specs[1:])["lora"]
    assert isinstance(alone.outcome, Completed)
    contexts = [RankContext(0, 1, 0, torch.distributed.HashStore(), tmp_path / f"m{n}", "", 1) for n in range(2)]
    for context in contexts:
        context.outbox.mkdir()
    meter = PhaseMeter(CPU)
    members = [_Trial(spec, context, CPU, meter, False) for spec, context in zip(specs, contexts, strict=True)]
    report = run_trials(members)
    (other,) = report.other_outcomes
    assert isinstance(other, Completed), other
    assert other.scores.values == pytest.approx(alone.outcome.scores.values, rel=1e-4)
    rows = [
        json.loads(line) for line in (tmp_path / "m0" / f"{member_prefix(1)}predictions.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 10
