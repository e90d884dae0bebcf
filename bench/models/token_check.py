"""Checks on references, before anything trains, whether a base model's tokenizer can produce the texts of a task.

Texts that the model cannot generate would otherwise look like the fault of a method: a tokenizer may have no capitals,
a reference may contain a string that ends texts, or the embedding may lack rows for tokens.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.metrics.scoring import score_examples
from bench.models import base
from bench.models.architecture import context_length, vocabulary_size
from bench.models.split_data import SplitData, StoredExamples
from bench.models.text_ends import end_token_ids, first_stop, text_of, until_stop
from bench.models.tokens import Tokenization, tokenization
from bench.schema.trial import DecodeSpec, ModelSpec
from bench.task import Example, Scoring, Split, Task, TaskConfig

MOST_REFERENCES = 100
# Of the official scores, what is quick to take and shows what a tokenizer loses.
SHOWN_SCORES = ("bleu", "chrf")
# What tables of positions are called (GPT-2's wpe, embed_positions), and how many rows some have more (OPT).
OF_POSITIONS = re.compile("wpe|pos")
MOST_SPARE_ROWS = 4
# That stand around a choice and are not made of its text.
MOST_TOKENS_AROUND = 8
# White space in front of the first words of a text.
INDENTED = re.compile(r"\s*[ \t]\S")


@dataclass(frozen=True)
class TokenFinding:
    """The result of one check. A problem keeps a sweep from starting, because its results would be meaningless."""

    check: str
    outcome: Literal["pass", "warning", "problem"]
    found: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}; {self.remedy}" if self.remedy else self.check


@dataclass(frozen=True)
class Tried:
    """A reference, its tokens after its source, and the text of these tokens."""

    example: Example  # with this reference alone
    source_ids: Sequence[int]
    ids: Sequence[int]
    text: str
    stop: Sequence[str]  # strings that end a text

    @property
    def reference(self) -> str:
        return self.example.references[0]

    @property
    def comes_back(self) -> bool:
        """Whether the text equals the reference up to its first stop string, apart from white space."""
        return self.text.split() == until_stop(self.reference, self.stop).split()


def try_references(tokens: Tokenization, splits: Mapping[Split, Sequence[Example]], stop: Sequence[str]) -> list[Tried]:
    """Up to 100 references, taken evenly over all splits. None is cut."""
    parts = list(splits.values())
    # How many references there are up to each example of each split, and up to each split.
    ends = [list(itertools.accumulate(_reference_counts(part))) for part in parts]
    starts = list(itertools.accumulate((end[-1] if end else 0 for end in ends), initial=0))
    total = starts[-1]
    count = min(MOST_REFERENCES, total)
    limits = {"max_source_tokens": 10**9, "max_target_tokens": 10**9}
    tokens = replace(tokens, config=tokens.config.model_copy(update=limits), rows=None)
    tried = []
    for place in (number * total // count for number in range(count)):
        part = bisect.bisect_right(starts, place) - 1
        number = bisect.bisect_right(ends[part], place - starts[part])
        example = parts[part][number]
        reference = example.references[place - starts[part] - ends[part][number]]
        source_ids, ids = tokens.behind_source(example, reference)
        text = until_stop(text_of(tokens.tokenizer, ids), stop)
        tried.append(Tried(replace(example, references=(reference,)), source_ids, ids, text, stop))
    return tried


def _reference_counts(examples: Sequence[Example]) -> list[int]:
    """The number of references of each example. Stored examples are not read for it."""
    if isinstance(examples, StoredExamples):
        return examples.reference_counts
    return [len(example.references) for example in examples]


def _references(examples: Sequence[Example]) -> Iterator[str]:
    """All references, one after the other."""
    if isinstance(examples, StoredExamples):
        yield from examples.all_references()
    else:
        yield from itertools.chain.from_iterable(example.references for example in examples)


def lost_references(
    tokens: Tokenization, splits: Mapping[Split, Sequence[Example]], stop: Sequence[str]
) -> dict[str, int]:
    """For a record: the number of tried references that their tokens do not reproduce; empty if there are none."""
    if tokens.config.choices is not None:  # Labels are not written.
        return {}
    tried = try_references(tokens, splits, stop)
    lost = sum(not one.comes_back for one in tried)
    return {"references_tried": len(tried), "references_lost": lost} if lost else {}


def check_key(decode: DecodeSpec) -> tuple[tuple[int, ...], tuple[str, ...], int]:
    """The settings of decoding that :func:`check_tokens` uses."""
    return tuple(decode.banned_token_ids), tuple(decode.stop), decode.beams


def check_tokens(
    model: ModelSpec, task: Task, splits: Mapping[Split, Sequence[Example]], decode: DecodeSpec | None = None
) -> list[TokenFinding]:
    """Every check of a model's tokens on a task's references.

    Args:
        model: The base model. Its weights are not loaded.
        task: The task.
        splits: The examples of the task.
        decode: Stop strings, and the tokens that are never generated; None: those of the task.

    Raises:
        ModelError: The tokenizer or the configuration cannot be loaded.
    """
    tokens = tokenization(model, task.config)
    config = base.load_config(model)
    stop, banned = (task.stop, []) if decode is None else (decode.stop, decode.banned_token_ids)
    tried = try_references(tokens, splits, stop)
    ends = end_token_ids(tokens.tokenizer, config, base.load_generation_config(model))
    rows = vocabulary_size(config)
    of_labels = {"choices are told apart": _distinct_choices(tokens, tried)}
    of_texts = {
        "no reference holds what ends a text": _ends(tokens, tried, splits, ends),
        "no reference holds a banned token": _banned(tried, banned),
        "tokens give the references back": _given_back(tokens, tried, task.scoring),
        "no reference of several lines is indented": _indented(tried),
    }
    checks = {
        "beginning token": _beginning(tokens),
        "tokens fit the embedding": _rows(tokens, tried, rows, banned),
        "beams fit the vocabulary": _beams(rows, decode),
        **(of_texts if task.config.choices is None else of_labels),
    }
    found = []
    for check, findings in checks.items():
        faults = [TokenFinding(f"{model.path}: {check}", *finding) for finding in findings]
        found += faults or [TokenFinding(f"{model.path}: {check}", "pass")]
    return found


def longest_sequence(
    model: ModelSpec, splits: Mapping[Split, SplitData], decoded: Split | None, max_new_tokens: int
) -> int:
    """Tokens of the longest sequence that a model reads at once, in training, validation or decoding.

    Args:
        model: The base model.
        splits: The data of a trial.
        decoded: The split for whose sources texts are written; None: there is none.
        max_new_tokens: Of these texts.
    """
    joined = base.architecture(model).target_continues_source
    longest = max((data.pairs.longest(joined) for data in splits.values()), default=0)
    if decoded is None:
        return longest
    source = splits[decoded].longest_source
    # The last token of a text is not read.
    return max(longest, source + max_new_tokens - 1 if joined else max(source, max_new_tokens))


def longest_choice(model: ModelSpec, config: TaskConfig, data: SplitData) -> int:
    """Tokens of the longest source with one of its choices, all of which are read behind it, not the right one alone.

    Only sources are looked at that might not fit the model's positions by the size of their choices; 0: none of them.

    Args:
        model: The base model. Its weights are not loaded.
        config: Of a task with choices.
        data: The split whose sources are labelled.

    Raises:
        ModelError: Tokenizer or configuration cannot be loaded.
    """
    most = context_length(base.load_config(model))
    if most is None:
        return 0
    tokens, longest = tokenization(model, config), 0
    joined = tokens.architecture.target_continues_source
    for example, length in zip(data.examples, data.source_lengths, strict=True):
        # A token is a byte at least.
        size = max((len(choice.encode()) for choice in example.choices), default=0) + MOST_TOKENS_AROUND
        if size + joined * length > most:
            found = max(joined * len(pair.source_ids) + len(pair.target_ids) for pair in tokens.candidates(example))
            longest = max(longest, found)
    return longest


def check_positions(model: ModelSpec, longest: int) -> TokenFinding:
    """Check that a base model has a position for each token of its longest sequence.

    Beyond a table of positions a trial would fail; positions that are computed go on, but no text of training had them.

    Args:
        model: The base model. Its weights are not loaded.
        longest: See :func:`longest_sequence` and :func:`longest_choice`.

    Raises:
        ModelError: The configuration cannot be loaded.
    """
    check = f"{model.path}: sequences fit the positions"
    most = context_length(base.load_config(model))
    if most is None or longest <= most:
        return TokenFinding(check, "pass")
    in_table = _has_table(model, most)
    joined = base.architecture(model).target_continues_source
    what = "source takes with what is written behind it" if joined else "source or text takes"
    limit = f"has {most:,} positions" if in_table else f"was made for {most:,}, beyond which texts are often poor"
    return TokenFinding(
        check,
        "problem" if in_table else "warning",
        f"the longest {what} {longest:,} tokens, and the model {limit}",
        "lower task.max_source_tokens, task.max_target_tokens or decode.max_new_tokens; task.choices are not cut",
    )


def _has_table(model: ModelSpec, positions: int) -> bool:
    """Whether positions are rows of a table, as they are where they are learned."""
    try:
        tensors = base.empty_model(model).named_parameters()
    except RuntimeError:  # code that the model brings needs its weights
        return False
    rows = range(positions, positions + MOST_SPARE_ROWS + 1)
    return any(OF_POSITIONS.search(name) and tensor.shape[0] in rows for name, tensor in tensors if tensor.dim())


Findings = Iterator[tuple[Literal["warning", "problem"], str, str]]


def _beginning(tokens: Tokenization) -> Findings:
    if not tokens.beginning_token and not tokens.texts.around[0]:
        yield (
            "problem",
            "model.beginning_token: false has no effect, because the tokenizer puts nothing before a text",
            "leave it out",
        )


def _rows(tokens: Tokenization, tried: Sequence[Tried], rows: int | None, banned: Sequence[int]) -> Findings:
    if rows is None:
        return
    beyond = {token for one in tried for token in (*one.source_ids, *one.ids) if token >= rows}
    if beyond:
        token = min(beyond)
        yield (
            "problem",
            f"{tokens.tokenizer.convert_ids_to_tokens(token)!r} and {len(beyond) - 1} more of the tokens of "
            f"{len(tried)} references and their sources have ids from {token} on, and the embedding has {rows:,} rows",
            "take the tokenizer that belongs to the weights, or resize the embedding (resize_token_embeddings) and "
            "save the model again",
        )
    if outside := [token for token in banned if token >= rows]:
        yield (
            "problem",
            f"decode.banned_token_ids: {outside} are no tokens of this model, which has {rows:,}",
            "leave them out, or name the ids of this model's tokenizer",
        )


def _beams(rows: int | None, decode: DecodeSpec | None) -> Findings:
    if rows is None or decode is None:
        return
    allowed = rows - len({token for token in decode.banned_token_ids if token < rows})
    if decode.beams > allowed:
        yield (
            "problem",
            f"decode.beams: {decode.beams:,} is more than the {allowed:,} tokens with which a text of this model can "
            "begin",
            "set fewer",
        )


def _distinct_choices(tokens: Tokenization, tried: Sequence[Tried]) -> Findings:
    known = {one.example.choices for one in tried}
    if found := next(filter(None, map(tokens.same_choices, sorted(known))), None):
        yield (
            "problem",
            f"the tokenizer makes the same tokens of the choices {found[0]!r} and {found[1]!r}, of which one is as "
            "likely as the other",
            "give them other names (task.choices), or take a model whose tokenizer tells them apart",
        )


def _ends(
    tokens: Tokenization, tried: Sequence[Tried], splits: Mapping[Split, Sequence[Example]], ends: frozenset[int]
) -> Findings:
    stops = tried[0].stop if tried else ()
    references = itertools.chain.from_iterable(map(_references, splits.values())) if stops else ()
    broken, count = [], 0
    for count, reference in enumerate(references, start=1):  # noqa: B007 - all of them, as a few may be anywhere
        if (stop := first_stop(reference.strip(), stops)) is not None:
            broken.append((reference, stop))
    if broken:
        reference, stop = broken[0]
        yield (
            "problem" if 2 * len(broken) > count else "warning",
            f"{len(broken):,} of {count:,} references hold {stop!r}, e.g. {_shown(reference)}, and a text ends at the "
            "first (decode.stop)",
            "leave it out of decode.stop ([] ends texts at the model's end tokens alone), or take it out of the data",
        )
    ended = [one for one in tried if ends.intersection(one.ids)]
    if ended:
        token = next(token for token in ended[0].ids if token in ends)
        yield (
            _weight(ended, tried),
            f"{len(ended)} of {len(tried)} references hold an end token of the model, e.g. "
            f"{tokens.tokenizer.convert_ids_to_tokens(token)!r} (id {token}) in {_shown(ended[0].reference)}",
            "correct eos_token_id in generation_config.json or config.json if the token is an ordinary one; else take "
            "it out of the references",
        )


def _banned(tried: Sequence[Tried], banned: Sequence[int]) -> Findings:
    hit = [one for one in tried if set(banned).intersection(one.ids)]
    if hit:
        yield (
            _weight(hit, tried),
            f"{len(hit)} of {len(tried)} references hold a token of decode.banned_token_ids, e.g. "
            f"{_shown(hit[0].reference)}",
            "leave the token out of decode.banned_token_ids",
        )


def _given_back(tokens: Tokenization, tried: Sequence[Tried], scoring: Scoring) -> Findings:
    lost = [one for one in tried if not one.comes_back]
    if not lost:
        return
    unknown = getattr(tokens.tokenizer, "unk_token_id", None)
    if all(one.text.casefold().split() == until_stop(one.reference, one.stop).casefold().split() for one in lost):
        why, remedy = "capitals are lost", "take a cased model, or a task that is scored without regard to case"
    elif unknown is not None and any(unknown in one.ids for one in lost):
        why, remedy = "the tokenizer does not know all characters", "take a model whose tokenizer knows this language"
    else:
        why, remedy = "the tokenizer changes them", "see normaliser and decoder of the model's tokenizer.json"
    metrics = tuple(name for name in SHOWN_SCORES if name in scoring.metrics)
    reached = ""
    if metrics:
        examples, texts = [one.example for one in tried], [one.text for one in tried]
        values = score_examples(examples, texts, replace(scoring, metrics=metrics)).over(range(len(tried)))
        best_scores = ", ".join(f"{name} {values[name]:.1f}" for name in metrics)
        reached = f"; the most that a text can score on these is {best_scores}"
    yield (
        "warning",
        f"{len(lost)} of {len(tried)} references do not come back from their tokens, because {why}, e.g. "
        f"{_shown(until_stop(lost[0].reference, lost[0].stop))} as {_shown(lost[0].text)}{reached}",
        remedy,
    )


def _indented(tried: Sequence[Tried]) -> Findings:
    hit = [one for one in tried if INDENTED.match(one.reference) and "\n" in until_stop(one.reference, one.stop)]
    if hit:
        yield (
            "warning",
            f"{len(hit)} of {len(tried)} references have several lines and white space in front of the first, e.g. "
            f"{_shown(hit[0].reference)}; predictions lose the white space around them, so that their first line is "
            "not indented like the others",
            "begin references at the margin, or put what their first line begins with into the source",
        )


def _weight(hit: Sequence[Tried], tried: Sequence[Tried]) -> Literal["warning", "problem"]:
    """A problem if most references are affected, because the sweep is then wrong; else a warning about some data."""
    return "problem" if 2 * len(hit) > len(tried) else "warning"


def _shown(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
