"""The rows that can be chosen: scored, inside the guards, not too long, not seen before. The others are counted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..deduplication.duplicates import NEAR_THRESHOLD, Deduplicate, check_deduplicate, find_duplicates
from ..landscape.joint import JointLandscape
from ..landscape.landscape import PerplexityLandscape
from ..landscape.reach import check_budget
from ..landscape.scores import Column, check_one_column, in_words, names_of


@dataclass(frozen=True, eq=False)
class Candidates:
    """The rows that can be chosen.

    Attributes:
        rows: their positions in the dataset, rising, int64 `[n]`.
        scores: of those rows, float64 `[n]`, of two columns `[n, 2]`.
        tokens: of those rows, float64 `[n]`.
        landscape: of those rows.
        dropped: the other rows, counted by the first reason that applies.
        num_rows: of the dataset.
        sha256: of the columns score (or both) and num_tokens of the whole dataset.
    """

    rows: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    landscape: PerplexityLandscape | JointLandscape
    dropped: dict[str, int]
    num_rows: int
    sha256: str


def find_candidates(
    dataset: Any,
    num_tokens: float,
    *,
    column: Column = "perplexity",
    num_tokens_column: str = "num_tokens",
    text_column: str = "text",
    min_score: float | None = None,
    max_score: float | None = None,
    deduplicate: Deduplicate | None = None,
    near_threshold: float = NEAR_THRESHOLD,
    model: str | None = None,
) -> Candidates:
    """Read a scored dataset and drop what cannot be chosen; the options are those of `plan_selection`.

    Raises:
        KeyError, TypeError: see [`read_columns`].
        ValueError: guards that leave nothing or come with two columns, or a budget that is not positive or above what
            there is.
    """
    check_guards(min_score, max_score)
    check_deduplicate(deduplicate, near_threshold)
    if min_score is not None or max_score is not None:
        check_one_column(column, "a guard (min_score, max_score)")
    *columns, tokens = read_columns(dataset, *names_of(column), num_tokens_column)
    digest = hash_columns(*columns, tokens)
    scores = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    landscape = PerplexityLandscape.from_values(scores, tokens, model=model, column=column)
    check_budget(num_tokens, landscape.num_tokens)
    dropped = {"no_score": landscape.num_skipped, "infinite_score": landscape.num_infinite}
    inside = np.isfinite(scores.T).reshape(-1, len(tokens)).all(axis=0) & (tokens > 0)

    def drop(reason: str, which: np.ndarray) -> None:
        nonlocal inside
        dropped[reason] = int((inside & which).sum())
        inside &= ~which

    if min_score is not None:
        drop("below_min_score", scores < min_score)
    if max_score is not None:
        drop("above_max_score", scores > max_score)
    if not inside.any():
        raise ValueError(
            f"No chunk has a {in_words(column)} between min_score={min_score} and max_score={max_score}; "
            f"they lie between {np.nanmin(scores):.4g} and {np.nanmax(scores):.4g}."
        )
    shortest = tokens[inside].min()
    drop("longer_than_budget", tokens > num_tokens)
    rows = np.flatnonzero(inside)
    if not len(rows):
        raise ValueError(f"num_tokens={num_tokens:,} is less than the shortest chunk has ({shortest:,.0f}).")
    if deduplicate is not None:
        originals = find_duplicates(dataset, rows, deduplicate, text_column=text_column, threshold=near_threshold)
        repeats = originals >= 0
        dropped["near_duplicate" if deduplicate == "near" else "duplicate"] = int(repeats.sum())
        rows = rows[~repeats]
    everything = len(rows) == landscape.num_chunks
    scores, tokens = scores[rows], tokens[rows]
    if not everything:
        landscape = PerplexityLandscape.from_values(scores, tokens, model=model, column=column)
        counts = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
        check_budget(num_tokens, landscape.num_tokens, f" (dropped rows: {counts})")
    return Candidates(rows.astype(np.int64), scores, tokens, landscape, dropped, len(inside), digest)


def check_guards(min_score: float | None, max_score: float | None) -> None:
    for name, guard in (("min_score", min_score), ("max_score", max_score)):
        if guard is not None and not isinstance(guard, Real):
            raise TypeError(f"{name}={guard!r} must be a number.")
    low, high = (-np.inf if min_score is None else min_score, max_score)
    high = np.inf if high is None else high
    if not low <= high:  # also NaN
        raise ValueError(f"min_score={min_score} and max_score={max_score} leave nothing between them.")


def hash_columns(*columns: np.ndarray) -> str:
    """SHA-256 of float64 columns, little-endian, every NaN the same."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.where(np.isnan(column), np.nan, column).astype("<f8").tobytes())
    return digest.hexdigest()


def read_columns(dataset: Any, *names: str) -> tuple[np.ndarray, ...]:
    """Columns of numbers as float64 `[n]`; None becomes NaN.

    Raises:
        KeyError: a column is missing.
        TypeError: a stream, or a dataset of several splits.
        ValueError: no rows.
    """
    present = getattr(dataset, "column_names", None)
    if isinstance(present, dict):
        raise TypeError(f"The dataset has splits ({', '.join(present)}); pass one of them, like dataset['train'].")
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            "A stream has no rows to point at; use stream.filter(PerplexitySelector.from_law(...)) instead."
        )
    present = list(dataset) if present is None else present
    for name in names:
        if name not in present:
            advice = "run dataset.map(score_ppl, batched=True) first, or pass column= or num_tokens_column="
            advice += " (of select_subset.py --column and --num_tokens_column)"
            if name == "num_tokens" and "num_words" in present:
                advice = 'pass num_tokens_column="num_words" (of select_subset.py --num_tokens_column num_words), and '
                advice += "the budget is in words"
            raise KeyError(f"The dataset has no column {name!r}, it has {', '.join(present) or 'none'}; {advice}.")
    if hasattr(dataset, "select_columns"):
        table = dataset.select_columns(list(names)).with_format("arrow")[:]
        columns = [table[name].to_numpy() for name in names]
    else:
        columns = [dataset[name] for name in names]
    arrays = tuple(np.array(column, dtype=np.float64) for column in columns)
    if not len(arrays[0]):
        raise ValueError("The dataset has no rows, so there is nothing to select.")
    return arrays
