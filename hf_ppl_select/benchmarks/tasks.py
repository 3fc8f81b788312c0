"""What a benchmark is, as data: where the rows are, how a row becomes a prompt, and which choice is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
LETTERS = ("A", "B", "C", "D", "E")


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
) -> Benchmark:
    """A benchmark from a local file with columns `question`, `choices` (a list) and `answer` (index, letter or text).

    Args:
        path: .parquet, .jsonl, .json or .csv file; in .csv the choices are a JSON list.
        name: default: the file's name without its ending.
        group: the group that its results are averaged in.
        letters: `False` scores the choices' texts after "Question: ...\\nAnswer:", as ARC does; `True` lists the
            choices in the prompt and scores their letters, as MMLU does (small models are at chance there).
        examples: another file of the same columns, to draw few-shot examples from.
    """
    return Benchmark(
        name=name or Path(path).stem,
        group=group,
        dataset=os.fspath(path),
        prompt="Question: {question}\n{listing}\nAnswer:" if letters else "Question: {question}\nAnswer:",
        choices="letters" if letters else "choices",
        answer="gold",
        prepare=prepare_own,
        examples_dataset=None if examples is None else os.fspath(examples),
    )


def prepare_own(row: Row) -> Row:
    question, choices = row["question"], row["choices"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be text, not {question!r}.")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"choices must be a list of texts (in .csv: a JSON list), not {choices!r}.")
    if len(set(choices)) < len(choices):
        raise ValueError(f"choices must differ from each other: {choices!r}.")
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    listing = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    gold = answer_index(row["answer"], choices)
    return {**row, "question": question.strip(), "letters": letters, "listing": listing, "gold": gold}


def answer_index(answer: Any, choices: Sequence[str]) -> int:
    """The index of the right choice, given as an index from 0, as a letter from A, or as the choice's own text.

    Raises:
        ValueError: it is none of these, out of range, or means two different choices.
    """
    if isinstance(answer, float) and answer.is_integer():  # an integer column with gaps, as pandas writes it
        answer = int(answer)
    found = set()
    if isinstance(answer, int) and not isinstance(answer, bool):
        found = {answer}
    elif isinstance(answer, str):
        found = {i for i, choice in enumerate(choices) if choice == answer}
        if answer.isdecimal():
            found.add(int(answer))
        elif len(answer) == 1 and "A" <= answer <= "Z":
            found.add(ord(answer) - ord("A"))
        if len(found) > 1:  # "2" or "B" may be an index or letter past the end, and a text
            found &= set(range(len(choices)))
    if len(found) > 1:
        raise ValueError(f"answer {answer!r} can mean any of the choices {sorted(found)}; give the index instead.")
    if not found or not 0 <= min(found) < len(choices):
        raise ValueError(
            f"answer {answer!r} is no index (0 to {len(choices) - 1}), letter or text of {list(choices)}."
        )
    return min(found)
