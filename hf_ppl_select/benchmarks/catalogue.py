"""The benchmarks that come with the package, and their groups.

Prompts and choices are those of lm-evaluation-harness 0.4.13, whose task files were read for it: a question is
scored by the log-likelihood of " " + choice after the prompt. DiagnosisArena is not among its tasks; its prompt here
follows the form of the others.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from .benchmark import FILE_SUFFIXES, LETTERS, Benchmark, own_benchmark
from .rows import (
    MMMLU_LANGUAGES,
    prepare_arc,
    prepare_cmmlu,
    prepare_diagnosis_arena,
    prepare_gpqa,
    prepare_hellaswag,
    prepare_mmlu,
    prepare_mmmlu,
    prepare_pubmedqa,
    strip_question,
)
from .subject_names import CMMLU_SUBJECTS, MMLU_GENERAL, MMLU_MEDICAL

DATA_FOLDER = Path(__file__).parent / "data"
_MMLU_DESCRIPTION = "The following are multiple choice questions (with answers) about {topic}.\n\n"


def _mmlu(name: str, group: str, subjects: Sequence[str] | None = None) -> Benchmark:
    return Benchmark(
        name=name,
        group=group,
        dataset="cais/mmlu",
        config="all",
        file_stem="mmlu_test",
        description=_MMLU_DESCRIPTION,
        prompt="{question}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:",
        choices=LETTERS[:4],
        answer="answer",
        where=None if subjects is None else ("subject", frozenset(subjects)),
        prepare=prepare_mmlu,
        examples_split="dev",
        examples_stem="mmlu_dev",
        examples_by="subject",
    )


def _mmmlu(name: str, locales: Sequence[str]) -> Benchmark:
    return Benchmark(
        name=name,
        group="general",
        dataset="openai/MMMLU",
        config=tuple(locales),
        config_column="locale",
        description=_MMLU_DESCRIPTION,
        prompt="{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:",
        choices=LETTERS[:4],
        answer="Answer",
        prepare=prepare_mmmlu,
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
        examples_split="train",
        examples_stem=f"{name}_train",
    )


def _gpqa(name: str, group: str, config: str, domains: Sequence[str] | None = None) -> Benchmark:
    return Benchmark(
        name=name,
        group=group,
        dataset="Idavidrein/gpqa",
        config=config,
        split="train",  # the only one, so there are no examples
        gated=True,
        file_stem=config,
        prompt="What is the correct answer to this question:{Question}\nChoices:\n(A) {answers[0]}\n(B) {answers[1]}\n"
        "(C) {answers[2]}\n(D) {answers[3]}\nAnswer:",
        choices=("(A)", "(B)", "(C)", "(D)"),
        answer="gold",
        where=None if domains is None else ("High-level domain", frozenset(domains)),
        prepare=prepare_gpqa,
    )


_ALL = [
    Benchmark(
        name="medqa_4options",
        group="medical",
        dataset="GBaker/MedQA-USMLE-4-options-hf",
        file_stem="medqa_4options_test",
        prompt="Question: {sent1}\nA. {ending0}\nB. {ending1}\nC. {ending2}\nD. {ending3}\nAnswer:",
        choices=LETTERS[:4],
        answer="label",
        examples_split="train",
        examples_stem="medqa_4options_train",
    ),
    Benchmark(
        name="medmcqa",
        group="medical",
        dataset="openlifescienceai/medmcqa",
        split="validation",  # the test split has no answers
        file_stem="medmcqa_validation",
        prompt="Question: {question}\nChoices:\nA. {opa}\nB. {opb}\nC. {opc}\nD. {opd}\nAnswer:",
        choices=LETTERS[:4],
        answer="cop",
        examples_split="train",
        examples_stem="medmcqa_train",
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
    Benchmark(
        name="diagnosis_arena",
        group="medical",
        dataset="shzyk/DiagnosisArena",
        prompt="Case: {Case Information}\nPhysical examination: {Physical Examination}\n"
        "Diagnostic tests: {Diagnostic Tests}\nQuestion: What is the diagnosis?\n{options}\nAnswer:",
        choices=LETTERS[:4],
        answer="Right Option",
        prepare=prepare_diagnosis_arena,
    ),
    _gpqa("gpqa_biology", "medical", "gpqa_main", ["Biology"]),
    _gpqa("gpqa_main", "general", "gpqa_main"),
    _gpqa("gpqa_extended", "general", "gpqa_extended"),
    _gpqa("gpqa_diamond", "general", "gpqa_diamond"),
    _mmlu("mmlu", "general"),
    _mmlu("mmlu_medical", "medical", MMLU_MEDICAL),
    _mmlu("mmlu_general", "general", MMLU_GENERAL),
    *(_mmlu(f"mmlu_{subject}", "medical", [subject]) for subject in MMLU_MEDICAL),
    *(_mmlu(f"mmlu_{subject}", "general", [subject]) for subject in MMLU_GENERAL),
    _mmmlu("mmmlu", list(MMMLU_LANGUAGES)),
    *(_mmmlu(f"mmmlu_{locale.lower()}", [locale]) for locale in MMMLU_LANGUAGES),
    Benchmark(
        name="cmmlu",
        group="general",
        dataset="haonan-li/cmmlu",
        config=tuple(CMMLU_SUBJECTS),
        config_column="subject",
        revision="refs/convert/parquet",  # the main branch is a script, which `datasets` no longer runs
        hub_files="{config}/{split}/*.parquet",
        description="以下是关于{topic}的单项选择题，请直接给出正确答案的选项。\n\n",
        prompt="{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案：",
        choices=LETTERS[:4],
        answer="Answer",
        prepare=prepare_cmmlu,
        examples_split="dev",
        examples_by="subject",
    ),
    Benchmark(
        name="commonsense_qa",
        group="general",
        dataset="tau/commonsense_qa",
        split="validation",
        file_stem="commonsense_qa_validation",
        prompt="Question: {question}\nA. {choices[text][0]}\nB. {choices[text][1]}\nC. {choices[text][2]}\n"
        "D. {choices[text][3]}\nE. {choices[text][4]}\nAnswer:",
        choices=LETTERS,
        answer="answerKey",
        prepare=strip_question,
        examples_split="train",
        examples_stem="commonsense_qa_train",
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
        examples_split="train",
        examples_stem="hellaswag_train",
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
    # What the paper averages, but for NEJMQA; GPQA asks for a token, and MMMLU has 196,588 questions: set a limit.
    "paper_medical": ("medqa_4options", "medmcqa", "pubmedqa", "mmlu_medical", "gpqa_biology", "diagnosis_arena"),
    "paper_general": ("cmmlu", "mmmlu"),
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
    """The names, without those of single MMLU subjects and MMMLU locales."""
    parts = {f"mmlu_{subject}" for subject in (*MMLU_MEDICAL, *MMLU_GENERAL)}
    parts |= {f"mmmlu_{locale.lower()}" for locale in MMMLU_LANGUAGES}
    return ", ".join(name for name in BENCHMARKS if name not in parts) + ", mmlu_<subject>, mmmlu_<locale>"
