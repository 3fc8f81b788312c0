"""Likelihoods of texts: rows cut into windows, windows through the engine, sums per row. Imports no torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ..likelihood.start_token import start_token
from .rows import LONGEST_CONTEXT, TokenizedRow, tokenize_rows, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..likelihood.engine import LikelihoodEngine


# Tokens: compiled layers have then saved more than what compiling them took
COMPILING_PAYS = {"cpu": 2**20, "cuda": 2**22}


def compiling_pays(num_tokens: int, device: str | None = None) -> bool:
    """Whether to compile a model with so many tokens to score: if it is worth it, and there is a compiler.

    Args:
        num_tokens: how many.
        device: kind of device that the model is on, "cuda" or "cpu"; default: CUDA if there is one, else CPU.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = (os.environ.get("CC"), "gcc", "clang") if device == "cuda" else (os.environ.get("CXX"), "g++", "clang++")
    can = any(name and shutil.which(name) for name in names) and (device == "cpu" or find_spec("triton") is not None)
    return can and num_tokens >= COMPILING_PAYS.get(device, math.inf)


@dataclass(frozen=True)
class TextLikelihoods:
    """Likelihoods of some texts: arrays `[num_texts]`, summed nll in nats, tokens scored, UTF-8 bytes of them."""

    nll_sum: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray

    @property
    def nll_per_token(self) -> float:
        """Nats per token over all texts: what a trainer calls the evaluation loss."""
        return float(self.nll_sum.sum() / self.num_tokens.sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll_per_token))

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers, which perplexities are not."""
        return float(self.nll_sum.sum() / math.log(2) / self.num_bytes.sum())


@dataclass(frozen=True)
class CutRows:
    """Rows as windows, for one model after another; `num_tokens` and `num_bytes` are those of each row that count."""

    windows: list[tuple[list[int], Sequence[int]]]
    owners: list[int]
    num_tokens: np.ndarray
    num_bytes: np.ndarray

    def nll_sum(self, engine: LikelihoodEngine, progress: Callable[[int], object] | None = None) -> np.ndarray:
        """Nats of each row, summed over its tokens that count: float64 `[num_rows]`."""
        nll = engine.nll([ids for ids, _ in self.windows], [counted for _, counted in self.windows], progress=progress)
        sums = np.zeros(len(self.num_tokens), dtype=np.float64)
        np.add.at(sums, np.asarray(self.owners, dtype=np.int64), nll)
        return sums


def cut_rows(rows: Sequence[TokenizedRow], *, bos: int | None, max_length: int, stride: int) -> CutRows:
    """Cut rows longer than `max_length` into overlapping windows.

    A row's first token counts only behind a BOS: without one, neither it nor its bytes do. No tokens, no bytes.

    Raises:
        ValueError: not `1 <= stride < max_length`.
    """
    if not 1 <= stride < max_length:
        raise ValueError(f"stride must be from 1 to max_length - 1, not {stride} with max_length {max_length}.")
    parts, owners = [], []
    num_tokens = np.zeros(len(rows), dtype=np.int32)
    for index, row in enumerate(rows):
        for ids, positions in windows(row, bos=bos, max_length=max_length, stride=stride):
            parts.append((ids, positions))
            owners.append(index)
            num_tokens[index] += len(positions)
    num_bytes = [row.num_bytes - (0 if row.follows(bos) else row.num_bytes_first) for row in rows]
    return CutRows(parts, owners, num_tokens, np.where(num_tokens > 0, np.array(num_bytes, dtype=np.int32), 0))


def score_rows(
    rows: Sequence[TokenizedRow],
    engine: LikelihoodEngine,
    *,
    bos: int | None,
    max_length: int,
    stride: int,
    progress: Callable[[int], object] | None = None,
) -> TextLikelihoods:
    """Sum each row's nll over its counted tokens, in windows as [`cut_rows`] makes them."""
    cut = cut_rows(rows, bos=bos, max_length=max_length, stride=stride)
    return TextLikelihoods(cut.nll_sum(engine, progress), cut.num_tokens, cut.num_bytes)


def evaluate_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    bos: str | int = "auto",
    engine: LikelihoodEngine | None = None,
    progress: Callable[[int], object] | None = None,
) -> TextLikelihoods:
    """Likelihoods of held-out texts under a model in memory, for instance one in training.

    Args:
        texts: the texts; empty ones count nothing.
        max_length: longest window in tokens; default: the positions the model has, at most 4,096.
        bos: as in [`PerplexityScorer`], or a token: the one that the base model chose, where models trained from it
            are compared.
        engine: an engine over `model` to reuse, e.g. one with autocast.
        progress: called with the number of tokens done after each batch.

    Raises:
        ValueError: no text has a token to score, or `max_length` does not suit the model.
    """
    from ..likelihood.engine import LikelihoodEngine

    engine = engine or LikelihoodEngine(model)
    max_length = context_length(model, max_length)
    rows = tokenize_rows({"text": list(texts)}, tokenizer, text_column="text")
    scored = score_rows(
        rows,
        engine,
        bos=start_token(engine, tokenizer, bos),
        max_length=max_length,
        stride=max_length // 2,
        progress=progress,
    )
    if not scored.num_tokens.sum():
        raise ValueError(f"None of the {len(rows)} texts has a token to score.")
    return scored


def context_length(model: PreTrainedModel, max_length: int | None = None) -> int:
    """The longest window: `max_length`, else as many positions as the model has, at most 4,096.

    Raises:
        ValueError: `max_length` is more than the model has.
    """
    from ..likelihood.models import num_positions

    positions = num_positions(model)
    if max_length and max_length > positions:
        raise ValueError(f"max_length is {max_length}, but the model has {positions} positions.")
    return max_length or int(min(positions, LONGEST_CONTEXT))
