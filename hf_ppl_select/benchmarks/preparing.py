"""Rows of the Hub's data sets -> rows with the columns that a benchmark's templates name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .cmmlu_subjects import CMMLU_SUBJECTS

Row = dict[str, Any]
MMMLU_LANGUAGES = {
    "AR_XY": "Arabic",
    "BN_BD": "Bengali",
    "DE_DE": "German",
    "ES_LA": "Spanish",
    "FR_FR": "French",
    "HI_IN": "Hindi",
    "ID_ID": "Indonesian",
    "IT_IT": "Italian",
    "JA_JP": "Japanese",
    "KO_KR": "Korean",
    "PT_BR": "Brazilian Portuguese",
    "SW_KE": "Swahili",
    "YO_NG": "Yoruba",
    "ZH_CN": "Simplified Chinese",
}
GPQA_SEED = 1234


def strip_question(row: Row) -> Row:
    return {**row, "question": row["question"].strip()}


def prepare_mmlu(row: Row) -> Row:
    return {**strip_question(row), "topic": row["subject"].replace("_", " ")}


def prepare_mmmlu(row: Row) -> Row:
    topic = f"{row['Subject'].replace('_', ' ')} ({_known(MMMLU_LANGUAGES, row, 'locale')})"
    return {**row, "question": row["Question"].strip(), "topic": topic}


def prepare_cmmlu(row: Row) -> Row:
    return {**row, "question": row["Question"].strip(), "topic": _known(CMMLU_SUBJECTS, row, "subject")}


def _known(names: Mapping[str, str], row: Row, column: str) -> str:
    if row[column] not in names:
        raise ValueError(f"{column} {row[column]!r} is none of {', '.join(names)}.")
    return names[row[column]]


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


def prepare_gpqa(row: Row) -> Row:
    """The four answers in an order drawn from the question's own text, so that it is the same in every run."""
    columns = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Correct Answer")
    answers = [_clean_gpqa(row[column]) for column in columns]
    digest = hashlib.sha256(row["Question"].encode("utf-8")).digest()
    order = np.random.default_rng([GPQA_SEED, *digest[:8]]).permutation(4).tolist()
    return {**row, "answers": [answers[i] for i in order], "gold": order.index(3)}


def _clean_gpqa(text: str) -> str:
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


def prepare_diagnosis_arena(row: Row) -> Row:
    """The options as one line each, whether a row lists them by letter or as a text."""
    options = row["Options"]
    if isinstance(options, Mapping):
        options = "\n".join(f"{letter}. {text}" for letter, text in sorted(options.items()) if text is not None)
    if not isinstance(options, str) or not options.strip():
        raise ValueError(f"Options must be a text or one text per letter, not {row['Options']!r}.")
    return {**row, "options": options.strip()}
