"""What a score is: a column of positive numbers, one per chunk. Two of them together are a pair of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Column = str | tuple[str, str]
Moment = float | tuple[float, float]  # of one column, or of each of two


def as_column(column: str | Sequence[str]) -> Column:
    """A name, or a pair of two different names, in the order given (a list, as JSON has it, too).

    Raises:
        ValueError: anything else.
    """
    if isinstance(column, str):
        return column
    names = tuple(column)
    if len(names) != 2 or not all(isinstance(name, str) for name in names) or names[0] == names[1]:
        raise ValueError(f"column={column!r} must be the name of a score column, or a pair of two different ones.")
    return names


def names_of(column: Column) -> tuple[str, ...]:
    """The names of the one or two columns."""
    return (column,) if isinstance(column, str) else column


def in_words(column: Column) -> str:
    """How texts call one column, or two."""
    return " and ".join(names_of(column))


def counted_in(report: Mapping[str, Any]) -> str:
    """What a selection's budget and sizes count: tokens, or the words of a corpus that no model has scored."""
    settings = report if "num_tokens_column" in report else report.get("options") or {}
    return settings.get("num_tokens_column", "num_tokens").removeprefix("num_").replace("_", " ")


def extrapolated(report: Mapping[str, Any]) -> list[str]:
    """Why the losses that a selection's report predicts are beyond the law's probes: reasons, as texts say them."""
    reasons = [
        f"no probe covers {whose} moments"
        for name, whose in (("predicted", "this subset's"), ("random", "a random subset's"))
        if report.get(f"{name}_trusted") is False
    ]
    if (times := report.get("extrapolation") or 0) > 4:
        reasons.append(f"the subset's tokens are {times:,.0f} times those of the longest probe")
    return reasons


def check_counts_tokens(num_tokens_column: str, what: str) -> None:
    """Refuse the columns that the scorers add and that count something else, for what is about tokens.

    Raises:
        ValueError: the column counts words or bytes.
    """
    if num_tokens_column in ("num_words", "num_bytes"):
        raise ValueError(
            f"num_tokens_column={num_tokens_column!r}, but {what} is about the tokens that a model trains on: score "
            "the chunks with the model, which adds num_tokens, or name the column that has them."
        )


def as_moment(numbers: Any) -> Moment:
    """A float, or the floats of both columns: as moments are compared and saved."""
    return float(numbers) if np.ndim(numbers) == 0 else tuple(map(float, numbers))


def digits(numbers: Moment) -> str:
    """Four digits of a moment, or of both columns' moments."""
    return " and ".join(f"{x:.4g}" for x in np.atleast_1d(numbers))


def check_one_column(column: Column, what: str) -> None:
    """ValueError where `what`, which takes one score column, is given two."""
    if not isinstance(column, str):
        raise ValueError(
            f"{what} takes one score column, this is about {in_words(column)} together; name one of them."
        )


def check_log_space(space: str) -> None:
    """ValueError in any space but the one that two columns together have."""
    if space != "log":
        raise ValueError(f"two score columns together have log space only, got space={space!r}; pass space='log'.")


def which_are_scored(values: np.ndarray, num_tokens: np.ndarray, column: str, start: int = 0) -> np.ndarray:
    """Which chunks have a score, bool `[n]`: not those of empty texts, which have none (NaN) or no tokens.

    Args:
        values, num_tokens: scores and tokens `[n]`.
        column, start: the score's name and the number of the first row, for errors.

    Raises:
        ValueError: a score or a number of tokens that cannot be.
    """
    scored = ~np.isnan(values) & (num_tokens != 0)
    is_perplexity = column == "perplexity"
    # A token's probability is at most 1, so a perplexity is at least 1 (float rounding aside).
    above = 1 - 1e-6 if is_perplexity else 0.0
    bad = np.flatnonzero(scored & ~((values > above) & (num_tokens > 0) & np.isfinite(num_tokens)))
    if len(bad):
        what = "is exp(nll_sum / num_tokens), 1 or more" if is_perplexity else "is a score, more than 0"
        raise ValueError(
            f"row {start + bad[0]} has {column} {values[bad[0]]:g} and num_tokens {num_tokens[bad[0]]:g}; "
            f"{column} {what}, and num_tokens is positive. Is it {'nll' if is_perplexity else 'a logarithm'}?"
        )
    return scored
