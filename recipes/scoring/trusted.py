"""The trusted sample: clean texts of the domain, apart from the corpus and from what is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ppl_select.data.load import load_rows, load_texts
from hf_ppl_select.data.overlap import contained_in, sharing_runs, split_apart
from hf_ppl_select.data.saving import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset


def read_trusted(name: str, eval_file: str | None, text_column: str) -> tuple[list[str], dict[str, Any]]:
    """The texts to train the reference on, and where they are from.

    Raises:
        ValueError: they share runs of words with the held-out texts of `eval_file`.
    """
    texts = read_texts(name, text_column)
    if eval_file is not None and (shared := sharing_runs(texts, read_texts(eval_file, text_column))):
        raise ValueError(
            f"{len(shared)} of the {len(texts)} texts of {name} share a run of eight words with {eval_file}, "
            f"{_rows(shared, texts)}: what is measured on cannot be trained on, so take them out of one of the two."
        )
    return texts, {"trusted": name, "eval_file": eval_file}


def split_trusted(eval_file: str, share: float, text_column: str) -> tuple[list[str], list[str], dict[str, Any]]:
    """The same from a share of `eval_file`; in between, its other texts, which are left to measure on.

    Raises:
        ValueError: there are too few to split.
    """
    texts = read_texts(eval_file, text_column)
    trusted, others = ([texts[position] for position in part] for part in split_apart(texts, share))
    return trusted, others, {"eval_file": eval_file, "trusted_share": share, "num_held_out": len(others)}


def write_held_out(path: Path, texts: Sequence[str]) -> None:
    """A .jsonl file of them."""
    write_atomically(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    print(
        f"{path} has the {len(texts)} texts to measure on: no run of eight words in them stands in a trusted one. "
        "What they were split from is no longer held out.",
        flush=True,
    )


def check_not_in_corpus(texts: Sequence[str], name: str, corpus: Dataset, column: str, corpus_name: str) -> None:
    """ValueError where trusted texts are part of the corpus: the reference, or n-grams, would know its rows by heart.

    Args:
        corpus: its documents or rows; `column` holds texts, or messages.
    """
    values = (value for batch in corpus.select_columns([column]).iter(1000) for value in batch[column])
    if inside := contained_in(texts, (value if isinstance(value, str) else str(value) for value in values)):
        raise ValueError(
            f"{len(inside)} of the {len(texts)} texts of {name} are part of {corpus_name}, {_rows(inside, texts)}: "
            "what learns from trusted texts scores these by heart, so take them out of one of the two."
        )


def read_texts(name: str, text_column: str) -> list[str]:
    """The texts of a file, in the corpus's text column, or in `text`.

    Raises:
        ValueError: it has neither.
    """
    there = load_rows(name).column_names
    if text_column not in there and "text" not in there:
        columns = dict.fromkeys((text_column, "text"))
        raise ValueError(
            f"{name} has no column {' or '.join(map(repr, columns))}; its columns are {', '.join(there)}."
        )
    return load_texts(name, text_column if text_column in there else "text")[0]["text"][:]


def _rows(positions: Sequence[int], texts: Sequence[str]) -> str:
    """The first of them, by number and beginning."""
    named = ", ".join(f"{position} ({' '.join(texts[position].split())[:40]!r})" for position in positions[:3])
    return f"texts {named}" + (", ..." if len(positions) > 3 else "")
