"""Ids stay what they have always been, and an identity may be asked for without some of its fields."""

from __future__ import annotations

from fakes import trial, varied

from bench.schema.same_answer import cost_class, distinct
from bench.schema.trial import FewShotSpec, OptimizerSpec, TrialSpec


def changed(spec: TrialSpec, **fields: object) -> TrialSpec:
    return spec.model_copy(update=fields)


def test_ids_and_classes_of_cost_are_what_they_have_always_been() -> None:
    cost = changed(trial(), stage="cost", repetition=1)
    prompted = changed(trial(), few_shot=FewShotSpec(examples=["a", "b"], template="t", max_source_tokens=9))
    searched = varied(trial("lora"), config={"rank": 4}, decode={"beams": 5})
    assert changed(trial(), compares_merged=False).trial_id == trial().trial_id, "it changes no answer"
    assert {spec.trial_id: spec.configuration_class for spec in (trial(), cost, prompted, searched)} == {
        "full-s0-e04cde6b91": "49ad32b5b9",
        "full-cost-r1-449e69b26a": "49ad32b5b9",
        "full-s0-c900da53f3": "5f278746ae",
        "lora-s0-567e663e2d": "1ce53b78e4",
    }


def test_how_weights_are_stored_is_a_part_of_the_identity_and_of_the_name() -> None:
    ids = {varied(trial("lora"), model={"quantization": kind}).trial_id for kind in (None, "nf4", "int8")}
    assert len(ids) == 3 and trial("lora").trial_id in ids
    double = varied(trial("lora"), model={"quantization": "nf4", "double_quantization": True})
    assert double.trial_id not in ids
    assert double.name == "lora on nf4"
    assert changed(double, label="quantization=nf4,rank=4").name == "lora on nf4 (rank=4)"


def test_an_identity_without_some_fields_leaves_the_trial_as_it_is() -> None:
    spec = trial()
    whole = spec.identity
    rest = spec.identity_without("seed", "train.steps", "train.no_such_field", "few_shot.shots")
    assert rest == {
        **{key: value for key, value in whole.items() if key != "seed"},
        "train": {key: value for key, value in whole["train"].items() if key != "steps"},
    }
    assert spec.identity == whole


def test_a_trial_is_called_by_its_method_and_label() -> None:
    assert (trial("lora").name, changed(trial("lora"), label="rank=4").name) == ("lora", "lora (rank=4)")
    hidden = changed(trial(), method=changed(trial().method, name="..odd"))  # type: ignore[arg-type]
    assert hidden.trial_id.startswith("odd-s0-"), "no hidden folder"


def test_what_trains_nothing_is_the_same_under_every_optimizer() -> None:
    plain = trial("none")
    plugins = [
        changed(varied(plain, train={"optimizer": name}), optimizer=OptimizerSpec(name=name, target=name))
        for name in ("mine:One", "mine:Other")
    ]
    assert distinct([plain, *plugins], lambda spec: False) == (plain,)
    assert len({cost_class(spec, trains=False) for spec in (plain, *plugins)}) == 1
    assert len(distinct([plain, *plugins], lambda spec: True)) == 3
