"""Rows into questions: templates filled, every row checked, few-shot examples put before the question."""

from __future__ import annotations

import hashlib
import logging
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .benchmark import Benchmark, Row, answer_index
from .rows import find_source, read_rows

logger = logging.getLogger(__name__)
__all__ = ["Question", "find_source", "load_questions"]
_DELIMITER = "\n\n"  # between examples, as in lm-evaluation-harness


@dataclass(frozen=True)
class Question:
    """One question: the choices continue `prompt` after a space. `index` is its row in the file or split.

    `digest` is a hash of the question without its examples and of its choices: two runs that have it in common have
    answered the same question.
    """

    index: int
    prompt: str
    choices: tuple[str, ...]
    gold: int
    digest: str = field(default="", compare=False)


@dataclass(frozen=True)
class _Filled:
    """A row put into the templates. `key` is the value that a question and its examples share."""

    description: str
    body: str
    choices: tuple[str, ...]
    gold: int
    key: Any

    @property
    def example(self) -> str:
        return f"{self.body} {self.choices[self.gold]}{_DELIMITER}"


def load_questions(
    benchmark: Benchmark,
    path: Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    num_fewshot: int = 0,
    examples_path: Path | None = None,
) -> list[Question]:
    """Read a benchmark's questions and check every one of them.

    Args:
        benchmark: which.
        path: the local file, see [`find_source`]; None loads it from the Hub.
        limit: keep this many, drawn with `seed`; the draw of a smaller limit is part of that of a larger one.
        seed: of both draws.
        num_fewshot: solved examples before each question, drawn once with `seed` (for each value of
            `benchmark.examples_by`) from the benchmark's other split; in file order. A row that is also among the
            questions is drawn only where there are too few others, and never stands before itself.
        examples_path: the local file of that split; None loads it from the Hub.

    Raises:
        ValueError: a row lacks a column, has a null in it or an answer out of range (the row is named), or there are
            too few examples.
        ConnectionError: the Hub cannot be reached.
        PermissionError: the data set is gated and its terms are not accepted.
    """
    source = str(path) if path else f"{benchmark.dataset} ({benchmark.split}) on the Hub"
    filled: dict[int, _Filled] = {}
    rows = read_rows(benchmark, path, benchmark.split)
    if benchmark.check is not None:
        try:
            benchmark.check(rows)
        except ValueError as error:
            raise ValueError(f"{benchmark.name}, {source}: {error}") from None
    for index, row in enumerate(rows):
        found = _fill(benchmark, index, row, source)
        if found is not None:
            filled[index] = found
    if not filled:
        kept = f" with {benchmark.where[0]!r} among those it keeps" if benchmark.where else ""
        raise ValueError(f"{benchmark.name}: {source} has no rows{kept}.")
    kept_rows = list(filled)
    if limit is not None and limit < len(kept_rows):
        drawn = np.random.default_rng(seed).permutation(len(kept_rows))[:limit]
        kept_rows = [kept_rows[i] for i in np.sort(drawn)]
    examples: dict[Any, list[_Filled]] = {}
    if num_fewshot:
        taken = {question.body for question in filled.values()}
        keys = list(dict.fromkeys(filled[index].key for index in kept_rows))
        examples = _draw_examples(benchmark, examples_path, num_fewshot, seed, keys, taken)
    return [_question(index, filled[index], examples.get(filled[index].key, [])) for index in kept_rows]


def _question(index: int, filled: _Filled, examples: Sequence[_Filled]) -> Question:
    shown = "".join(example.example for example in examples if example.body != filled.body)
    whole = "\x00".join((filled.description, filled.body, *filled.choices))
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Question(index, filled.description + shown + filled.body, filled.choices, filled.gold, digest)


def _draw_examples(
    benchmark: Benchmark, path: Path | None, num_fewshot: int, seed: int, keys: Sequence[Any], taken: set[str]
) -> dict[Any, list[_Filled]]:
    """For each key `num_fewshot` examples; those whose question is among the `taken` ones only where others lack."""
    source = str(path) if path else f"{benchmark.dataset} ({benchmark.examples_split}) on the Hub"
    rows = read_rows(benchmark, path, benchmark.examples_split)
    fresh: dict[Any, dict[int, _Filled]] = {key: {} for key in keys}
    known: dict[Any, dict[int, _Filled]] = {key: {} for key in keys}
    for index in np.random.default_rng(seed).permutation(len(rows)).tolist():
        if all(len(found) == num_fewshot for found in fresh.values()):
            break
        row = _fill(benchmark, index, rows[index], source)
        if row is not None and row.key in fresh:
            found = known if row.body in taken else fresh
            if len(found[row.key]) < num_fewshot:
                found[row.key][index] = row
    drawn = {}
    for key in keys:
        where = f" with {benchmark.examples_by} {key!r}" if benchmark.examples_by else ""
        lacking = num_fewshot - len(fresh[key])
        # Some of MMLU's subjects have two or three of their five examples among their questions too.
        if not fresh[key] or lacking > len(known[key]):
            raise ValueError(
                f"{benchmark.name}: {source} has {len(fresh[key])} rows{where} that are not questions themselves; "
                f"num_fewshot={num_fewshot} needs more."
            )
        if lacking:
            logger.warning("%s: %d of %d examples%s are questions too.", benchmark.name, lacking, num_fewshot, where)
        chosen = {**fresh[key], **dict(list(known[key].items())[:lacking])}
        drawn[key] = [chosen[index] for index in sorted(chosen)]
    return drawn


def _fill(benchmark: Benchmark, index: int, row: Row, source: str) -> _Filled | None:
    """None where the benchmark does not keep the row."""
    try:
        if benchmark.where is None or str(row[benchmark.where[0]]) in benchmark.where[1]:
            return _fill_kept(benchmark, row)
    except KeyError as error:
        there = " ".join(", ".join(map(str, row)).split())
        message = f"no column {error!s:.80}; there are {there:.300}."
        raise ValueError(f"{benchmark.name}, row {index} of {source}: {message}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # a null, or another type than expected
        raise ValueError(f"{benchmark.name}, row {index} of {source}: {error}") from None
    return None


def _fill_kept(benchmark: Benchmark, row: Row) -> _Filled:
    key = row[benchmark.examples_by] if benchmark.examples_by else None
    if benchmark.prepare is not None:
        row = benchmark.prepare(row)
    formatter = _StrictFormatter()
    body = formatter.vformat(benchmark.prompt, (), row)
    choices = benchmark.choices if isinstance(benchmark.choices, tuple) else tuple(row[benchmark.choices])
    if not body.strip():
        raise ValueError("the prompt is empty.")
    if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"there must be two or more choices, none of them empty, not {list(choices)!r:.300}.")
    description = formatter.vformat(benchmark.description, (), row)
    return _Filled(description, body, choices, answer_index(row[benchmark.answer], choices), key)


class _StrictFormatter(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        value, first = super().get_field(field_name, args, kwargs)
        if value is None:
            raise ValueError(f"column {field_name!r} is null.")
        return value, first
