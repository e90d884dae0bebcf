"""Few-shot prompts: training pairs that the template shows before the source, the same for every source."""

from __future__ import annotations

import random
from collections.abc import Iterable

from bench.models import base
from bench.models.architecture import context_length, plain_ids
from bench.models.tokens import tokenization
from bench.plugins.registry import make_task
from bench.schema.trial import FewShotSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.task import CHAT, Example
from bench.tasks.splits import content_of, load_splits

# Placeholders of templates. A pair whose text has one cannot be shown.
PLACES = ("{source}", "{bos}")
EMPTY_LINE = "\n\n"


def with_examples(trial: TrialSpec, shots: int) -> TrialSpec:
    """The trial with pairs of its training data in the template, drawn by its seed.

    Pairs are drawn from the training data of methods: at most one for each source, and none whose source is also a dev
    or test source. Each has the form that the model would see in training, and an empty line after it. The limit on the
    length of a source grows by the tokens of these pairs.

    A model goes on with a next pair behind its answer. Where the task has no stop strings, a text therefore ends where
    the next pair would begin (:func:`next_pair`).

    Raises:
        ConfigError: There are fewer than ``shots`` pairs.
        TaskError: The data cannot be read.
    """
    task = make_task(trial.task)
    if task.config.template == CHAT:
        raise ConfigError(
            f"--shots {shots}: pairs cannot be shown in a chat template; name a template, or leave it out"
        )
    splits = load_splits(task)
    evaluated = {content_of(example) for split in ("dev", "test") for example in splits[split]}
    places = [*PLACES, *(f"{{{column}}}" for column in task.data_columns)]
    fit: dict[str, Example] = {}
    for example in splits["train"]:
        text = example.source + example.references[0]
        may_be_shown = bool(example.references[0].strip()) and not any(place in text for place in places)
        if content_of(example) not in evaluated and may_be_shown:
            fit.setdefault(content_of(example), example)
    if shots > len(fit):
        raise ConfigError(
            f"--shots {shots}: the training data have {len(fit)} sources that are no dev or test sources; ask for fewer"
        )
    chosen = random.Random(f"shots {trial.seed}").sample(list(fit.values()), shots)
    tokens = tokenization(trial.scored_model, task.config)
    one_line = "\n" in trial.decode.stop

    def written(reference: str) -> str:
        return " ".join(reference.split()) if one_line else reference.strip()

    template, between = task.config.template, tokens.architecture.before_target or " "
    pairs_text = "".join(
        f"{template.replace('{source}', example.source)}{between}{written(example.references[0])}{EMPTY_LINE}"
        for example in chosen
    )
    config = {
        **trial.task.config,
        "template": pairs_text + template,
        "max_source_tokens": task.config.max_source_tokens + len(plain_ids(tokens.tokenizer, pairs_text)),
    }
    stop = trial.decode.stop
    if not stop and task.config.choices is None:
        stop = next_pair(
            template, [reference for part in splits.values() for one in part for reference in one.references]
        )
    return trial.model_copy(
        update={
            "decode": trial.decode.model_copy(update={"stop": stop}),
            "task": trial.task.model_copy(update={"config": config}),
            "few_shot": FewShotSpec(
                examples=[example.id for example in chosen],
                template=template,
                max_source_tokens=task.config.max_source_tokens,
            ),
            "label": ",".join(filter(None, [f"shots={shots}", trial.label])),
        }
    )


def next_pair(template: str, references: Iterable[str]) -> list[str]:
    """The stop string by which a next pair begins: an empty line, with the template's first words if answers have some.

    Empty if nothing tells a next pair from an answer with empty lines.
    """
    if not any(EMPTY_LINE in reference.strip() for reference in references):
        return [EMPTY_LINE]
    first_words = template.partition("{source}")[0].replace("{bos}", "").strip()
    return [EMPTY_LINE + first_words] if first_words else []


def require_room(trial: TrialSpec, shots: int) -> None:
    """Check that the longest prompt, with room for a prediction, is within the model's limit.

    Raises:
        ConfigError: It is not.
    """
    most = context_length(base.load_config(trial.scored_model))
    if most is None:
        return
    task = make_task(trial.task)
    tokens = tokenization(trial.scored_model, task.config)
    splits = load_splits(task, ("dev", "test"))
    examples = [*splits["dev"], *splits["test"]]
    if task.config.choices is None:
        pairs, written = tokens.pairs(examples, task.config.loss_references), trial.decode.max_new_tokens
    else:  # every choice is read behind its source, and no text is written
        pairs, written = [pair for example in examples for pair in tokens.candidates(example)], 0
    behind = tokens.architecture.target_continues_source
    longest = max(len(pair.source_ids) + behind * max(len(pair.target_ids), written) for pair in pairs)
    if longest > most:
        raise ConfigError(
            f"--shots {shots}: the longest prompt takes {longest:,} tokens with what is written behind "
            f"it, and {trial.scored_model.path!r} reads at most {most:,}; ask for fewer shots"
        )
