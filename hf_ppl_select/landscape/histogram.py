"""What landscapes of one score column and of two have in common: sums per bin, chunks first, then tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .reach import check_budget
from .scores import Column, in_words

if TYPE_CHECKING:
    from typing import Self


class Histogram:
    """Base of landscapes, which have these attributes."""

    column: Column
    sums: np.ndarray
    weights: str
    num_skipped: int
    num_infinite: int
    model: str | None

    @property
    def num_chunks(self) -> int:
        return int(self.sums[:, 0].sum())

    @property
    def num_tokens(self) -> int:
        return int(self.sums[:, 1].sum())

    @property
    def tokens_per_chunk(self) -> float:
        return self.num_tokens / self.num_chunks

    def check_size(self, num_tokens: Any) -> None:
        """ValueError where a budget is more tokens than the corpus has, or less than one chunk."""
        check_budget(num_tokens, self.num_tokens)
        if not num_tokens >= min(self.tokens_per_chunk, self.num_tokens):
            raise ValueError(
                f"asked for {num_tokens:g} tokens, but one chunk holds {self.tokens_per_chunk:g} on average."
            )

    def _checked(self) -> Self:
        if not len(self.sums):
            counts = f"{self.num_skipped} are empty, {self.num_infinite} infinite"
            what = in_words(self.column)
            raise ValueError(f"no chunk has a finite {what} ({counts}); there is no landscape to describe.")
        return self

    def _check_same_kind(self, other: Histogram) -> None:
        """ValueError where `other` is of other columns, models or weights, and so cannot be merged."""
        if self.column != other.column:
            ours, theirs = in_words(self.column), in_words(other.column)
            raise ValueError(f"cannot merge a landscape of {ours} with one of {theirs}.")
        if self.model and other.model and self.model != other.model:
            raise ValueError(
                f"cannot merge landscapes of different models ({self.model} and {other.model}): their perplexities "
                "do not compare. Score both corpora with one model."
            )
        if self.weights != other.weights:
            raise ValueError(f"cannot merge a landscape weighted by {self.weights} with one by {other.weights}.")
