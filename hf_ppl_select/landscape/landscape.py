"""The landscape of a corpus in one score column: exact moments, quantiles, and what subsets of it can reach.

A landscape is a histogram over ln(score) with bins 1/256 nat (0.4 %) wide that also keeps, per bin, the sums of each
value's offset from the bin's centre. Offsets are tiny, so sums of their squares lose nothing to cancellation; adding
two landscapes is adding their bins; and the moments of the whole come out exact, not binned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.columns import read_columns
from ..data.saving import load_json, save_json
from ..data.schema import Numbers, Text
from .cells import Cells
from .histogram import Histogram
from .joint import JointLandscape
from .reach import AttainableRegion, attainable_region, out_of_reach
from .saved import BIN, read_sums
from .scores import Column, as_column, which_are_scored

BINS_PER_NAT = 256
_SCHEMA_VERSION = 1
_BLOCK = 1 << 18  # values summed up together
_SUMS = ("count", "tokens", "weight", "u1", "u2", "v1", "v2")  # columns of `sums`, see PerplexityLandscape
_NOTHING = np.empty(0, dtype=np.int64), np.empty((0, len(_SUMS)))


@dataclass(frozen=True, eq=False)
class PerplexityLandscape(Histogram):
    """The distribution of a score, perplexity unless another column is named, over the chunks of a corpus.

    A score is any positive number per chunk; its logarithm is in nats. Where the score is perplexity, that is nll.

    Build it with [`~PerplexityLandscape.from_dataset`] or [`~PerplexityLandscape.from_values`]; shards merge.

    Attributes:
        bins: `(num_bins,)` int64, occupied bins in rising order; bin b holds ln(score) in `[b, b + 1) / 256`.
        sums: `(num_bins, 7)` float64: chunks, tokens, weight w, then Σ w·u, Σ w·u², Σ w·v, Σ w·v², where u is the
            relative offset of a score from its bin's centre and v the offset of its logarithm, in nats.
        weights: `"chunks"` (one chunk, one vote) or `"tokens"`.
        num_skipped: chunks without a score (empty text); left out of everything else.
        num_infinite: chunks with an infinite score; left out of moments, quantiles, `num_chunks` and `num_tokens`.
        model: the model that scored the chunks, if told; landscapes and laws of different models do not mix.
        column: the score column; landscapes and laws of different columns do not mix either.
    """

    bins: np.ndarray
    sums: np.ndarray
    weights: Literal["chunks", "tokens"] = "chunks"
    num_skipped: int = 0
    num_infinite: int = 0
    model: str | None = None
    column: str = "perplexity"

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        column: Column = "perplexity",
        num_tokens_column: str = "num_tokens",
        weights: Literal["chunks", "tokens"] = "chunks",
        model: str | None = None,
    ) -> PerplexityLandscape | JointLandscape:
        """The landscape of a scored dataset.

        Args:
            dataset: a scored `datasets.Dataset` or `IterableDataset`, or anything with columns (a dict, a DataFrame).
            column: the score: what the scorer wrote, or any column of positive numbers. Two of them, `(first,
                second)`, have a [`~hf_ppl_select.landscape.joint.JointLandscape`].
            num_tokens_column: tokens of each chunk.
            weights: what has one vote in the moments, a chunk (default) or a token.
            model: the model that scored it.

        Raises:
            KeyError: a column is missing.
            ValueError: no rows, no chunk with a finite score, or impossible values.
        """
        if not isinstance(column, str):
            return JointLandscape.from_dataset(
                dataset, as_column(column), num_tokens_column=num_tokens_column, weights=weights, model=model
            )
        landscape, start = None, 0
        for values, num_tokens in read_columns(dataset, column, num_tokens_column):
            part = cls._from_arrays(values, num_tokens, weights, model, start, column)
            landscape = part if landscape is None else landscape.merge(part)
            start += len(values)
        if landscape is None:
            raise ValueError("the dataset has no rows, so it has no landscape.")
        return landscape._checked()

    @classmethod
    def from_values(
        cls,
        values: Any,
        num_tokens: Any = None,
        *,
        weights: Literal["chunks", "tokens"] = "chunks",
        model: str | None = None,
        column: Column = "perplexity",
    ) -> PerplexityLandscape | JointLandscape:
        """The landscape of arrays.

        Args:
            values: `(num_chunks,)` scores; None or NaN is an empty text (skipped, counted), infinity is counted apart.
                `(num_chunks, 2)` of two columns.
            num_tokens: `(num_chunks,)` scored tokens per chunk; without it every chunk counts one, so budgets are in
                chunks.
        """
        if not isinstance(column, str):
            return JointLandscape.from_values(
                values, num_tokens, column=as_column(column), weights=weights, model=model
            )
        values = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else float).reshape(-1)
        if num_tokens is not None:
            as_is = isinstance(num_tokens, np.ndarray)
            num_tokens = np.asarray(num_tokens, dtype=None if as_is else float).reshape(-1)
            if len(num_tokens) != len(values):
                raise ValueError(f"{column} has {len(values)} values, num_tokens has {len(num_tokens)}.")
        return cls._from_arrays(values, num_tokens, weights, model, 0, column)._checked()

    @classmethod
    def _from_arrays(cls, values, num_tokens, weights, model, start, column) -> PerplexityLandscape:
        """Block by block, so that memory does not grow with the rows; `start` is the first row's number in errors."""
        if weights not in ("chunks", "tokens"):
            raise ValueError(f"weights must be 'chunks' or 'tokens', got {weights!r}.")
        landscape = cls(*_NOTHING, weights, model=model, column=column)
        for first in range(0, len(values), _BLOCK):
            rows = slice(first, first + _BLOCK)
            x = np.asarray(values[rows], dtype=float)
            tokens = np.ones(len(x)) if num_tokens is None else np.asarray(num_tokens[rows], dtype=float)
            landscape = landscape.merge(cls._of_block(x, tokens, weights, model, start + first, column))
        return landscape

    @classmethod
    def _of_block(cls, values, num_tokens, weights, model, start, column) -> PerplexityLandscape:
        scored = which_are_scored(values, num_tokens, column, start)
        finite = scored & np.isfinite(values)
        skipped, infinite = int((~scored).sum()), int((scored & ~finite).sum())
        x, tokens = values[finite], num_tokens[finite]
        if not len(x):
            return cls(*_NOTHING, weights, skipped, infinite, model, column)
        nll = np.log(x)
        bin_of = np.floor(nll * BINS_PER_NAT)
        v = nll - _centres(bin_of)
        u = np.expm1(v)
        lowest = int(bin_of.min())
        place = bin_of.astype(np.int64) - lowest
        num_bins = int(place.max()) + 1
        count = np.bincount(place, minlength=num_bins)
        bins = np.flatnonzero(count)
        w = tokens if weights == "tokens" else None
        columns = [tokens, w, *(column if w is None else w * column for column in (u, u**2, v, v**2))]
        sums = [count, *(np.bincount(place, column, num_bins) for column in columns)]
        sums = np.stack([column[bins] for column in sums], axis=1).astype(float)
        return cls(bins + lowest, sums, weights, skipped, infinite, model, column)

    def merge(self, other: PerplexityLandscape) -> PerplexityLandscape:
        """The landscape of both corpora together.

        Raises:
            ValueError: another model scored `other`, it is of another column, or its weights differ.
        """
        self._check_same_kind(other)
        bins, place = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        sums = np.zeros((len(bins), len(_SUMS)))
        np.add.at(sums, place, np.concatenate([self.sums, other.sums]))
        skipped, infinite = self.num_skipped + other.num_skipped, self.num_infinite + other.num_infinite
        model = self.model or other.model
        return PerplexityLandscape(bins, sums, self.weights, skipped, infinite, model, self.column)

    def moments(self, space: Literal["linear", "log"]) -> tuple[float, float]:
        """`(mu, sigma)`: mean, standard deviation of the score (`"linear"`) or its logarithm, nats (`"log"`)."""
        w, mean, std = self.bin_moments(space)
        scale = np.abs(mean).max() or 1.0  # so that heavy tails do not overflow when squared
        mean, std = mean / scale, std / scale
        mu = w @ mean / w.sum()
        variance = w @ ((mean - mu) ** 2 + std**2) / w.sum()
        return float(mu * scale), float(np.sqrt(variance) * scale)

    def bin_moments(self, space: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per bin: weight, exact mean and standard deviation `(num_bins,)` of the score or its logarithm."""
        nll = _centres(self.bins)
        _, _, w, u1, u2, v1, v2 = self.sums.T
        if space == "log":
            return w, nll + v1 / w, _spread(v1 / w, v2 / w)
        if space == "linear":
            return w, np.exp(nll) * (1 + u1 / w), np.exp(nll) * _spread(u1 / w, u2 / w)
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")

    mu = property(lambda self: self.moments("linear")[0], doc="Mean of the score.")
    sigma = property(lambda self: self.moments("linear")[1], doc="Standard deviation of the score.")
    log_mu = property(lambda self: self.moments("log")[0], doc="Mean of ln(score), nats.")
    log_sigma = property(lambda self: self.moments("log")[1], doc="Standard deviation of ln(score), nats.")

    def quantile(self, q: Any) -> Any:
        """The score below which a share `q` in [0, 1] (number or array) of the weight lies, within 0.4 %."""
        q = np.asarray(q, dtype=float)
        if not np.all((q >= 0) & (q <= 1)):
            raise ValueError(f"q must lie in [0, 1], got {q}.")
        count = self.sums[:, 0]
        w, mean, std = self.bin_moments("log")
        # A bin's chunks count as evenly spread, with the bin's own mean and spread; its first and last are knots.
        reach = std * np.sqrt(3 * (count - 1) / (count + 1))
        floor, ceiling = self.bins / BINS_PER_NAT, (self.bins + 1) / BINS_PER_NAT
        nll = np.stack([np.maximum(mean - reach, floor), np.minimum(mean + reach, ceiling)], axis=1)
        rank = np.cumsum(w)[:, None] + np.stack([w / count / 2 - w, -w / count / 2], axis=1)
        one = w.sum() / count.sum()
        value = np.exp(np.interp(q * (w.sum() - one) + one / 2, rank.ravel(), nll.ravel()))
        return float(value) if value.ndim == 0 else value

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """`(edges, counts)`: bin edges in the score, evenly spaced on a log axis, and chunks per bin; for plots."""
        counts = np.zeros(int(self.bins[-1] - self.bins[0]) + 1, dtype=np.int64)
        counts[self.bins - self.bins[0]] = self.sums[:, 0]
        return np.exp(np.arange(self.bins[0], self.bins[-1] + 2) / BINS_PER_NAT), counts

    def attainable_region(self, num_tokens: float, space: Literal["linear", "log"] = "linear") -> AttainableRegion:
        """The (mu, sigma) that subsets of `num_tokens` tokens can have: see `reach.attainable_region`.

        Raises:
            ValueError: `num_tokens` is more than the corpus has, or less than one chunk.
        """
        self.check_size(num_tokens)
        w, mean, std = self.bin_moments(space)
        return attainable_region(mean, num_tokens, self.sums[:, 1], w, std, space, self.column)

    def out_of_reach(self, num_tokens: float, space: Literal["linear", "log"], mu: float, sigma: float) -> str:
        """The error about a target that no subset has."""
        return out_of_reach(self.attainable_region(num_tokens, space), mu, sigma)

    def cells(self, space: Literal["linear", "log"], outliers: bool = True) -> Cells:
        """The bins as cells of one column, for [`~hf_ppl_select.landscape.maxent.solve`].

        Without `outliers` those within Tukey's fences on ln(score), 1.5 interquartile ranges beyond the quartiles.
        """
        w, mean, std = self.bin_moments(space)
        no_group = np.zeros(len(w), dtype=np.int64)
        cells = Cells(w, self.sums[:, 1], mean[:, None], std[:, None], self.sums[:, 0], no_group)
        first, third = np.log(self.quantile([0.25, 0.75]))
        inside = np.abs(_centres(self.bins) - (first + third) / 2) <= 2.0 * (third - first) + 1 / BINS_PER_NAT
        return cells if outliers else cells.take(inside)

    @property
    def summary(self) -> dict[str, float | int]:
        """Its moments, chunks and tokens."""
        names = ("mu", "sigma", "log_mu", "log_sigma", "num_chunks", "num_tokens")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same back, bit by bit."""
        columns = {name: self.sums[:, i].tolist() for i, name in enumerate(_SUMS)}
        return {
            "model": self.model,
            "column": self.column,
            "weights": self.weights,
            "num_skipped": self.num_skipped,
            "num_infinite": self.num_infinite,
            "summary": self.summary,  # for readers of the file
            "bins_per_nat": BINS_PER_NAT,
            "bins": self.bins.tolist(),
            **columns,
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any], where: str = "the landscape") -> PerplexityLandscape:
        """The reverse of [`to_dict`]; ValueError, naming `where` and the field, of what is no landscape."""
        bins, sums = read_sums(d, _SUMS, Text(), Numbers(BIN), where)
        if d["bins_per_nat"] != BINS_PER_NAT:
            raise ValueError(f"{where} has {d['bins_per_nat']} bins per nat, this version uses {BINS_PER_NAT}.")
        column = d.get("column", "perplexity")  # older files do not say
        return cls(bins, sums, d["weights"], d["num_skipped"], d["num_infinite"], d["model"], column)

    def save(self, path: str | os.PathLike) -> None:
        save_json(path, self.to_dict(), kind="landscape", version=_SCHEMA_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> PerplexityLandscape:
        return load_json(path, kind="landscape", version=_SCHEMA_VERSION, read=cls.from_dict)

    def __repr__(self) -> str:
        numbers = (f"{name}={x:.4g}" if isinstance(x, float) else f"{name}={x}" for name, x in self.summary.items())
        return f"PerplexityLandscape({', '.join(numbers)}, model={self.model!r}, column={self.column!r})"


def _centres(bins: np.ndarray) -> np.ndarray:
    """ln(score) in the middle of each bin."""
    return (bins + 0.5) / BINS_PER_NAT


def _spread(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Standard deviation of offsets from a bin's centre; equal chunks get 0, not rounding noise."""
    variance = mean_square - mean**2
    return np.sqrt(np.where(variance > 1e-20, variance, 0.0))
