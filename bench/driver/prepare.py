"""What the driver does before the first trial: it reads the data, fetches the model, and refuses what cannot work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from bench.method import MethodError
from bench.metrics.checks import answers_missing, check_metrics
from bench.models import base
from bench.models.split_data import SplitData, data_summary
from bench.models.token_cache import read_split
from bench.models.token_check import (
    TokenFinding,
    check_key,
    check_positions,
    check_tokens,
    longest_choice,
    longest_sequence,
)
from bench.models.tokens import tokenization
from bench.plan.plan import needs_source_lengths, planned_parameters
from bench.plugins.registry import make_task, metrics_of
from bench.schema.trial import DEFAULT_BRANCH, JsonDict, ModelSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.task import Example, Split, Task
from bench.tasks.hub_commits import commit_of
from bench.tasks.splits import TRUNCATIONS, oddity_sentences, omission_lines

Examples = dict[Split, Sequence[Example]]


def prepare(trials: Sequence[TrialSpec], say: Callable[[str], None], metrics: Sequence[str] = ()) -> None:
    """Refuse malformed data, models whose tokens cannot say them, and methods that do not fit a model.

    Downloads and tokenises once what all trials read, and converts the embedded model if it has not been.

    Args:
        trials: They are about to run.
        say: Shows people a line.
        metrics: Scores that settings are chosen by.

    Raises:
        ConfigError: The data or the model cannot be used, or a method refuses the model.
    """
    read: dict[str, tuple[Task, Examples]] = {}
    in_tokens: dict[tuple[str, ModelSpec], dict[Split, SplitData]] = {}
    try:
        for model in dict.fromkeys(trial.scored_model for trial in trials):
            if (folder := base.local_folder(model)) is not None:
                base.require_readable_weights(folder)
        if any(trial.model.path == base.EMBEDDED for trial in trials) and not base.embedded_folder().is_dir():
            say(f"converting {base.EMBEDDED} to safetensors, once, into {base.embedded_folder()}")
            base.embedded_model()
        _check_methods(trials, say)
        lines: dict[str, None] = {}
        for trial in {
            (trial.task.model_dump_json(), trial.scored_model, trial.splits): trial for trial in trials
        }.values():
            task, splits = _read(trial, say)
            examples: Examples = {split: data.examples for split, data in splits.items()}
            read[trial.task.model_dump_json()] = task, examples
            in_tokens.setdefault((trial.task.model_dump_json(), trial.scored_model), {}).update(splits)
            doubts = answers_missing(task, examples)
            doubts += check_metrics(task, list(examples["dev"]), metrics, metrics_of(trial.task))
            for line in _lines(trial, task, data_summary(splits), doubts):
                if line not in lines:  # several models, or several stages, say the same of a task
                    lines[line] = None
                    say(line)
        for model in dict.fromkeys(trial.model for trial in trials if trial.model.commit is not None):
            known = commit_of(model.path, model.revision, "model")
            by = " (as the cache knows it: the hub cannot be asked)" if known.source == "cache" else ""
            say(f"model {model.path}: {model.revision or DEFAULT_BRANCH} is commit {model.commit}{by}")
        _check_tokens(trials, read, say)
        _check_positions(trials, read, in_tokens, say)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_methods(trials: Sequence[TrialSpec], say: Callable[[str], None]) -> None:
    """Patch each base model, without weights, with each method.

    Raises:
        ConfigError: A method refuses a model.
        ModelError: A model cannot be had as the sweep says.
    """
    refusals = []
    kinds = {
        (one.method.model_dump_json(), one.scored_model, one.resources.precision == "fp16"): one.method
        for one in trials
    }
    evaluated = {(one.method.model_dump_json(), one.scored_model) for one in trials if one.evaluations}
    for (text, model, in_fp16), method in kinds.items():
        try:
            planned_parameters(method, model, torch.float16 if in_fp16 else torch.float32)
            if (text, model) in evaluated and needs_source_lengths(method, model):
                refusals.append(
                    f"methods: {method.name} on {model.path}: evaluations: lm-evaluation-harness does not tell a model "
                    "where a question ends, which this method has to know in a decoder; leave evaluations out"
                )
        except base.ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - code of strangers
            if isinstance(error, MethodError) and not isinstance(error.__cause__, NotImplementedError | RuntimeError):
                refusals.append(f"methods: {method.name} on {model.path}: {error}")
            else:  # a method may look at weights, which the model here does not have
                say(f"method {method.name}: whether it fits {model.path} shows in its trial: {error}")
    if refusals:
        raise ConfigError("\n".join(dict.fromkeys(refusals)))


def _read(trial: TrialSpec, say: Callable[[str], None]) -> tuple[Task, dict[Split, SplitData]]:
    """Read and tokenise the data of a trial, so that ranks find the tokens in the cache.

    Raises:
        ConfigError: The embedding has no row for one of the tokens, or the chat template cannot render the data.
    """
    task = make_task(trial.task)
    tokens = tokenization(trial.scored_model, task.config)
    try:
        return task, {split: read_split(trial.task, task, split, tokens, say) for split in trial.splits}
    except base.ModelError as error:
        raise ConfigError(f"{trial.scored_model.path}: {error}") from error


def _lines(trial: TrialSpec, task: Task, found: JsonDict, doubts: Sequence[str]) -> Iterator[str]:
    """What people should know of the data of a trial."""
    name = trial.task.name
    counts = [f"{found['train_pairs' if split == 'train' else f'{split}_sources']} {split}" for split in trial.splits]
    yield f"task {name}: {', '.join(counts)} examples"
    yield from (f"task {name}: {doubt}" for doubt in doubts)
    if task.licence_note:
        yield f"task {name}: the data are licensed {task.licence}: {task.licence_note}"
    yield from (f"task {name}: left out of {left_out}" for left_out in omission_lines(found["left_out"]))
    warnings = [*_truncations(trial, task, found), *oddity_sentences(found)]
    yield from (f"task {name}: warning: {warning}" for warning in warnings)


def _truncations(trial: TrialSpec, task: Task, found: JsonDict) -> Iterator[str]:
    """What is too long for the settings, in the tokens of the trial's model."""
    of_model = f"in tokens of {trial.scored_model.path}"
    for key, (what, setting) in TRUNCATIONS.items():
        if cut := found.get(key):
            limit = getattr(task.config, setting)
            yield f"{cut:,} {what} are longer than task.{setting} ({limit:,}) and lose their end, {of_model}"
    if turns := found.get("left_out_turns"):
        most = f"task.max_source_tokens ({task.config.max_source_tokens:,})"
        yield f"{turns:,} turns are left out of conversations that are longer than {most}, {of_model}"


def _check_tokens(
    trials: Sequence[TrialSpec], read: Mapping[str, tuple[Task, Examples]], say: Callable[[str], None]
) -> None:
    """Check the tokens of each base model on each task, once for settings of decoding that make no difference to them.

    Raises:
        ConfigError: A model's tokens cannot say the references of a task.
    """
    kinds = {(one.scored_model, one.task.model_dump_json(), *check_key(one.decode)): one.decode for one in trials}
    for (model, task_json, *_), decode in sorted(kinds.items(), key=str):
        task, splits = read[task_json]
        _tell(check_tokens(model, task, splits, decode), say)


def _check_positions(
    trials: Sequence[TrialSpec],
    read: Mapping[str, tuple[Task, Examples]],
    in_tokens: Mapping[tuple[str, ModelSpec], dict[Split, SplitData]],
    say: Callable[[str], None],
) -> None:
    """Check that the longest sequence of each base model fits its positions.

    Raises:
        ConfigError: A model whose positions are a table would fail in a trial.
    """
    longest: dict[ModelSpec, int] = {}
    for trial in {_sequences(trial): trial for trial in trials}.values():
        model, task_json = trial.scored_model, trial.task.model_dump_json()
        splits = {split: in_tokens[task_json, model][split] for split in trial.splits}
        decoded = None if trial.task.config.get("choices") else trial.scored_split
        found = longest_sequence(model, splits, decoded, trial.decode.max_new_tokens)
        if decoded is None and trial.scored_split is not None:
            found = max(found, longest_choice(model, read[task_json][0].config, splits[trial.scored_split]))
        longest[model] = max(found, longest.get(model, 0))
    _tell([check_positions(model, tokens) for model, tokens in longest.items()], say)


def _sequences(trial: TrialSpec) -> tuple[object, ...]:
    """What the lengths of a trial's sequences depend on."""
    return (
        trial.task.model_dump_json(),
        trial.scored_model,
        trial.stage,
        trial.scored_split,
        trial.decode.max_new_tokens,
    )


def _tell(findings: Sequence[TokenFinding], say: Callable[[str], None]) -> None:
    """Raise problems, and show warnings.

    Raises:
        ConfigError: There is a problem.
    """
    if problems := [str(finding) for finding in findings if finding.outcome == "problem"]:
        raise ConfigError("\n".join(problems))
    for finding in findings:
        if finding.outcome == "warning":
            say(f"warning: {finding}")
