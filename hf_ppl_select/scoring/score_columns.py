"""Tokenized rows -> the columns of their scores: one pass of a model over each for every score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .ifd import without_prompt
from .loaded import Reference
from .rows import TokenizedRow
from .texts import cut_rows, score_rows

if TYPE_CHECKING:
    from ..likelihood.engine import LikelihoodEngine

SCORE_COLUMNS = ("perplexity", "nll_sum", "num_tokens", "num_bytes")
REFERENCE_COLUMNS = ("reference_nll_sum", "perplexity_ratio")  # beside them with a reference
EVERY_COLUMN = (*SCORE_COLUMNS, *REFERENCE_COLUMNS, "ifd")


def score_columns(
    rows: Sequence[TokenizedRow],
    engine: LikelihoodEngine,
    reference: Reference | None = None,
    *,
    bos: int | None,
    max_length: int,
    stride: int,
    ifd: bool = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The columns of [`~hf_ppl_select.PerplexityScorer`], each a list or an array `[num_rows]`.

    Raises:
        ValueError: the reference has fewer positions than a window has tokens.
    """
    cut = cut_rows(rows, bos=bos, max_length=max_length, stride=stride)
    nll = cut.nll_sum(engine, progress)
    columns = {
        "perplexity": _exp_means(nll, cut.num_tokens),
        "nll_sum": nll,
        "num_tokens": cut.num_tokens,
        "num_bytes": cut.num_bytes,
    }
    if reference is not None:
        with reference.on() as other:
            if max_length > other.positions:
                raise ValueError(
                    f"The reference has {other.positions} positions, but windows are of {max_length} tokens: pass "
                    f"max_length={other.positions}."
                )
            compared = cut.nll_sum(other, progress)
        columns["reference_nll_sum"] = compared
        columns["perplexity_ratio"] = _exp_means(_difference(nll, compared), cut.num_tokens)
    if ifd:
        alone = [without_prompt(row, bos) for row in rows]
        alone = score_rows(alone, engine, bos=bos, max_length=max_length, stride=stride, progress=progress)
        columns["ifd"] = _exp_means(_difference(nll, alone.nll_sum), cut.num_tokens)
    return columns


def _difference(nll: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Nats between the two; none where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(nll == other, 0.0, nll - other)


def _exp_means(nats: np.ndarray, num_tokens: np.ndarray) -> Any:
    """exp(nats / num_tokens): null, or NaN where all are, for what has no tokens."""
    with np.errstate(over="ignore"):  # an infinite perplexity is allowed, and kept
        values = np.exp(nats / np.maximum(num_tokens, 1))
    empty = num_tokens == 0
    if empty.all():
        return np.full(len(values), np.nan)
    return [None if nothing else value for value, nothing in zip(values.tolist(), empty)]
