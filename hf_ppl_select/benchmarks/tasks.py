"""The benchmarks, as data: where the rows are, how a row becomes a prompt, and which choice is right.

Prompts and choices are those of lm-evaluation-harness 0.4.13, whose task files were read for it: a question is
scored by the log-likelihood of " " + choice after the prompt.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mmlu_subjects import MMLU_GENERAL, MMLU_MEDICAL

Row = dict[str, Any]
DATA_FOLDER = Path(__file__).parent / "data"
FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


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
        config: the Hub dataset's configuration.
        split: the Hub dataset's split.
        file_stem: a local file is called this or `name`, e.g. `"mmlu_test"` for `mmlu_test.parquet` in `data_dir`.
        where: keep only rows whose column `where[0]` has one of the values `where[1]`.
        prepare: makes the columns the template needs, row to row.
    """

    name: str
    group: str
    dataset: str
    prompt: str
    choices: tuple[str, ...] | str
    answer: str
    config: str | None = None
    split: str = "test"
    file_stem: str = ""
    where: tuple[str, frozenset[str]] | None = None
    prepare: Callable[[Row], Row] | None = None

    @property
    def is_file(self) -> bool:
        """Whether `dataset` is a local file rather than a Hub id."""
        return Path(self.dataset).suffix in FILE_SUFFIXES


def strip_question(row: Row) -> Row:
    return {**row, "question": row["question"].strip()}


def prepare_mmlu(row: Row) -> Row:
    return {**strip_question(row), "topic": row["subject"].replace("_", " ")}


def prepare_pubmedqa(row: Row) -> Row:
    return {**row, "abstract": "\n".join(row["context"]["contexts"])}


def prepare_arc(row: Row) -> Row:
    labels = list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        raise ValueError(f"answerKey {row['answerKey']!r} is none of the labels {labels}.")
    return {**row, "texts": row["choices"]["text"], "gold": labels.index(row["answerKey"])}


def prepare_hellaswag(row: Row) -> Row:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {**row, "query": clean_wikihow(query), "endings": [clean_wikihow(ending) for ending in row["endings"]]}


def clean_wikihow(text: str) -> str:
    """HellaSwag's WikiHow half carries "[title]", "[step]" and the like."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


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


def _mmlu(name: str, group: str, subjects: Sequence[str]) -> Benchmark:
    return Benchmark(
        name=f"mmlu_{name}",
        group=group,
        dataset="cais/mmlu",
        config="all",
        file_stem="mmlu_test",
        prompt="The following are multiple choice questions (with answers) about {topic}.\n\n{question}\n"
        "A. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:",
        choices=("A", "B", "C", "D"),
        answer="answer",
        where=("subject", frozenset(subjects)),
        prepare=prepare_mmlu,
    )


def _arc(name: str, config: str) -> Benchmark:
    return Benchmark(
        name=name,
        group="general",
        dataset="allenai/ai2_arc",
        config=config,
        file_stem=f"{name}_test",
        prompt="Question: {question}\nAnswer:",
        choices="texts",
        answer="gold",
        prepare=prepare_arc,
    )


def own_benchmark(
    path: str | os.PathLike, *, name: str | None = None, group: str = "own", letters: bool = False
) -> Benchmark:
    """A benchmark from a local file with columns `question`, `choices` (a list) and `answer` (index, letter or text).

    Args:
        path: .parquet, .jsonl, .json or .csv file; in .csv the choices are a JSON list.
        name: default: the file's name without its ending.
        group: the group that its results are averaged in.
        letters: `False` scores the choices' texts after "Question: ...\\nAnswer:", as ARC does; `True` lists the
            choices in the prompt and scores their letters, as MMLU does (small models are at chance there).
    """
    return Benchmark(
        name=name or Path(path).stem,
        group=group,
        dataset=os.fspath(path),
        prompt="Question: {question}\n{listing}\nAnswer:" if letters else "Question: {question}\nAnswer:",
        choices="letters" if letters else "choices",
        answer="gold",
        prepare=prepare_own,
    )


_ALL = [
    Benchmark(
        name="medqa_4options",
        group="medical",
        dataset="GBaker/MedQA-USMLE-4-options-hf",
        file_stem="medqa_4options_test",
        prompt="Question: {sent1}\nA. {ending0}\nB. {ending1}\nC. {ending2}\nD. {ending3}\nAnswer:",
        choices=("A", "B", "C", "D"),
        answer="label",
    ),
    Benchmark(
        name="medmcqa",
        group="medical",
        dataset="openlifescienceai/medmcqa",
        split="validation",  # the test split has no answers
        file_stem="medmcqa_validation",
        prompt="Question: {question}\nChoices:\nA. {opa}\nB. {opb}\nC. {opc}\nD. {opd}\nAnswer:",
        choices=("A", "B", "C", "D"),
        answer="cop",
    ),
    Benchmark(
        name="pubmedqa",
        group="medical",
        dataset="qiaojin/PubMedQA",
        config="pqa_labeled",
        split="train",  # all 1,000 labelled by experts; for the official test half, a local file with its rows
        file_stem="pubmedqa_labeled_test",
        prompt="Abstract: {abstract}\nQuestion: {question}\nAnswer:",
        choices=("yes", "no", "maybe"),
        answer="final_decision",
        prepare=prepare_pubmedqa,
    ),
    _mmlu("medical", "medical", MMLU_MEDICAL),
    _mmlu("general", "general", MMLU_GENERAL),
    *(_mmlu(subject, "medical", [subject]) for subject in MMLU_MEDICAL),
    *(_mmlu(subject, "general", [subject]) for subject in MMLU_GENERAL),
    Benchmark(
        name="commonsense_qa",
        group="general",
        dataset="tau/commonsense_qa",
        split="validation",
        file_stem="commonsense_qa_validation",
        prompt="Question: {question}\nA. {choices[text][0]}\nB. {choices[text][1]}\nC. {choices[text][2]}\n"
        "D. {choices[text][3]}\nE. {choices[text][4]}\nAnswer:",
        choices=("A", "B", "C", "D", "E"),
        answer="answerKey",
        prepare=strip_question,
    ),
    Benchmark(
        name="hellaswag",
        group="general",
        dataset="Rowan/hellaswag",
        split="validation",
        file_stem="hellaswag_validation",
        prompt="{query}",
        choices="endings",
        answer="label",
        prepare=prepare_hellaswag,
    ),
    _arc("arc_easy", "ARC-Easy"),
    _arc("arc_challenge", "ARC-Challenge"),
    # 60 easy questions that come with the package: something to run without the Hub.
    own_benchmark(DATA_FOLDER / "general_questions.jsonl", group="general"),
]
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "medical": ("medqa_4options", "medmcqa", "pubmedqa", "mmlu_medical"),
    "general": ("mmlu_general", "commonsense_qa", "hellaswag", "arc_easy", "arc_challenge"),
}


def resolve_benchmarks(benchmarks: str | Benchmark | Sequence[str | Benchmark]) -> list[Benchmark]:
    """Turn names, group names, paths of own files and [`Benchmark`]s into benchmarks, each once, in the order given.

    Raises:
        ValueError: an unknown name (near ones are listed), nothing to run, or two benchmarks with one name.
    """
    found: dict[str, Benchmark] = {}
    for entry in [benchmarks] if isinstance(benchmarks, str | Benchmark) else benchmarks:
        for benchmark in _resolve(entry):
            if found.setdefault(benchmark.name, benchmark) != benchmark:
                raise ValueError(
                    f"Two benchmarks are called {benchmark.name!r}: give own_benchmark(..., name=) another."
                )
    if not found:
        raise ValueError(f"No benchmarks to run. Groups: {', '.join(GROUPS)}. Benchmarks: {_short_list()}.")
    return list(found.values())


def _resolve(entry: str | Benchmark | os.PathLike) -> list[Benchmark]:
    if isinstance(entry, Benchmark):
        return [entry]
    entry = os.fspath(entry)
    if entry in GROUPS:
        return [BENCHMARKS[name] for name in GROUPS[entry]]
    if entry in BENCHMARKS:
        return [BENCHMARKS[entry]]
    if Path(entry).suffix in FILE_SUFFIXES:
        return [own_benchmark(entry)]
    near = difflib.get_close_matches(entry, [*GROUPS, *BENCHMARKS], n=5, cutoff=0.4)
    raise ValueError(
        f"There is no benchmark {entry!r}."
        + (f" Near names: {', '.join(near)}." if near else "")
        + f" Groups: {', '.join(GROUPS)}. Benchmarks: {_short_list()}. An own file ends in {', '.join(FILE_SUFFIXES)}."
    )


def _short_list() -> str:
    subjects = {f"mmlu_{subject}" for subject in (*MMLU_MEDICAL, *MMLU_GENERAL)}
    return ", ".join(name for name in BENCHMARKS if name not in subjects) + ", mmlu_<subject>"
