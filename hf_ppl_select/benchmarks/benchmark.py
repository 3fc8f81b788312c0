"""What a benchmark is, as data: where the rows are, how a row becomes a prompt, and which choice is right."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
LETTERS = ("A", "B", "C", "D", "E")
_UNLIKELY = 0.01


@dataclass(frozen=True)
class Benchmark:
    """A multiple-choice benchmark.

    Args:
        name: what results and files call it.
        group: results are averaged over the benchmarks of a group, e.g. `"medical"`.
        dataset: Hub id, or the path of a .parquet, .jsonl, .json or .csv file.
        prompt: what the choices continue: a `str.format` template over the (prepared) row, e.g.
            `"{question}\\nAnswer:"`.
        choices: the choices, or the name of the column that lists them.
        answer: column with the right choice: its index, its letter or its text.
        description: a template for what comes once, before the examples and the question.
        config: the Hub dataset's configuration, or several, whose names become the column `config_column`.
        split: the Hub dataset's split.
        hub_files: a configuration's files in the Hub dataset, e.g. `"{config}/{split}/*.parquet"`, where the dataset
            does not list them itself.
        revision: the Hub dataset's branch, tag or commit.
        gated: the Hub asks for its terms to be accepted.
        file_stem: a local file is called this or `name`, e.g. `"mmlu_test"` for `mmlu_test.parquet` in `data_dir`.
        where: keep only rows whose column `where[0]` has one of the values `where[1]`.
        prepare: makes the columns the templates need, row to row.
        check: looks at all rows together before; a ValueError where what they say can be read in two ways.
        examples_split: the split that few-shot examples are drawn from; never the one of the questions.
        examples_dataset: their file, if `dataset` is a file.
        examples_stem: as `file_stem`, for the examples.
        examples_by: a question's examples have its own value in this column.
    """

    name: str
    group: str
    dataset: str
    prompt: str
    choices: tuple[str, ...] | str
    answer: str
    description: str = ""
    config: str | tuple[str, ...] | None = None
    config_column: str = ""
    split: str = "test"
    hub_files: str | None = None
    revision: str | None = None
    gated: bool = False
    file_stem: str = ""
    where: tuple[str, frozenset[str]] | None = None
    prepare: Callable[[Row], Row] | None = None
    check: Callable[[Sequence[Row]], None] | None = None
    examples_split: str | None = None
    examples_dataset: str | None = None
    examples_stem: str = ""
    examples_by: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether `dataset` is a local file rather than a Hub id."""
        return Path(self.dataset).suffix in FILE_SUFFIXES


def own_benchmark(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    group: str = "own",
    letters: bool = False,
    examples: str | os.PathLike | None = None,
    index_base: Literal[0, 1] | None = None,
) -> Benchmark:
    """A benchmark from a local file with columns `question`, `choices` (a list) and `answer` (index, letter or text).

    Args:
        path: .parquet, .jsonl, .json or .csv file; in .csv the choices are a JSON list.
        name: default: the file's name without its ending.
        group: the group that its results are averaged in.
        letters: `False` scores the choices' texts after "Question: ...\\nAnswer:", as ARC does; `True` lists the
            choices in the prompt and scores their letters, as MMLU does (small models are at chance there).
        examples: another file of the same columns, to draw few-shot examples from.
        index_base: the number of the first choice where answers are numbers. Without it that is 0, and a file of
            numbers without a 0, which may count from 1, is refused (or warned of, if it is short).
    """
    return Benchmark(
        name=name or Path(path).stem,
        group=group,
        dataset=os.fspath(path),
        prompt="Question: {question}\n{listing}\nAnswer:" if letters else "Question: {question}\nAnswer:",
        choices="letters" if letters else "choices",
        answer="gold",
        prepare=partial(prepare_own, index_base=index_base or 0),
        check=check_index_base if index_base is None else None,
        examples_dataset=None if examples is None else os.fspath(examples),
    )


def check_index_base(rows: Sequence[Row]) -> None:
    """ValueError if the answers are numbers of which so many would be 0, counted from 0, that they count from 1; a
    warning where there are too few rows to tell.
    """
    numbers, chance = [], 1.0  # that answers counted from 0 have no 0 among them
    for row in rows:
        choices, number = row.get("choices"), _as_number(row.get("answer"))
        if number is not None and isinstance(choices, list) and choices and row["answer"] not in choices:
            numbers.append(number)
            chance *= 1 - 1 / len(choices)
    if not numbers or min(numbers) < 1:
        return
    found = f"{len(numbers):,} answers are numbers from {min(numbers)} up and none is 0"
    advice = "or say which it is: own_benchmark(path, index_base=1), or 0"
    if chance < _UNLIKELY:
        raise ValueError(f"{found}, as if they counted from 1. Give letters (A, B, ...) or the texts, {advice}.")
    warnings.warn(f"{found}; they are read as counted from 0. Give letters (A, B, ...), {advice}.", stacklevel=2)


def prepare_own(row: Row, index_base: int = 0) -> Row:
    question, choices = row["question"], row["choices"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be text, not {question!r:.80}.")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"choices must be a list of texts (in .csv: a JSON list), not {choices!r:.300}.")
    if len(set(choices)) < len(choices):
        raise ValueError(f"choices must differ from each other: {choices!r:.300}.")
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    listing = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    gold = answer_index(row["answer"], choices, index_base)
    return {**row, "question": question.strip(), "letters": letters, "listing": listing, "gold": gold}


def answer_index(answer: Any, choices: Sequence[str], index_base: int = 0) -> int:
    """The index of the right choice, given as a number, as a letter ("B", "b", "(B)", "B."), or as the choice's text.

    Args:
        answer: one of these; space around it does not count.
        choices: the texts.
        index_base: the number of the first choice.

    Raises:
        ValueError: it is none of these, out of range, or means two different choices.
    """
    found, number = set(), _as_number(answer)
    if number is not None:
        found = {number - index_base}
    if isinstance(answer, str):
        texts = {i for i, choice in enumerate(choices) if choice == answer}
        found |= texts or {i for i, choice in enumerate(choices) if choice.strip() == answer.strip()}
        if letter := re.fullmatch(r"\s*[(\[]?\s*([A-Za-z])\s*[)\].:]?\s*", answer):
            found.add(ord(letter[1].upper()) - ord("A"))
        if len(found) > 1:  # "2" or "B" may be an index or letter past the end, and a text
            found &= set(range(len(choices)))
    if len(found) > 1:
        raise ValueError(f"answer {answer!r:.80} can mean any of the choices {sorted(found)}; give the index instead.")
    if not found or not 0 <= min(found) < len(choices):
        last = len(choices) - 1 + index_base
        hint = " Counted from 1? own_benchmark(path, index_base=1)." if number == len(choices) else ""
        where = f"({index_base} to {last})"
        raise ValueError(f"answer {answer!r:.80} is no index {where}, letter or text of {list(choices)!r:.300}.{hint}")
    return min(found)


def _as_number(answer: Any) -> int | None:
    """An answer that is a whole number, also as text or (an integer column with gaps, as pandas writes it) a float."""
    if isinstance(answer, str):
        answer = answer.strip()
        return int(answer) if answer.isdecimal() else None
    if isinstance(answer, bool) or not isinstance(answer, Real) or not float(answer).is_integer():
        return None
    return int(answer)
